"""A mesh that has never heard of IPv4: hosts, pods, WireGuard and peers have IPv6 addresses."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kilo.lab.lab import Lab
from tests.lab.conftest import write_directory
from tests.lab.meshes import (
    check_transfer,
    set_granularity,
    wait_ready,
)

LAB = """
networks:
  internet: {public: true, subnets: ["2001:db8::/64"]}
  east: {subnets: ["fd00:1::/64"]}
  west: {subnets: ["fd00:2::/64"]}
  home: {subnets: ["fd00:50::/64"], nat: {behind: internet, address: "2001:db8::9"}}
hosts:
  a1: {networks: {east: "fd00:1::11", internet: "2001:db8::11"}}
  a2: {networks: {east: "fd00:1::12", internet: "2001:db8::12"}}
  b1: {networks: {west: "fd00:2::11", internet: "2001:db8::21"}}
  b2: {networks: {west: "fd00:2::12", internet: "2001:db8::22"}}
  home: {networks: {home: "fd00:50::11"}}
  printer: {agent: false, networks: {west: "fd00:2::50"}}
  laptop: {peer: laptop, networks: {internet: "2001:db8::50"}}
"""

MESH = """
apiVersion: kilo.squat.ai/v1alpha1
kind: Settings
metadata: {name: mesh}
spec: {subnets: ["fd00:4::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: a1}
spec: {location: east, podSubnets: ["fd00:a:0:11::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: a2}
spec: {location: east, podSubnets: ["fd00:a:0:12::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: b1}
spec: {location: west, podSubnets: ["fd00:a:0:21::/64"], allowedLocationIPs: ["fd00:2::50/128"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: b2}
spec: {location: west, podSubnets: ["fd00:a:0:22::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: home}
spec: {location: home, persistentKeepalive: 5, podSubnets: ["fd00:a:0:41::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Peer
metadata: {name: laptop}
spec:
  publicKey: GY5aT1N9dTR/nJnT1N2f4ClZWVj0jOAld0r8ysWLyjg=
  allowedIPs: ["fd00:5::1/128"]
  persistentKeepalive: 5
"""

AGENTS = ("a1", "a2", "b1", "b2", "home")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = write_directory(tmp_path_factory.mktemp("ipv6") / "lab", LAB, MESH)
    with Lab.up(directory, name=f"test-{os.getpid()}-ipv6", agents=False) as lab:
        for name in AGENTS:
            host = lab.host(name)
            host.run(["sysctl", "-qw", "net.ipv6.conf.all.forwarding=0"])
            host.start_agent("--clean-up=false")
        yield lab


@pytest.fixture(params=["full", "location"])
def mesh(lab: Lab, request: pytest.FixtureRequest) -> Lab:
    """The lab, cut into segments the one way or the other, and everything reachable."""
    set_granularity(lab, AGENTS, request.param)
    lab.wait_reachable()
    return lab


def test_everything_reaches_everything(mesh: Lab) -> None:
    result = mesh.wait_reachable()
    assert set(result.sources) == {*AGENTS, "laptop"}
    targets = {target for answers in result.answered.values() for target in answers}
    assert {target.address.version for target in targets} == {6}
    assert {target.kind for target in targets} == {
        "internal",
        "pod",
        "wireguard",
        "peer",
        "device",
    }
    for name in AGENTS:
        host = mesh.host(name)
        wait_ready(host)
        assert [line for line in host.log_lines() if line.get("msg") == "failure"] == []
        assert "proto 107" not in host.run(["ip", "-4", "route", "show", "table", "all"])


@pytest.mark.parametrize(
    ("source", "target", "address"),
    [
        ("a2", "b2", "fd00:a:0:22::1"),
        ("home", "a2", "fd00:a:0:12::1"),
        ("b1", "laptop", "fd00:5::1"),
    ],
)
def test_a_transfer_arrives_whole(mesh: Lab, source: str, target: str, address: str) -> None:
    check_transfer(mesh.host(source), mesh.host(target), address)


SERVE = """
import socket
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.bind(("fd00:2::50", 4000))
server.settimeout(60)
print("bound", flush=True)
print(server.recvfrom(9)[1][0], flush=True)
"""
SEND = """
import socket
client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
client.bind(("fd00:a:0:12::1", 0))
client.sendto(b"x", ("fd00:2::50", 4000))
"""


def test_a_device_sees_its_own_location_only(mesh: Lab) -> None:
    """It has no route to the mesh: its neighbour's address stands for all the others'."""
    server = mesh.host("printer").popen(["/usr/bin/python3", "-c", SERVE])
    assert server.stdout is not None
    assert server.stdout.readline() == "bound\n"
    mesh.host("a2").run(["/usr/bin/python3", "-c", SEND])
    seen, _ = server.communicate(timeout=90)
    assert seen.strip() == "fd00:2::11"
