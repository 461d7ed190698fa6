"""What happens to directories: editors, tools, crashes, file systems. None of it harms the mesh."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import yaml

from kilo.backends.documents import (
    make_peer_document,
    make_report_document,
    make_settings_document,
)
from kilo.backends.file.backend import FileBackend
from kilo.backends.file.reading import MAX_BYTES
from kilo.errors import BackendError
from kilo.mesh.model import PartialSettings, Snapshot
from tests.backends.directories import MeshDirectory, list_names, render_node, render_peers
from tests.backends.following import LIMIT_SECONDS, Follower, names
from tests.backends.stores import NOW
from tests.builders import make_key, make_peer, make_report


@pytest.fixture
def mesh(tmp_path: Path) -> MeshDirectory:
    (tmp_path / "mesh").mkdir()
    return MeshDirectory(tmp_path / "mesh")


@pytest.fixture
async def backend(mesh: MeshDirectory) -> AsyncIterator[FileBackend]:
    opened = FileBackend(mesh.path, wall_clock=lambda: NOW)
    yield opened
    await opened.close()


def texts(snapshot: Snapshot) -> list[str]:
    return list(map(str, snapshot.problems))


FOLLOW = """
import asyncio, pathlib, sys
from kilo.backends.file.backend import FileBackend

async def follow():
    async for snapshot in FileBackend(pathlib.Path(sys.argv[1])).watch():
        print([peer.name for peer in snapshot.peers], flush=True)

asyncio.run(follow())
"""


# Which files are read.


async def test_files_of_all_three_suffixes_are_read_at_any_depth(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("a.yaml", "a")
    mesh.write_peers("below/b.yml", "b")
    mesh.write("below/deep/c.json", json.dumps(make_peer_document(make_peer("c"))))
    assert names(await backend.snapshot()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "name",
    [".hidden.yaml", ".git/x.yaml", "x.yaml~", "#x.yaml#", ".#x.yaml", ".x.yaml.swp", "x.yaml.tmp"],
)
async def test_what_editors_and_git_leave_beside_a_file_is_not_read(
    mesh: MeshDirectory, backend: FileBackend, name: str
) -> None:
    mesh.write_peers("a.yaml", "a")
    mesh.write(name, "not: [yaml")
    snapshot = await backend.snapshot()
    assert (names(snapshot), texts(snapshot)) == (["a"], [])


async def test_other_files_are_passed_over_in_silence(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write("README.md", "# Our mesh")
    os.mkfifo(mesh.path / "pipe")
    assert await backend.snapshot() == Snapshot()


async def test_a_mounted_config_map_is_read_once_and_followed_when_its_link_is_swapped(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("..2026_01/peers.yaml", "old")
    (mesh.path / "..data").symlink_to("..2026_01")
    (mesh.path / "peers.yaml").symlink_to("..data/peers.yaml")
    follower = Follower(backend)
    await follower.until(lambda snapshot: names(snapshot) == ["old"] and not snapshot.problems)
    mesh.write_peers("..2026_02/peers.yaml", "new")
    (mesh.path / "..data_tmp").symlink_to("..2026_02")
    (mesh.path / "..data_tmp").rename(mesh.path / "..data")
    await follower.until(lambda snapshot: names(snapshot) == ["new"] and not snapshot.problems)


async def test_a_directory_reached_through_a_link_is_read_and_watched(
    tmp_path: Path, mesh: MeshDirectory
) -> None:
    (tmp_path / "link").symlink_to(mesh.path)
    backend = FileBackend(tmp_path / "link")
    follower = Follower(backend)
    await follower.next()
    mesh.write_peers("a.yaml", "a")
    await follower.until(lambda snapshot: names(snapshot) == ["a"])
    await backend.close()


async def test_links_that_loop_or_lead_nowhere_end_and_harm_nothing(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("a.yaml", "a")
    (mesh.path / "loop").symlink_to(".")
    (mesh.path / "below").mkdir()
    (mesh.path / "below" / "up").symlink_to("..")
    (mesh.path / "self.yaml").symlink_to("self.yaml")
    (mesh.path / "gone.yaml").symlink_to("nothing")
    snapshot = await backend.snapshot()
    assert names(snapshot) == ["a"]
    assert texts(snapshot) == [
        "gone.yaml: is a link that leads nowhere; left out",
        "self.yaml: is a link that leads nowhere; left out",
    ]


async def test_two_links_to_one_file_are_one_file(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("a.yaml", "a")
    (mesh.path / "b.yaml").symlink_to("a.yaml")
    snapshot = await backend.snapshot()
    assert (names(snapshot), texts(snapshot)) == (["a"], [])


async def test_fifos_sockets_and_devices_are_named_and_never_opened(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("a.yaml", "a")
    os.mkfifo(mesh.path / "pipe.yaml")
    (mesh.path / "null.yaml").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(mesh.path / "socket.yaml"))
        snapshot = await backend.snapshot()
    assert names(snapshot) == ["a"]
    assert texts(snapshot) == [
        f"{name}.yaml: is not a regular file; left out" for name in ("null", "pipe", "socket")
    ]


async def test_a_file_name_of_any_bytes_is_named_printably(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write(os.fsdecode(b"\xff\n.yaml"), "[")
    (problem,) = (await backend.snapshot()).problems
    assert problem.source == r"'\\xff\n.yaml', document 1"


# Editors.


async def test_a_file_written_in_place_is_read_again(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write("node.yaml", render_node("a1", "oregon"))
    follower = Follower(backend)
    await follower.next()
    mesh.write("node.yaml", render_node("a1", "lisbon"))
    await follower.until(lambda snapshot: snapshot.nodes[0].spec.location == "lisbon")
    assert all(isinstance(said, Snapshot) and said.nodes for said in follower.said)


async def test_a_file_renamed_over_as_vim_does_is_never_missing(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write("node.yaml", render_node("a1", "oregon"))
    follower = Follower(backend)
    await follower.next()
    mesh.rename_over("node.yaml", render_node("a1", "lisbon"))
    await follower.until(lambda snapshot: snapshot.nodes[0].spec.location == "lisbon")
    assert all(isinstance(said, Snapshot) and said.nodes for said in follower.said)


async def test_a_file_that_is_open_for_writing_is_not_read_before_it_is_closed(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("peers.yaml", "a", "b")
    follower = Follower(backend)
    await follower.next()
    whole = render_peers("a", "b", "c")
    with (mesh.path / "peers.yaml").open("w") as file:
        # Cut within the second peer: what is there parses, and would take b away.
        file.write(whole[: whole.index("name: b")])
        file.flush()
        mesh.write_peers("other.yaml", "z")
        await follower.until(lambda snapshot: names(snapshot) == ["a", "b", "z"])
        file.write(whole[whole.index("name: b") :])
    await follower.until(lambda snapshot: names(snapshot) == ["a", "b", "c", "z"])
    assert all(isinstance(said, Snapshot) and not said.problems for said in follower.said)


async def test_a_file_truncated_for_a_moment_keeps_what_was_read_there(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    path = mesh.write_peers("peers.yaml", "a")
    follower = Follower(backend)
    await follower.next()
    path.write_text("")
    mesh.write_peers("other.yaml", "z")
    await follower.until(lambda snapshot: names(snapshot) == ["a", "z"])
    mesh.write_peers("peers.yaml", "a", "b")
    await follower.until(lambda snapshot: names(snapshot) == ["a", "b", "z"])
    assert all(isinstance(said, Snapshot) and not said.problems for said in follower.said)


async def test_a_file_that_stays_empty_counts_as_empty(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("other.yaml", "z")
    path = mesh.write_peers("peers.yaml", "a")
    follower = Follower(backend)
    await follower.next()
    path.write_text("")
    snapshot = await follower.until(lambda snapshot: names(snapshot) == ["z"])
    assert texts(snapshot) == ["peers.yaml: is empty: it holds no document"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda text: text[: text.rindex(b"spec:") + 3],
            (
                "peers.yaml, document 2: is not YAML: could not find expected ':' "
                "(line 15, column 1); what was last read there stays in force"
            ),
        ),
        (
            lambda text: text[:100] + b"\xff\xfe" + text[100:],
            "peers.yaml: is not UTF-8 text (byte 101); what was last read there stays in force",
        ),
        (
            lambda text: b"\0" * len(text),
            (
                "peers.yaml, document 1: is not YAML: control characters are not allowed "
                "(near line 1); what was last read there stays in force"
            ),
        ),
        (
            lambda _: b"#" * (50 * 10**6),
            (
                f"peers.yaml: is too large: 50000000 bytes, at most {MAX_BYTES} are read; "
                "what was last read there stays in force"
            ),
        ),
    ],
    ids=["half-written", "not UTF-8", "zeros after a crash", "50 MB"],
)
async def test_a_file_that_breaks_keeps_its_last_good_content_until_it_is_whole_again(
    mesh: MeshDirectory, backend: FileBackend, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = mesh.write_peers("peers.yaml", "a", "b")
    follower = Follower(backend)
    await follower.next()
    path.write_bytes(damage(path.read_bytes()))
    snapshot = await follower.until(lambda snapshot: bool(snapshot.problems))
    assert names(snapshot) == ["a", "b"]
    assert texts(snapshot) == [message]
    mesh.write_peers("peers.yaml", "a", "c")
    snapshot = await follower.until(lambda snapshot: not snapshot.problems)
    assert names(snapshot) == ["a", "c"]


async def test_a_broken_file_that_vanishes_takes_its_objects_along(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("other.yaml", "z")
    path = mesh.write_peers("peers.yaml", "a")
    follower = Follower(backend)
    await follower.next()
    path.write_text("[")
    await follower.until(lambda snapshot: bool(snapshot.problems))
    path.unlink()
    snapshot = await follower.until(lambda snapshot: names(snapshot) == ["z"])
    assert texts(snapshot) == []


async def test_a_file_that_was_never_whole_gives_the_documents_before_the_damage(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write("peers.yaml", render_peers("a") + "---\n[")
    snapshot = await backend.snapshot()
    assert names(snapshot) == ["a"]
    (problem,) = snapshot.problems
    assert problem.source == "peers.yaml, document 2"


async def test_a_file_removed_and_written_anew_at_once_is_never_missing(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    path = mesh.write_peers("peers.yaml", "a")
    follower = Follower(backend)
    await follower.next()
    path.unlink()
    mesh.write_peers("other.yaml", "z")
    mesh.write_peers("peers.yaml", "a", "b")
    await follower.until(lambda snapshot: names(snapshot) == ["a", "b", "z"])
    assert all(isinstance(said, Snapshot) and "a" in names(said) for said in follower.said)


async def test_a_change_that_keeps_size_and_time_is_seen(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    path = mesh.write("node.yaml", render_node("a1", "oregon"))
    before = path.stat()
    await backend.snapshot()
    path.write_text(render_node("a1", "lisbon"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    snapshot = await backend.snapshot()
    assert snapshot.nodes[0].spec.location == "lisbon"


async def test_of_a_thousand_files_only_the_changed_one_is_read_again(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    for number in range(1000):
        mesh.write_peers(f"{number % 10}/p{number}.yaml", f"p{number}")
    follower = Follower(backend)
    await follower.until(lambda snapshot: len(snapshot.peers) == 1000)
    await backend.snapshot()
    read_before = backend._tree.files_read
    mesh.write("7/p7.yaml", render_node("a1", "oregon"))
    await follower.until(lambda snapshot: len(snapshot.peers) == 999 and len(snapshot.nodes) == 1)
    assert backend._tree.files_read - read_before in (1, 2)  # 2: read within a clock tick


async def test_looking_at_the_files_is_not_itself_a_change(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("a.yaml", "a")
    heard: list[None] = []
    follower = Follower(backend)
    await follower.next()

    def count() -> None:
        heard.append(None)
        backend._notify()

    backend._watch._handler._notify = count
    for _ in range(3):
        mesh.read("a.yaml")
        await backend.snapshot()
    mesh.write_peers("b.yaml", "b")
    await follower.until(lambda snapshot: names(snapshot) == ["a", "b"])
    assert len(heard) <= 3  # b.yaml created, written, closed


async def test_a_change_is_told_well_within_half_a_second(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("a.yaml", "a")
    follower = Follower(backend)
    await follower.next()
    seconds = []
    for number in range(5):
        began = time.monotonic()
        mesh.write_peers(f"p{number}.yaml", f"p{number}")
        await follower.until(lambda snapshot, name=f"p{number}": name in names(snapshot))  # type: ignore[misc]
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.5


# Two documents with one name.


async def test_of_two_documents_with_one_name_the_first_by_path_and_place_wins(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write("b.yaml", render_node("a1", "late"))
    mesh.write("a.yaml", render_node("a1", "first") + "---\n" + render_node("a1", "second"))
    snapshot = await backend.snapshot()
    assert [node.spec.location for node in snapshot.nodes] == ["first"]
    reason = "'a1' is not the first: a Node a1 stands in a.yaml, document 1; left out"
    assert texts(snapshot) == [
        f"a.yaml, document 2: Node a1: metadata.name: {reason}",
        f"b.yaml, document 1: Node a1: metadata.name: {reason}",
    ]


async def test_of_two_settings_the_first_holds_whatever_their_names(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    for name, port in (("a", 1), ("b", 2)):
        document = make_settings_document(PartialSettings(port=port), name=name)
        mesh.write(f"{name}.yaml", yaml.safe_dump(document))
    snapshot = await backend.snapshot()
    assert snapshot.settings == {"port": 1}
    (text,) = texts(snapshot)
    assert text == (
        "b.yaml, document 1: Settings b: metadata.name: 'b' is not the first: "
        "the mesh's Settings a stands in a.yaml, document 1; left out"
    )


async def test_a_kubernetes_node_and_one_of_ours_of_the_same_name_are_duplicates(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    kubernetes = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a1"}}
    mesh.write("a.yaml", render_node("a1", "oregon"))
    mesh.write("b.yaml", yaml.safe_dump(kubernetes))
    snapshot = await backend.snapshot()
    assert [node.spec.location for node in snapshot.nodes] == ["oregon"]
    assert [problem.source for problem in snapshot.problems] == ["b.yaml, document 1"]


async def test_an_agent_s_report_supersedes_the_one_in_a_kubernetes_dump(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    annotations = {"kilo.squat.ai/key": str(make_key("old")), "kilo.squat.ai/last-seen": "1"}
    metadata = {"name": "a1", "annotations": annotations}
    mesh.write(
        "dump.yaml", yaml.safe_dump({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
    )
    assert (await backend.snapshot()).last_seen == {"a1": 1}
    await backend.publish(make_report("a1"))
    snapshot = await backend.snapshot()
    assert [node.report for node in snapshot.nodes] == [make_report("a1")]
    assert (snapshot.last_seen, snapshot.problems) == ({"a1": NOW}, ())


async def test_a_file_renamed_changes_nothing(mesh: MeshDirectory, backend: FileBackend) -> None:
    mesh.write_peers("a.yaml", "a")
    follower = Follower(backend)
    await follower.next()
    (mesh.path / "a.yaml").rename(mesh.path / "b.yaml")
    mesh.write_peers("z.yaml", "z")
    await follower.until(lambda snapshot: names(snapshot) == ["a", "z"])
    mesh.write("b.yaml", render_peers("b"))
    await follower.until(lambda snapshot: names(snapshot) == ["b", "z"])
    assert all(isinstance(said, Snapshot) and not said.problems for said in follower.said)


async def test_a_file_of_nothing_but_errors_does_not_flood_the_log(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    items = [{"kind": "Pod", "number": number} for number in range(5000)]
    mesh.write("pods.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    problems = texts(await backend.snapshot())
    assert len(problems) == 101
    assert "pods.json: has 4900 more problems, not shown here" in problems


# The directory itself.


async def test_a_directory_that_is_not_there_yet_is_told_and_then_read(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path / "later")
    follower = Follower(backend)
    error = await follower.next()
    assert str(error) == f"{tmp_path}/later: No such file or directory"
    MeshDirectory(tmp_path / "later").write_peers("a.yaml", "a")
    await follower.until(lambda snapshot: names(snapshot) == ["a"])
    MeshDirectory(tmp_path / "later").write_peers("b.yaml", "b")
    await follower.until(lambda snapshot: names(snapshot) == ["a", "b"])
    await backend.close()


async def test_a_file_in_the_directory_s_place_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "mesh").write_text("")
    backend = FileBackend(tmp_path / "mesh")
    with pytest.raises(BackendError, match=r"mesh: is not a directory$"):
        await backend.snapshot()
    await backend.close()


async def test_a_directory_deleted_and_made_anew_is_read_and_watched_again(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("a.yaml", "a")
    follower = Follower(backend)
    await follower.next()
    shutil.rmtree(mesh.path)
    await follower.until_error()
    mesh.path.mkdir()
    mesh.write_peers("b.yaml", "b")
    await follower.until(lambda snapshot: names(snapshot) == ["b"])
    mesh.write_peers("c.yaml", "c")
    await follower.until(lambda snapshot: names(snapshot) == ["b", "c"])


async def test_a_directory_replaced_by_another_is_read_and_watched(
    tmp_path: Path, mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("a.yaml", "a")
    follower = Follower(backend)
    await follower.next()
    other = MeshDirectory(tmp_path / "other")
    other.write_peers("b.yaml", "b")
    mesh.path.rename(tmp_path / "aside")
    other.path.rename(mesh.path)
    await follower.until(lambda snapshot: names(snapshot) == ["b"])
    mesh.write_peers("c.yaml", "c")
    await follower.until(lambda snapshot: names(snapshot) == ["b", "c"])


async def test_a_directory_that_is_suddenly_empty_counts_as_away(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    path = mesh.write_peers("a.yaml", "a")
    follower = Follower(backend)
    await follower.next()
    path.unlink()
    assert str(await follower.until_error()).endswith(
        "is empty although it was not: is it mounted?"
    )
    with pytest.raises(BackendError, match="is it mounted"):
        await backend.publish(make_report("a1"))
    assert list_names(mesh.path) == []
    mesh.write_peers("a.yaml", "a")
    await follower.until(lambda snapshot: names(snapshot) == ["a"])


async def test_an_absence_is_told_once_however_long_it_lasts(
    tmp_path: Path, mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("a.yaml", "a")
    follower = Follower(backend)
    await follower.next()
    mesh.path.rename(tmp_path / "aside")
    await follower.until_error()
    waiting = asyncio.ensure_future(follower.next())
    await asyncio.wait({waiting}, timeout=2.5)
    assert not waiting.done()
    (tmp_path / "aside").rename(mesh.path)
    assert isinstance(await waiting, Snapshot)
    assert sum(isinstance(said, BackendError) for said in follower.said) == 1


async def test_without_inotify_the_directory_is_looked_at_every_second(
    mesh: MeshDirectory,
) -> None:
    # In a user namespace of its own, so that nobody else here runs out of inotify.
    program = await asyncio.create_subprocess_exec(
        "unshare",
        "-Ur",
        "sh",
        "-c",
        'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"',
        "sh",
        sys.executable,
        "-c",
        FOLLOW,
        str(mesh.path),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip - as a shell would show it
    assert program.stdout
    async with asyncio.timeout(LIMIT_SECONDS):
        warning = await program.stdout.readline()
        assert b"no change notifications, looking every second instead" in warning
        assert await program.stdout.readline() == b"[]\n"
        mesh.write_peers("a.yaml", "a")
        assert await program.stdout.readline() == b"['a']\n"
        program.terminate()
        assert await program.stdout.read() == b""
        await program.wait()


async def test_a_file_system_that_hangs_is_told_and_so_is_its_return(mesh: MeshDirectory) -> None:
    mesh.write_peers("a.yaml", "a")
    backend = FileBackend(mesh.path, patience_seconds=0.2)
    hang = threading.Event()
    follower = Follower(backend)
    await follower.next()
    backend._thread.submit(hang.wait)  # as a read from a dead server would block it
    assert str(await follower.until_error()) == f"{mesh.path}: no answer in 0.2 s"
    hang.set()
    await follower.until(lambda snapshot: names(snapshot) == ["a"])
    await backend.close()


async def test_what_a_link_leads_to_is_noticed_by_the_re_scan(
    tmp_path: Path, mesh: MeshDirectory
) -> None:
    outside = tmp_path / "outside.yaml"
    outside.write_text(render_peers("a"))
    (mesh.path / "link.yaml").symlink_to(outside)
    backend = FileBackend(mesh.path, rescan_seconds=0.5)
    follower = Follower(backend)
    await follower.next()
    outside.write_text(render_peers("a", "b"))
    await follower.until(lambda snapshot: names(snapshot) == ["a", "b"])
    await backend.close()


# What we write ourselves.


async def test_a_report_is_a_file_of_its_own_that_people_can_read(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    await backend.publish(make_report("a1"))
    path = mesh.path / "reports" / "a1.yaml"
    expected = make_report_document(make_report("a1"), last_seen=NOW)
    assert yaml.safe_load(path.read_text()) == expected
    assert list_names(path.parent) == ["a1.yaml"]


@pytest.mark.parametrize(
    "text",
    [render_node("a1", "oregon"), render_peers("a1"), "# mine\n- a list\n", "half: ["],
    ids=["a node", "a peer", "a list", "not YAML"],
)
async def test_a_file_that_a_person_wrote_is_never_overwritten_by_a_report(
    mesh: MeshDirectory, backend: FileBackend, text: str
) -> None:
    path = mesh.write("reports/a1.yaml", text)
    with pytest.raises(BackendError, match=r"reports/a1\.yaml: holds something else"):
        await backend.publish(make_report("a1"))
    with pytest.raises(BackendError, match=r"reports/a1\.yaml: holds something else"):
        await backend.withdraw("a1")
    assert path.read_text() == text


@pytest.mark.parametrize("left", ["", "\0" * 100], ids=["empty", "zeros"])
async def test_a_report_that_a_power_cut_left_blank_is_written_again(
    mesh: MeshDirectory, backend: FileBackend, left: str
) -> None:
    mesh.write("reports/a1.yaml", left)
    await backend.publish(make_report("a1"))
    snapshot = await backend.snapshot()
    assert [node.report for node in snapshot.nodes] == [make_report("a1")]


@contextlib.contextmanager
def bind_read_only(path: Path, to: Path) -> Iterator[Path]:
    """The directory a second time, on a mount that refuses writers: root heeds no mode bits."""
    to.mkdir()
    subprocess.run(["mount", "--bind", "-o", "ro", path, to], check=True)
    try:
        yield to
    finally:
        subprocess.run(["umount", "-l", to], check=True)


async def test_a_read_only_directory_is_one_line_and_can_still_be_read(
    mesh: MeshDirectory, tmp_path: Path
) -> None:
    mesh.write_peers("a.yaml", "a")
    with bind_read_only(mesh.path, tmp_path / "bound") as bound:
        backend = FileBackend(bound)
        with pytest.raises(BackendError, match=r"cannot be written: Read-only file system$"):
            await backend.publish(make_report("a1"))
        assert names(await backend.snapshot()) == ["a"]
        await backend.close()


async def test_a_file_in_the_place_of_the_reports_is_one_line(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write("reports", "not a directory")
    with pytest.raises(BackendError, match=r"reports/a1\.yaml: cannot be written: "):
        await backend.publish(make_report("a1"))
    await backend.withdraw("a1")


async def test_temporary_files_of_a_writer_that_died_are_removed_and_never_read(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    stale = mesh.write("reports/.a1.yaml.0badc0de.tmp", "kind: [")
    os.utime(stale, (0, 0))
    fresh = mesh.write("reports/.a1.yaml.12345678.tmp", "kind: [")
    await backend.publish(make_report("a1"))
    assert not stale.exists()
    assert fresh.exists()
    assert (await backend.snapshot()).problems == ()


async def test_the_directory_itself_is_never_made(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path / "missing")
    with pytest.raises(BackendError, match="No such file"):
        await backend.publish(make_report("a1"))
    assert list_names(tmp_path) == []
    await backend.close()


async def test_a_peer_with_a_preshared_key_is_for_its_owner_only(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    await backend.put_peer(make_peer("open"))
    await backend.put_peer(make_peer("closed", preshared=True))
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in (mesh.path / "peers").iterdir()
    }
    assert modes == {"open.yaml": 0o644, "closed.yaml": 0o600}


async def test_a_peer_is_replaced_and_deleted_in_the_file_it_has_to_itself(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("laptops/tom.yaml", "tom")
    path = mesh.write("laptops/ann.json", json.dumps(make_peer_document(make_peer("ann"))))
    await backend.put_peer(make_peer("ann", "10.5.0.9/32"))
    await backend.put_peer(make_peer("tom", "10.5.0.8/32"))
    assert json.loads(path.read_text()) == make_peer_document(make_peer("ann", "10.5.0.9/32"))
    assert not (mesh.path / "peers").exists()
    await backend.delete_peer("tom")
    await backend.delete_peer("ann")
    assert await backend.snapshot() == Snapshot()


async def test_a_peer_among_others_is_left_to_the_person_who_wrote_the_file(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    path = mesh.write_peers("peers.yaml", "ann", "tom")
    before = path.read_text()
    message = r"peers\.yaml: Peer tom stands there among others: edit that file by hand"
    with pytest.raises(BackendError, match=message):
        await backend.put_peer(make_peer("tom", "10.5.0.9/32"))
    with pytest.raises(BackendError, match=message):
        await backend.delete_peer("tom")
    assert path.read_text() == before


async def test_a_reader_never_sees_half_a_report(mesh: MeshDirectory) -> None:
    writer, reader = FileBackend(mesh.path), FileBackend(mesh.path)
    await writer.publish(make_report("a1"))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(50):
            tasks.create_task(writer.publish(make_report("a1")))
            snapshot = await reader.snapshot()
            assert snapshot.nodes[0].report == make_report("a1")
            assert snapshot.problems == ()
    await writer.close()
    await reader.close()
