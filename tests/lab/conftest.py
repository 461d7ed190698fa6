"""Labs to try things on; each test takes its own down again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from kilo.lab.lab import Lab, take_down

SITES = """
networks:
  internet: {public: true, subnets: [198.51.100.0/24, 203.0.113.0/24, "2001:db8::/64"]}
  oregon:
    subnets: [192.168.1.0/24, "fd00:1::/64"]
    nat: {behind: internet, address: [203.0.113.10, "2001:db8::10"]}
  home: {subnets: [192.168.50.0/24], nat: {behind: internet, address: 203.0.113.9}}
hosts:
  oregon-1:
    networks: {oregon: [192.168.1.11, "fd00:1::11"], internet: [198.51.100.11, "2001:db8::11"]}
  oregon-2: {networks: {oregon: [192.168.1.12, "fd00:1::12"]}}
  home-1: {networks: {home: 192.168.50.11}}
  stranger: {agent: false, networks: {internet: [203.0.113.50, "2001:db8::50"]}}
"""
"""Two private networks behind NATs, a host with a foot in both worlds, one outside."""

NODES = """
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: oregon-1}
spec: {location: oregon, podSubnets: [10.2.11.0/24, "fd00:a:0:11::/64"]}
"""

_numbers = count()


def write_directory(path: Path, lab: str = SITES, mesh: str = NODES) -> Path:
    """A directory that ``Lab.up`` takes."""
    (path / "mesh").mkdir(parents=True)
    (path / "lab.yaml").write_text(lab)
    (path / "mesh" / "mesh.yaml").write_text(mesh)
    return path


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    """Making namespaces is root's business."""
    if os.geteuid() != 0:
        pytest.skip("a lab needs root")


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a lab that no other test uses; whatever has it afterwards is taken down."""
    chosen = f"test-{os.getpid()}-{next(_numbers)}"
    yield chosen
    take_down(chosen)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory of two sites."""
    return write_directory(tmp_path / "sites")


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[[str], Lab]]:
    """Makes a lab without agents out of a ``lab.yaml``."""
    names: list[str] = []

    def make(lab: str) -> Lab:
        names.append(f"test-{os.getpid()}-{next(_numbers)}")
        return Lab.up(write_directory(tmp_path / names[-1], lab), name=names[-1], agents=False)

    yield make
    for name in names:
        take_down(name)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two sites, without agents, for tests that leave them as they found them."""
    directory = write_directory(tmp_path_factory.mktemp("sites") / "lab")
    with Lab.up(directory, name=f"test-{os.getpid()}-{next(_numbers)}", agents=False) as lab:
        yield lab
