"""What of a directory is looked at after an event: it comes to what looking at all comes to."""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path

import pytest
import yaml

from kilo.backends.documents import (
    DEFAULT_TOPOLOGY_LABEL,
    make_node_document,
    make_report_document,
)
from kilo.backends.file.tree import Tree
from kilo.mesh.model import NodeSpec, Snapshot
from tests.builders import make_report

NODES = 6


class Looker:
    """Looks at a directory on a clock of its own, as often as it is asked to."""

    def __init__(self, directory: Path) -> None:
        self.tree = Tree(directory, DEFAULT_TOPOLOGY_LABEL)
        self.now = 0.0

    def look(self, touched: Collection[str] | None = None) -> Snapshot:
        """Until nothing is in doubt any more."""
        return list(self.follow(touched))[-1]

    def follow(self, touched: Collection[str] | None = None) -> Iterator[Snapshot]:
        while True:
            look = self.tree.look({}, self.now, touched=touched)
            yield look.snapshot
            if look.again_at is None:
                return
            touched, self.now = (), look.again_at


def write(path: Path, text: str) -> None:
    """By replacing it; as if a while ago, since what was written just now is read twice."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.utime(temporary, (1, 1))
    temporary.replace(path)


def render_report(number: int, last_seen: int, *, port: int = 51820) -> str:
    report = make_report(f"n{number}", endpoint=f"198.51.100.{number + 1}:{port}")
    return yaml.safe_dump(make_report_document(report, last_seen=last_seen))


def render_node(number: int, location: str) -> str:
    return yaml.safe_dump(make_node_document(f"n{number}", NodeSpec(location=location)))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for folder in ("nodes", "reports"):
        (tmp_path / folder).mkdir()
    for number in range(NODES):
        write(tmp_path / f"nodes/n{number}.yaml", render_node(number, "lisbon"))
        write(tmp_path / f"reports/n{number}.yaml", render_report(number, 1000))
    return tmp_path


def test_where_a_report_is_written_anew_no_other_file_is_looked_at(directory: Path) -> None:
    looker = Looker(directory)
    before = looker.look()
    write(directory / "reports/n1.yaml", render_report(1, 1030))
    write(directory / "nodes/n2.yaml", render_node(2, "porto"))

    after = looker.look({"reports/n1.yaml"})
    assert after == before
    assert after.last_seen == {**before.last_seen, "n1": 1030}
    assert looker.look().nodes[2].spec.location == "porto", "by looking at all of them"


def test_a_node_whose_files_go_one_after_the_other_is_never_half_there(directory: Path) -> None:
    looker = Looker(directory)
    looker.look()
    seen: list[Snapshot] = []
    (directory / "nodes/n3.yaml").unlink()
    seen.append(looker.tree.look({}, looker.now, touched={"nodes/n3.yaml"}).snapshot)
    (directory / "reports/n3.yaml").unlink()
    looker.now += 0.01
    seen += looker.follow({"reports/n3.yaml"})

    assert "n3" not in {node.name for node in seen[-1].nodes}
    left = [node for snapshot in seen for node in snapshot.nodes if node.name == "n3"]
    assert left, "there is a while in which it may come back"
    assert all(node.spec.location == "lisbon" and node.report for node in left)


def test_one_that_goes_again_and_again_does_not_keep_others_for_ever(directory: Path) -> None:
    looker = Looker(directory)
    looker.look()
    (directory / "nodes/n3.yaml").unlink()
    (directory / "reports/n3.yaml").unlink()
    for number in count():
        assert number < 100
        path = directory / f"reports/n{number % 2}.yaml"
        text = path.read_text()
        path.unlink()
        snapshot = looker.tree.look({}, looker.now).snapshot
        write(path, text)
        looker.now += 0.1
        if "n3" not in {node.name for node in snapshot.nodes}:
            break


def test_a_report_that_is_whole_again_is_complained_of_no_more(directory: Path) -> None:
    looker, path = Looker(directory), directory / "reports/n1.yaml"
    looker.look()
    write(path, render_report(1, 1030)[:-20] + "\n  'cut")
    (problem,) = looker.look({"reports/n1.yaml"}).problems
    assert problem.reason.endswith("what was last read there stays in force")

    write(path, render_report(1, 1060))
    assert looker.look({"reports/n1.yaml"}).problems == ()


def stamp(path: Path, number: int, at: int) -> None:
    write(path, render_report(number, at))


def change(path: Path, number: int, at: int) -> None:
    write(path, render_report(number, at, port=at))


def remove(path: Path, _number: int, _at: int) -> None:
    path.unlink(missing_ok=True)


def link(path: Path, number: int, at: int) -> None:
    other = path.parents[1] / f"elsewhere{number}"
    write(other, render_report(number, at))
    path.unlink(missing_ok=True)
    path.symlink_to(other)


def write_as_text(path: Path, number: int, at: int) -> None:
    write(path, render_report(number, at).replace("lastSeen: ", "lastSeen: 0"))


def write_in_place(path: Path, number: int, at: int) -> None:
    path.write_text(render_report(number, at))
    os.utime(path, (at, at))


def declare(path: Path, number: int, at: int) -> None:
    write(path, render_node(number, f"far{at}"))


def add_twin(path: Path, number: int, _at: int) -> None:
    report = path.parents[1] / f"reports/n{number}.yaml"
    if report.exists() and not path.exists():
        path.hardlink_to(report)


EDITS = (
    *[("reports/n{}.yaml", stamp)] * 4,
    ("reports/n{}.yaml", change),
    ("reports/n{}.yaml", remove),
    ("reports/n{}.yaml", link),
    ("reports/n{}.yaml", write_as_text),
    ("reports/n{}.yaml", write_in_place),
    ("nodes/n{}.yaml", declare),
    ("nodes/again{}.yaml", stamp),
    ("nodes/twin{}.yaml", add_twin),
)
"""Files of a node, and what somebody does to them; inotify names just that file."""


@pytest.mark.parametrize("seed", range(20))
def test_what_is_heard_of_file_by_file_comes_to_what_is_there(directory: Path, seed: int) -> None:
    choice = random.Random(seed)
    looker = Looker(directory)
    looker.look()
    for at in range(1001, 1031):
        touched: set[str] = set()
        for _ in range(choice.randint(1, 3)):
            (name, edit), number = choice.choice(EDITS), choice.randrange(NODES)
            edit(directory / name.format(number), number, at)
            touched.add(name.format(number))
        shown, there = looker.look(touched), Looker(directory).look()
        assert shown == there
        assert shown.last_seen == there.last_seen
