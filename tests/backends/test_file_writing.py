"""What the file backend writes itself, and what it never touches."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kilo.backends.documents import (
    make_node_document,
    make_peer_document,
    make_report_document,
    make_settings_document,
)
from kilo.backends.file.backend import FileBackend
from kilo.errors import BackendError
from kilo.mesh.model import NodeSpec, PartialSettings, Snapshot
from tests.backends.directories import MeshDirectory, list_names, render_node, render_peers
from tests.backends.following import names
from tests.backends.stores import NOW
from tests.builders import make_peer, make_report


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


async def test_what_operators_declare_is_a_file_of_its_own_that_people_can_read(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    spec, settings = NodeSpec(location="oregon"), PartialSettings(port=51821)
    await backend.declare_node("a1", spec)
    await backend.declare_settings(settings)
    assert yaml.safe_load(mesh.read("nodes/a1.yaml")) == make_node_document("a1", spec)
    assert yaml.safe_load(mesh.read("settings.yaml")) == make_settings_document(settings)


async def test_settings_of_any_name_are_replaced_in_the_file_they_have_to_themselves(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    document = make_settings_document(PartialSettings(port=51820), name="ours")
    path = mesh.write("site/mesh.json", json.dumps(document, indent="\t"))
    await backend.declare_settings(PartialSettings(port=51821))
    assert (await backend.snapshot()).settings == PartialSettings(port=51821)
    assert not (mesh.path / "settings.yaml").exists()
    await backend.forget_settings()
    assert not path.exists()


async def test_a_node_or_settings_among_others_are_left_to_the_person_who_wrote_the_file(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    settings = yaml.safe_dump(make_settings_document(PartialSettings(port=51820)))
    path = mesh.write("mesh.yaml", f"{render_node('a1', 'oregon')}---\n{settings}")
    before = path.read_text()
    for what, call in (
        ("Node a1", backend.declare_node("a1", NodeSpec())),
        ("Node a1", backend.forget_node("a1")),
        ("Settings mesh", backend.declare_settings(PartialSettings())),
        ("Settings mesh", backend.forget_settings()),
    ):
        with pytest.raises(BackendError, match=rf"mesh\.yaml: {what} stands there among others"):
            await call
    assert path.read_text() == before


async def test_a_node_dumped_from_a_cluster_is_neither_overwritten_nor_removed(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    path = mesh.write("nodes/a1.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: a1}\n")
    before = path.read_text()
    for call in (backend.declare_node("a1", NodeSpec()), backend.forget_node("a1")):
        with pytest.raises(BackendError, match=r"nodes/a1\.yaml: holds something else than Node"):
            await call
    assert path.read_text() == before


async def test_forgetting_a_node_removes_declaration_and_report_or_neither(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    await backend.declare_node("a1", NodeSpec(location="oregon"))
    mesh.write("reports/a1.yaml", "# mine\n- a list\n")
    with pytest.raises(BackendError, match=r"reports/a1\.yaml: holds something else"):
        await backend.forget_node("a1")
    assert (mesh.path / "nodes/a1.yaml").exists()
    (mesh.path / "reports/a1.yaml").unlink()
    await backend.publish(make_report("a1"))
    await backend.forget_node("a1")
    assert list_names(mesh.path / "nodes") + list_names(mesh.path / "reports") == []


async def test_a_json_file_is_known_as_ours_whatever_its_text_holds(
    mesh: MeshDirectory, backend: FileBackend
) -> None:
    # As surrogates, which JSON has and YAML has not.
    document = json.dumps(make_node_document("a1", NodeSpec(location="\N{EARTH GLOBE AMERICAS}")))
    mesh.write("nodes.json", document)
    await backend.declare_node("a1", NodeSpec(location="oregon"))
    assert json.loads(mesh.read("nodes.json"))["spec"] == {"location": "oregon"}
