"""The host's CNI configuration follows the mesh, and no pass fails because of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kilo.dataplane.cni import CNIFile
from kilo.mesh.model import Encapsulation
from kilo.mesh.view import RenderOptions
from tests.builders import make_spec, networks
from tests.engine.world import World, running

CONFLIST = {"plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}]}


class Conflist:
    """The file, as a container runtime and an administrator see it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(self) -> None:
        self.path.write_text(json.dumps(CONFLIST))

    def exists(self) -> bool:
        return self.path.exists()

    def read(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self.path.read_text())
        return config

    def plugin(self) -> dict[str, Any]:
        plugin: dict[str, Any] = self.read()["plugins"][0]
        return plugin


@pytest.fixture
def conflist(tmp_path: Path) -> Conflist:
    return Conflist(tmp_path / "10-kilo.conflist")


@pytest.fixture
def pods_world(tmp_path: Path, conflist: Conflist) -> World:
    return World(path=tmp_path, pods=CNIFile(conflist.path), options=RenderOptions(cni=True))


async def test_ranges_and_mtu_are_there_after_the_first_pass_and_follow(
    pods_world: World, conflist: Conflist
) -> None:
    conflist.install()
    async with running(pods_world):
        await pods_world.settled()
        assert conflist.plugin()["ipam"] == {
            "type": "host-local",
            "ranges": [[{"subnet": "10.2.1.0/24"}]],
        }
        assert conflist.plugin()["mtu"] == 1420
        subnets = networks("10.2.1.0/24", "fd00:2:1::/64")
        pods_world.backend.put_node("a", make_spec(location="east", pod_subnets=subnets))
        pods_world.backend.put_settings({"mtu": 1300, "encapsulation": Encapsulation.ALWAYS})
        await pods_world.eventually(lambda: conflist.plugin()["mtu"] == 1300)
        assert "fd00:2:1::/64" in str(conflist.read())


async def test_a_missing_file_is_a_warning_and_used_when_it_appears(
    pods_world: World, conflist: Conflist
) -> None:
    async with running(pods_world):
        await pods_world.settled()
        assert not conflist.exists()
        conflist.install()
        pods_world.backend.put_settings({"mtu": 1300})
        await pods_world.eventually(lambda: "mtu" in conflist.plugin())


async def test_without_cni_the_file_is_not_touched(tmp_path: Path, conflist: Conflist) -> None:
    conflist.install()
    world = World(path=tmp_path, pods=CNIFile(conflist.path))
    async with running(world):
        await world.settled()
    assert conflist.read() == CONFLIST
