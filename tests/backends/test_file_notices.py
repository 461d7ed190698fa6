"""What inotify tells of a directory, and what of it is worth a look."""

from __future__ import annotations

import threading
from pathlib import Path

from kilo.backends.file.scanning import TEMPORARY
from kilo.backends.file.watching import DirectoryWatch


def test_a_file_that_is_to_replace_another_wakes_nobody_before_it_does(tmp_path: Path) -> None:
    told: list[set[str] | None] = []
    replaced = threading.Event()

    def note() -> None:
        told.append(watch.take_touched())
        if told[-1] and "a.yaml" in told[-1]:
            replaced.set()

    watch = DirectoryWatch(tmp_path, note)
    status = tmp_path.stat()
    watch.ensure((status.st_dev, status.st_ino))
    try:
        temporary = tmp_path / f"a.yaml{TEMPORARY}"
        temporary.write_text("{}")
        temporary.replace(tmp_path / "a.yaml")
        assert replaced.wait(10)
    finally:
        watch.stop()
    assert told[0] == {"a.yaml"}
