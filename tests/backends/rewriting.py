"""A program that rewrites a file of peers again and again, in every way that programs have.

``python -m tests.backends.rewriting FILE TURNS PEER…``; the last content has a peer ``turnN``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.backends.directories import MeshDirectory, render_peers


def rewrite(path: Path, text: str, how: int) -> None:
    """The pauses are the program's own slowness."""
    if how == 0:
        with path.open("w") as file:
            for begin in range(0, len(text), 2000):
                file.write(text[begin : begin + 2000])
                file.flush()
                time.sleep(0.01)
    elif how == 1:
        MeshDirectory(path.parent).rename_over(path.name, text)
    elif how == 2:
        path.unlink()
        path.write_text(text)
    elif how == 3:
        path.write_text("")
        time.sleep(0.1)
        path.write_text(text)
    else:
        path.write_text(text)


def main() -> None:
    file, turns, *peers = sys.argv[1:]
    for turn in range(int(turns)):
        rewrite(Path(file), render_peers(*peers, f"turn{turn}"), turn % 5)


if __name__ == "__main__":
    main()
