"""Editors, half-written files, files that vanish: none of it harms the mesh."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable

import pytest

from kilo.backends.file.backend import FileBackend
from kilo.backends.file.reading import MAX_BYTES
from kilo.mesh.model import Snapshot
from tests.backends.directories import MeshDirectory, render_node, render_peers
from tests.backends.following import Follower, names, texts


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


async def test_a_file_rewritten_again_and_again_in_every_way_is_never_seen_half(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    always = {f"p{number:02}" for number in range(80)}
    mesh.write_peers("peers.yaml", *sorted(always))
    follower = Follower(backend)
    await follower.next()
    # A process of its own, as editors are: they do not wait for our interpreter's lock.
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.backends.rewriting", mesh.path / "peers.yaml", "25", *always
    )
    await follower.until(lambda snapshot: "turn24" in names(snapshot))
    assert await writer.wait() == 0
    for said in follower.said:
        assert isinstance(said, Snapshot)
        assert not said.problems
        assert always <= set(names(said))


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
