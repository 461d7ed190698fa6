"""The directory goes, comes, is emptied, replaced, hangs: none of it harms the mesh."""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
from pathlib import Path

import pytest

from kilo.backends.file.backend import FileBackend
from kilo.errors import BackendError
from kilo.mesh.model import Snapshot
from tests.backends.directories import MeshDirectory, list_names, render_peers
from tests.backends.following import LIMIT_SECONDS, Follower, names
from tests.builders import make_report

FOLLOW = """
import asyncio, pathlib, sys
from kilo.backends.file.backend import FileBackend

async def follow():
    async for snapshot in FileBackend(pathlib.Path(sys.argv[1])).watch():
        print([peer.name for peer in snapshot.peers], flush=True)

asyncio.run(follow())
"""


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


async def test_a_directory_deleted_and_made_anew_at_once_is_still_watched(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    mesh.write_peers("a.yaml", "a")
    follower = Follower(backend)
    await follower.next()
    shutil.rmtree(mesh.path)
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


async def test_another_directory_with_nothing_but_reports_counts_as_away(
    tmp_path: Path, mesh: MeshDirectory, backend: FileBackend
) -> None:
    """A mount point with nothing mounted, into which a restarted agent has written."""
    mesh.write_peers("a.yaml", "a")
    follower = Follower(backend)
    await follower.next()
    await backend.publish(make_report("a1"))
    mount_point = FileBackend(tmp_path / "mount point")
    (tmp_path / "mount point").mkdir()
    await mount_point.publish(make_report("b1"))
    await mount_point.close()
    mesh.path.rename(tmp_path / "aside")
    (tmp_path / "mount point").rename(mesh.path)
    await follower.until_error()
    with pytest.raises(BackendError, match="nobody declares"):
        await backend.publish(make_report("a1"))
    mesh.path.rename(tmp_path / "mount point")
    (tmp_path / "aside").rename(mesh.path)
    await follower.until(lambda snapshot: names(snapshot) == ["a"])


async def test_no_report_is_written_into_an_empty_directory_in_the_mesh_s_place(
    tmp_path: Path, mesh: MeshDirectory, backend: FileBackend
) -> None:
    """Not even at once, while a file that is missing may be one that is being replaced."""
    mesh.write_peers("a.yaml", "a")
    await backend.publish(make_report("a1"))
    mesh.path.rename(tmp_path / "aside")
    mesh.path.mkdir()
    with pytest.raises(BackendError, match="is another directory than before"):
        await backend.publish(make_report("a1"))
    assert list_names(mesh.path) == []


async def test_the_last_declaration_may_be_removed_where_agents_report(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    path = mesh.write_peers("a.yaml", "a")
    await backend.publish(make_report("a1"))
    follower = Follower(backend)
    await follower.next()
    path.unlink()
    await follower.until(lambda snapshot: names(snapshot) == [])


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
    backend._thread.run(hang.wait)  # as a read from a dead server would block it
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
