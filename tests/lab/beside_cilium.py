"""Beside Cilium: packets to the leader travel in IPIP inside Cilium's overlay.

``test_cilium`` runs this where a kernel has IPIP. One lab serves the tests of this module; each
leaves it as whole as it found it. In one location Cilium has renamed the kernel's IPIP link.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Network
from itertools import permutations

import pytest

from kilo.lab.host import Host
from kilo.lab.lab import Lab
from kilo.lab.probing import Probe
from tests.lab.cilium import HOST_LINK, PORT, Cilium, Place
from tests.lab.conftest import write_directory
from tests.lab.locations import IPIP, PROBE_SECONDS, START_SECONDS, wait_long, wait_started
from tests.lab.meshes import never_seen, watching

LAB = """
networks:
  internet: {public: true, subnets: [198.51.100.0/24]}
  east: {subnets: [192.168.1.0/24]}
  west: {subnets: [192.168.2.0/24]}
hosts:
  a1: {networks: {east: 192.168.1.11, internet: 198.51.100.11}}
  a2: {networks: {east: 192.168.1.12, internet: 198.51.100.12}}
  b1: {networks: {west: 192.168.2.21, internet: 198.51.100.21}}
  b2: {networks: {west: 192.168.2.22, internet: 198.51.100.22}}
flags:
- --cni=false
- --compatibility=cilium
- --local=false
- --encapsulate=always
- --clean-up=false
"""
PLACES = {"a1": (1, 11), "a2": (1, 12), "b1": (2, 21), "b2": (2, 22)}
"""Location and number of each node."""
MESH = "---\n".join(
    f"""
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {{name: {name}}}
spec: {{location: l{location}, podSubnets: [10.2.{number}.0/24]}}
"""
    for name, (location, number) in PLACES.items()
)
REMOTE = {"a2": ("10.2.21.0/24", "10.2.22.0/24"), "b2": ("10.2.11.0/24", "10.2.12.0/24")}
LEADERS = {"a2": "a1", "b2": "b1"}
IN_CLEAR = ("ip saddr 10.2.0.0/16", "ip daddr 10.2.0.0/16", IPIP)
CILIUMS_OWN = f"udp dport {PORT}"


class Meeting:
    """A lab, and Cilium in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        places = {
            name: Place(
                pods=IPv4Network(f"10.2.{number}.0/24"),
                internal=IPv4Address(f"192.168.{location}.{number}"),
                router=IPv4Address(f"10.2.{number}.77"),
            )
            for name, (location, number) in PLACES.items()
        }
        self.cilium = Cilium(lab, places)
        self.tunnels = {"a2": "tunl0", "b2": "cilium_tunl"}
        """Of the hosts that do not lead."""


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meeting]:
    """Cilium comes after the agents."""
    directory = write_directory(tmp_path_factory.mktemp("cilium") / "lab", LAB, MESH)
    with Lab.up(directory, name="beside-cilium", agents=False) as lab:
        meeting = Meeting(lab)
        for name in ("b1", "b2"):
            meeting.cilium.rename_tunnel(name)
        lab.for_each(lab.agent_hosts, Host.start_agent)
        for host in lab.agent_hosts:
            wait_started(host)
        meeting.cilium.start()
        yield meeting


@pytest.fixture
def mesh(meeting: Meeting) -> Meeting:
    """Everything reachable and every agent ready."""
    for host in meeting.lab.agent_hosts:
        wait_started(host)
    meeting.lab.wait_reachable(START_SECONDS)
    return meeting


@contextmanager
def nothing_in_clear(mesh: Meeting, *matches: str) -> Iterator[None]:
    """Nor what else ``matches``."""
    with ExitStack() as stack:
        for match in (*IN_CLEAR, *matches):
            stack.enter_context(never_seen(mesh.lab, "internet", match))
        yield


@contextmanager
def all_talk(lab: Lab) -> Iterator[None]:
    """Every host sends to every other's pods all the time."""
    addresses = {pair: f"10.2.{PLACES[pair[1]][1]}.1" for pair in permutations(PLACES, 2)}
    with Probe(lab.hosts.values(), addresses, interval_seconds=PROBE_SECONDS):
        yield


def list_routes(host: Host) -> str:
    """Ours."""
    return host.run(["ip", "route", "show", "proto", "107"])


def goes_through(mesh: Meeting, name: str) -> bool:
    """Whether a host that does not lead sends what is remote to where Cilium finds its leader."""
    gateway = mesh.cilium.places[LEADERS[name]].router
    shown = list_routes(mesh.lab.host(name))
    return all(f"{net} via {gateway} dev {mesh.tunnels[name]}" in shown for net in REMOTE[name])


def list_failures(host: Host) -> list[object]:
    lines = host.log_lines()
    return [line for line in lines if line.get("msg") == "failure" and line.get("level") != "info"]


def test_what_is_remote_is_reached_in_ipip_inside_the_overlay(mesh: Meeting) -> None:
    for name in mesh.tunnels:
        assert goes_through(mesh, name)
    with (
        nothing_in_clear(mesh, CILIUMS_OWN),
        never_seen(mesh.lab, "east", IPIP),
        watching(mesh.lab, "east", f"udp dport {PORT}") as count_seen,
    ):
        mesh.lab.wait_reachable(START_SECONDS)
        assert count_seen() > 0
    assert [line for host in mesh.lab.agent_hosts for line in list_failures(host)] == []


def test_an_overlay_that_comes_late_is_waited_for(mesh: Meeting) -> None:
    for host in mesh.lab.agent_hosts:
        assert any(f"link {HOST_LINK} is not there" in str(line) for line in host.log_lines())


def test_the_tunnel_bears_the_hosts_own_address_in_the_overlay(mesh: Meeting) -> None:
    for name, tunnel in mesh.tunnels.items():
        shown = mesh.lab.host(name).run(["ip", "-d", "address", "show", "dev", tunnel])
        assert "alias kilo" in shown
        assert "mtu 1430" in shown
        assert f"inet {mesh.cilium.places[name].router}/32" in shown


@pytest.mark.parametrize(("name", "router"), [("a1", "10.2.11.78"), ("b2", "10.2.22.78")])
def test_routes_follow_an_overlay_that_goes_and_comes_back_with_another_address(
    mesh: Meeting, name: str, router: str
) -> None:
    """What Cilium's overlay carries to other locations by Cilium's new routes, until ours are back,
    does not count: those routes are no barrier's to stop.
    """
    agents = {host.name: host.agents() for host in mesh.lab.agent_hosts}
    with nothing_in_clear(mesh), all_talk(mesh.lab):
        mesh.cilium.stop(name)
        mesh.cilium.move(name, router)
        mesh.cilium.start(name)
        for one in mesh.tunnels:
            wait_long(lambda: goes_through(mesh, one), f"{one} goes through its leader")  # noqa: B023 - called at once
    mesh.lab.wait_reachable(START_SECONDS)
    assert agents == {host.name: host.agents() for host in mesh.lab.agent_hosts}
    assert [line for host in mesh.lab.agent_hosts for line in list_failures(host)] == []


def test_a_tunnel_that_cilium_renames_under_our_hands_is_used_by_its_new_name(
    mesh: Meeting,
) -> None:
    with nothing_in_clear(mesh, CILIUMS_OWN):
        mesh.cilium.rename_tunnel("a2")
        mesh.tunnels["a2"] = "cilium_tunl"
        wait_long(lambda: goes_through(mesh, "a2"), "a2 goes through its leader")
        mesh.lab.wait_reachable(START_SECONDS)


def test_uninstalled_the_links_are_as_cilium_had_them(mesh: Meeting) -> None:
    host = mesh.lab.host("b2")
    before = host.run(["ip", "-br", "address", "show", "dev", HOST_LINK])
    host.kill_agent()
    host.run(host.agent_command("uninstall"), timeout=START_SECONDS)
    left = host.run(["ip", "-d", "address", "show", "dev", "cilium_tunl"])
    assert "alias" not in left
    assert "inet " not in left
    assert "UP" not in left
    assert host.run(["ip", "-br", "address", "show", "dev", HOST_LINK]) == before
    assert host.run(["ip", "route", "show", "table", "all", "proto", "107"]) == ""
    host.start_agent()
