"""Which files of a directory are read, and what becomes of two documents with one name."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import yaml

from kilo.backends.documents import (
    make_peer_document,
    make_settings_document,
)
from kilo.backends.file.backend import FileBackend
from kilo.mesh.model import PartialSettings, Snapshot
from tests.backends.directories import MeshDirectory, render_node, render_peers
from tests.backends.following import Follower, names, texts
from tests.backends.stores import NOW
from tests.builders import make_key, make_peer, make_report


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
