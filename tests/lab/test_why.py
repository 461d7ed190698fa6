"""``kgctl why`` on a mesh in which something is wrong: it names what is, where packets do not come.

One lab serves the tests of this module; each leaves it as whole as it found it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml

from kilo.keyfile import generate_private_key, public_key
from kilo.lab.host import Host
from kilo.lab.lab import Lab
from tests.lab.conftest import write_directory
from tests.lab.meshes import (
    make_nodes,
    make_peer,
    reaches,
    read_network,
    wait_ready,
    wait_until,
)

LAB = """
networks:
  internet: {public: true, subnets: [198.51.100.0/24]}
  east: {subnets: [192.168.1.0/24]}
  west: {subnets: [192.168.2.0/24]}
  home: {subnets: [192.168.50.0/24], nat: {behind: internet, address: 198.51.100.9}}
hosts:
  a1: {networks: {east: 192.168.1.11, internet: 198.51.100.11}}
  a2: {networks: {east: 192.168.1.12}}
  b1: {networks: {west: 192.168.2.11, internet: 198.51.100.21}}
  home: {networks: {home: 192.168.50.11}}
flags: ["--listen=:1107", --clean-up=false]
"""
NODES = make_nodes(
    {
        "a1": {"location": "east", "podSubnets": ["10.2.11.0/24"]},
        "a2": {"location": "east", "podSubnets": ["10.2.12.0/24"]},
        "b1": {"location": "west", "podSubnets": ["10.2.21.0/24"]},
        "home": {"location": "home", "podSubnets": ["10.2.41.0/24"]},
    }
)
PHONE_KEY = "GY5aT1N9dTR/nJnT1N2f4ClZWVj0jOAld0r8ysWLyjg="
PHONE = make_peer("phone", PHONE_KEY, "10.5.0.1/32")
POD = "10.2.21.1"
"""Of b1."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = write_directory(tmp_path_factory.mktemp("why") / "lab", LAB, f"{NODES}---\n{PHONE}")
    with Lab.up(directory, name=f"test-{os.getpid()}-why") as lab:
        for host in lab.agent_hosts:
            wait_ready(host)
        yield lab


@pytest.fixture
def mesh(lab: Lab) -> Lab:
    """The lab, every agent ready, and packets of a2 arriving at b1's pods."""
    for host in lab.agent_hosts:
        wait_ready(host)
    wait_until(lambda: reaches(lab.host("a2"), POD), "b1's pods answer a2")
    return lab


def why(lab: Lab, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What it says on a host."""
    host = lab.host(name)
    command = [sys.executable, "-m", "kilo.kgctl", "why", *words, *lab.store.flags(name)]
    return host.call(command)


@contextmanager
def crashed(lab: Lab, name: str) -> Iterator[Host]:
    """The agent is dead meanwhile; it comes back, and mends what it finds."""
    host = lab.host(name)
    host.kill_agent(signal.SIGKILL)
    try:
        yield host
    finally:
        host.start_agent()
        wait_ready(host)


def read_key(host: Host) -> str:
    return host.run(["wg", "show", "kilo0", "public-key"]).strip()


def test_where_nothing_is_wrong_it_arrives(mesh: Lab) -> None:
    def has_doubts() -> bool:
        return "?" in why(mesh, "a1", "a2", POD, "--ask").stdout

    # On a busy machine an agent may tell of its handshakes a moment later.
    wait_until(lambda: not has_doubts(), "handshakes are told")
    said = why(mesh, "a1", "a2", POD, "--ask")
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stdout.count("  arrives\n") == 2
    assert "?" not in said.stdout
    assert "kgctl: node a1 is this host: its kernel was read\n" in said.stderr


def test_a_route_that_was_taken_away_is_named(mesh: Lab) -> None:
    with crashed(mesh, "a1") as a1:
        a1.run(["ip", "route", "del", "10.2.21.0/24", "dev", "kilo0"])
        assert not reaches(a1, POD)
        said = why(mesh, "a1", "a1", POD)
    assert said.returncode == 1
    assert said.stdout.splitlines()[1] == (
        "  stopped: node a1: route 10.2.21.0/24 via 10.4.0.3 is missing in its kernel"
        " (it ends at barrier 10.2.21.0/24): does its agent run?"
    )
    assert why(mesh, "a1", "a1", POD).returncode == 0


def test_a_route_that_was_refused_is_named_to_others_too(mesh: Lab) -> None:
    with crashed(mesh, "a1") as a1:
        a1.run(["ip", "route", "del", "10.2.21.0/24", "dev", "kilo0"])
        a1.run(["ip", "route", "add", "blackhole", "10.2.21.0/24"])
        a1.start_agent()
        failure = "its kernel has refused + route 10.2.21.0/24"
        wait_until(lambda: failure in why(mesh, "a2", "a2", POD, "--ask").stdout, failure)
        said = why(mesh, "a2", "a2", POD, "--ask")
        a1.run(["ip", "route", "del", "blackhole", "10.2.21.0/24"])
        a1.kill_agent(signal.SIGKILL)
    assert said.returncode == 1
    assert "  stopped: node a1: its kernel has refused + route 10.2.21.0/24" in said.stdout
    assert "File exists" in said.stdout


def test_what_an_agent_had_to_put_back_is_told(mesh: Lab) -> None:
    a1 = mesh.host("a1")
    a1.run(["ip", "route", "del", "10.2.21.0/24", "dev", "kilo0"])
    wait_until(lambda: "10.2.21.0/24" in read_routes(a1), "the route is back")
    told = "its agent had to put this back"
    wait_until(lambda: told in why(mesh, "a2", "a2", POD, "--ask").stdout, told)


def read_routes(host: Host) -> str:
    return host.run(["ip", "route", "show", "dev", "kilo0"])


def test_a_tunnel_that_was_taken_away_is_named(mesh: Lab) -> None:
    key = read_key(mesh.host("b1"))
    with crashed(mesh, "a1") as a1:
        a1.run(["wg", "set", "kilo0", "peer", key, "remove"])
        assert not reaches(a1, POD)
        there = why(mesh, "a1", "a1", POD)
        back = why(mesh, "a1", POD, "a1")
    assert there.returncode == back.returncode == 1
    lost = "  stopped: node a1: its device has no tunnel to node b1: does its agent run?"
    assert there.stdout.splitlines()[1] == lost
    assert "  stopped: node a1 has no tunnel to node b1" in back.stdout


def test_an_allowed_ip_that_another_tunnel_has_is_named(mesh: Lab) -> None:
    stolen = "10.5.0.1/32,10.2.21.0/24"
    with crashed(mesh, "a1") as a1:
        a1.run(["wg", "set", "kilo0", "peer", PHONE_KEY, "allowed-ips", stolen])
        assert not reaches(a1, POD)
        said = why(mesh, "a1", "a1", POD)
    assert said.returncode == 1
    assert said.stdout.splitlines()[1] == (
        f"  stopped: node a1: {POD} is an allowed IP of peer phone in its device,"
        " and in the mesh of node b1"
    )


def test_an_address_that_was_refused_to_a_peer_is_named(mesh: Lab) -> None:
    path = mesh.mesh / "thief.yaml"
    path.write_text(make_peer("thief", str(public_key(generate_private_key())), "10.2.21.0/25"))
    try:
        said = why(mesh, "a1", "a1", "thief")
    finally:
        path.unlink()
    assert said.returncode == 1
    assert "Peer thief: spec.allowedIPs 10.2.21.0/25 refused: it lies inside" in said.stderr
    assert "Node b1" in said.stderr


def test_a_forward_chain_that_drops_is_named(mesh: Lab) -> None:
    a1, a2 = mesh.host("a1"), mesh.host("a2")
    a1.run(["nft", "add", "table", "ip", "strict"])
    try:
        chain = "{ type filter hook forward priority 0; policy drop; }"
        a1.run(["nft", "add", "chain", "ip", "strict", "forward", chain])
        assert not reaches(a2, POD)
        with crashed(mesh, "a1"):
            here = why(mesh, "a1", "a2", POD)
        named = "? chain forward of table ip strict drops forwarded packets"
        wait_until(lambda: named in why(mesh, "a2", "a2", POD, "--ask").stdout, named)
    finally:
        a1.run(["nft", "delete", "table", "ip", "strict"])
    assert named in here.stdout


def test_a_nat_without_keepalive_is_named(mesh: Lab) -> None:
    assert not reaches(mesh.host("a1"), "10.2.41.1")
    said = why(mesh, "a1", "a1", "10.2.41.1", "--ask")
    named = (
        "    ? node home's endpoint 192.168.50.11:51820 is private and it has no"
        " persistentKeepalive: behind NAT it cannot be called"
    )
    assert named in said.stdout.splitlines()
    assert "    ? there was no handshake in this tunnel yet" in said.stdout.splitlines()


def test_a_leader_that_is_down_is_named(mesh: Lab) -> None:
    """At first by its silence on the way; once all know of it, by its absence."""
    mesh.kill("b1")
    report = mesh.mesh / "reports" / "b1.yaml"
    try:
        first = why(mesh, "a1", "a1", POD, "--ask")
        document = yaml.safe_load(report.read_text())
        document["spec"]["lastSeen"] -= 300
        report.write_text(yaml.safe_dump(document))
        then = why(mesh, "a1", "a1", POD)
    finally:
        mesh.start("b1")
    lines = first.stdout.splitlines()
    assert lines[lines.index("  node b1: has it") + 1].startswith("    ? agent http://")
    assert then.returncode == 1
    assert "node b1 takes no part in the mesh: silent for " in then.stderr
    wait_ready(mesh.host("b1"))


def test_looking_changes_nothing(mesh: Lab) -> None:
    a1 = mesh.host("a1")
    before = read_network(a1)
    assert why(mesh, "a1", "a1", POD, "--ask").returncode == 0
    after = read_network(a1)
    # That command also shows timers of bridges.
    assert {**after, "ip -d link": ""} == {**before, "ip -d link": ""}
