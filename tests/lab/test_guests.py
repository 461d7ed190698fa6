"""A host that plays a Peer is configured as the mesh wants, and follows it. No agent is needed
for that: the other end is made by hand here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.lab import meshdir
from kilo.lab.guests import follow
from kilo.lab.lab import Lab
from tests.lab.conftest import write_directory

LAB = """
networks: {internet: {public: true, subnets: [198.51.100.0/24, 203.0.113.0/24]}}
hosts:
  server: {networks: {internet: 198.51.100.11}}
  laptop: {peer: lap, networks: {internet: 203.0.113.50}}
  tablet: {peer: tab, networks: {internet: 203.0.113.51}}
"""
KEY = "OU9/xEWEsS+A8KH880l3X2wc/4BxZ1H7bQU8FJbq7F8="
MESH = f"""
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {{name: server}}
spec:
  publicKey: {KEY}
  endpoint: 198.51.100.11:51820
  internalIP: "-"
  podSubnets: [10.2.11.0/24, "fd00:a:0:11::/64"]
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Peer
metadata: {{name: lap}}
spec:
  publicKey: {KEY.replace("O", "P", 1)}
  allowedIPs: [10.5.0.1/32, "fd00:5::1/128"]
  endpoint: {{dnsOrIP: {{ip: 203.0.113.50}}, port: 51820}}
"""


@pytest.fixture
def lab(tmp_path: Path, name: str) -> Iterator[Lab]:
    with Lab.up(write_directory(tmp_path / "lab", LAB, MESH), name=name, agents=False) as lab:
        yield lab


def serve(lab: Lab) -> None:
    """Be the mesh's end of the laptop's tunnel."""
    server = lab.host("server")
    laptop = lab.host("laptop").run(["sh", "-c", "wg pubkey < /var/lib/kilo/key"]).strip()
    if not server.succeeds(["ip", "link", "add", "wg0", "type", "wireguard"]):
        server.run(["wireguard-go", "wg0"])
    key = ["private-key", "/var/lib/kilo/key"]
    server.run(["wg", "set", "wg0", "listen-port", "51820", *key, "peer", laptop])
    allowed = ["allowed-ips", "10.5.0.1/32,fd00:5::1/128", "endpoint", "203.0.113.50:51820"]
    server.run(["wg", "set", "wg0", "peer", laptop, *allowed])
    server.run(["ip", "link", "set", "wg0", "mtu", "1420", "up"])
    server.run(["ip", "route", "add", "10.5.0.1", "dev", "wg0", "src", "10.2.11.1"])
    server.run(["ip", "route", "add", "fd00:5::1", "dev", "wg0", "src", "fd00:a:0:11::1"])


def follow_mesh(lab: Lab, name: str) -> None:
    follow(lab.host(name), meshdir.read_topology(meshdir.read_snapshot(lab.mesh)))


def list_routes(lab: Lab, name: str) -> set[str]:
    host = lab.host(name)
    shown = host.run(["ip", "-j", "route", "show", "dev", "wg0"])
    shown6 = host.run(["ip", "-j", "-6", "route", "show", "dev", "wg0", "proto", "99"])
    return {route["dst"] for route in json.loads(shown) + json.loads(shown6)}


def test_a_peer_reaches_the_mesh_and_the_mesh_reaches_it(lab: Lab) -> None:
    serve(lab)
    follow_mesh(lab, "laptop")
    assert lab.host("laptop").succeeds(["fping", "--retry=5", "10.2.11.1", "fd00:a:0:11::1"])
    assert lab.host("server").succeeds(["fping", "--retry=5", "10.5.0.1", "fd00:5::1"])


def test_a_peer_follows_a_change_of_the_mesh(lab: Lab) -> None:
    follow_mesh(lab, "laptop")
    assert list_routes(lab, "laptop") == {"10.2.11.0/24", "10.4.0.1", "fd00:a:0:11::/64"}
    meshdir.set_settings(lab.mesh, subnets=["10.4.128.0/17"])
    follow_mesh(lab, "laptop")
    assert list_routes(lab, "laptop") == {"10.2.11.0/24", "10.4.128.1", "fd00:a:0:11::/64"}


def test_a_peer_that_the_mesh_has_not_got_is_left_alone_until_it_is_added(lab: Lab) -> None:
    follow_mesh(lab, "tablet")
    assert not lab.host("tablet").succeeds(["ip", "link", "show", "dev", "wg0"])
    lab.add_peer("tablet", "10.5.0.2/32", endpoint="203.0.113.51:51820")
    follow_mesh(lab, "tablet")
    follow_mesh(lab, "laptop")
    assert lab.host("laptop").succeeds(["fping", "--retry=5", "10.5.0.2"])
    assert lab.host("tablet").succeeds(["fping", "--retry=5", "10.5.0.1"])


def test_following_an_unchanged_mesh_changes_nothing(lab: Lab) -> None:
    serve(lab)
    follow_mesh(lab, "laptop")
    assert lab.host("laptop").succeeds(["fping", "--retry=5", "10.2.11.1"])
    before = lab.host("laptop").run(["wg", "show", "wg0", "latest-handshakes"])
    follow_mesh(lab, "laptop")
    follow(
        Lab.open(lab.name).host("laptop"), meshdir.read_topology(meshdir.read_snapshot(lab.mesh))
    )
    assert lab.host("laptop").run(["wg", "show", "wg0", "latest-handshakes"]) == before
    assert lab.host("laptop").succeeds(["fping", "--retry=0", "--timeout=30000", "10.2.11.1"])
