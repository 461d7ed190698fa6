"""Beside Flannel: its vxlan carries packets within a location, our tunnels those between them.

One lab serves the tests of this module; each leaves it as whole as it found it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network

import pytest

from kilo.lab.host import Host
from kilo.lab.lab import Lab
from tests.lab.conftest import write_directory
from tests.lab.flannel import LINK, PORT, Flannel, Lease
from tests.lab.meshes import (
    check_transfer,
    is_ready,
    never_seen,
    wait_each,
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
  a2: {networks: {east: 192.168.1.12, internet: 198.51.100.12}}
  b1: {networks: {west: 192.168.2.11, internet: 198.51.100.21}}
  b2: {networks: {west: 192.168.2.12, internet: 198.51.100.22}}
  home: {networks: {home: 192.168.50.11}}
flags:
- --cni=false
- --compatibility=flannel
- --local=false
- --encapsulate=always
- --clean-up=false
"""
SUBNETS = {
    "a1": ("10.2.11.0/24", "192.168.1.11"),
    "a2": ("10.2.12.0/24", "192.168.1.12"),
    "b1": ("10.2.21.0/24", "192.168.2.11"),
    "b2": ("10.2.22.0/24", "192.168.2.12"),
    "home": ("10.2.41.0/24", "192.168.50.11"),
}
PLACES = {
    "a1": "location: east",
    "a2": "location: east",
    "b1": "location: west",
    "b2": "location: west",
    "home": "internalIP: '-', persistentKeepalive: 5",
}
MESH = "---\n".join(
    f"""
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {{name: {name}}}
spec: {{podSubnets: [{subnet}], {PLACES[name]}}}
"""
    for name, (subnet, _) in SUBNETS.items()
)
ELSEWHERE = (("a1", "b1"), ("a2", "b2"), ("a1", "home"), ("a2", "home"))
TO_ELSEWHERE = "ip daddr { 10.2.21.0/24, 10.2.22.0/24, 10.2.41.0/24 }"
CONFIGURATION = '{"cniVersion": "0.3.1", "name": "cbr0", "plugins": [{"type": "flannel"}]}\n'
PATH = "/etc/cni/net.d/10-flannel.conflist"


class Meeting:
    """A lab, and Flannel in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        leases = {
            name: Lease(subnet=IPv4Network(subnet), address=IPv4Address(address))
            for name, (subnet, address) in SUBNETS.items()
        }
        self.flannel = Flannel(lab, leases)

    def hosts(self, *names: str) -> list[Host]:
        return [self.lab.host(name) for name in names or SUBNETS]


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meeting]:
    """Flannel comes after the agents."""
    directory = write_directory(tmp_path_factory.mktemp("flannel") / "lab", LAB, MESH)
    with Lab.up(directory, name=f"test-{os.getpid()}-flannel", agents=False) as lab:
        meeting = Meeting(lab)
        for host in meeting.hosts():
            host.run(["sh", "-c", f"cat > {PATH}"], text=CONFIGURATION)
            host.start_agent()
        wait_each(meeting.hosts(), has_met_all, "knows of all the others")
        meeting.flannel.start()
        yield meeting


@pytest.fixture
def mesh(meeting: Meeting) -> Meeting:
    """Everything reachable and every agent ready."""
    for host in meeting.hosts():
        wait_ready(host)
    meeting.lab.wait_reachable()
    return meeting


def has_met_all(host: Host) -> bool:
    return is_ready(host) and host.metrics()["kilo_nodes"] == len(SUBNETS)


def list_routes(host: Host) -> list[str]:
    """Ours over Flannel's link."""
    shown = host.run(["ip", "route", "show", "dev", LINK, "proto", "107"])
    return sorted(" ".join(line.split()) for line in shown.splitlines())


def list_failures(host: Host) -> list[object]:
    lines = host.log_lines()
    return [line for line in lines if line.get("msg") == "failure" and line.get("level") != "info"]


def test_what_is_remote_is_reached_over_flannels_link_through_the_leader(mesh: Meeting) -> None:
    shown = list_routes(mesh.lab.host("a2"))
    for destination in ("10.2.21.0/24", "10.2.22.0/24", "10.2.41.0/24", "192.168.2.12"):
        assert f"{destination} via 10.2.11.0 onlink" in shown
    assert list_routes(mesh.lab.host("a1")) == []
    result = mesh.lab.check()
    kinds = {target.kind for targets in result.answered.values() for target in targets}
    assert kinds == {"internal", "pod", "wireguard"}


def test_a_link_that_comes_late_is_no_failure_and_used_at_once(mesh: Meeting) -> None:
    assert [line for host in mesh.hosts() for line in list_failures(host)] == []
    warnings = [str(line) for line in mesh.lab.host("a2").log_lines()]
    assert any(f"link {LINK} is not there" in line for line in warnings)


@pytest.mark.parametrize("name", ["a2", "a1"])
def test_routes_follow_a_link_that_goes_and_comes_back_and_no_packet_is_in_clear(
    mesh: Meeting, name: str
) -> None:
    host = mesh.lab.host(name)
    before = list_routes(host)
    with mesh.lab.probe(ELSEWHERE), never_seen(mesh.lab, "internet", TO_ELSEWHERE):
        passes = host.metrics()["kilo_reconciles_total"]
        mesh.flannel.stop(name)
        wait_until(lambda: host.metrics()["kilo_reconciles_total"] > passes, "it was noticed")
        mesh.flannel.make_link(name)
        passes = host.metrics()["kilo_reconciles_total"]
        wait_until(lambda: host.metrics()["kilo_reconciles_total"] > passes, "looked at, down")
        mesh.flannel.use_link(name)
        wait_until(lambda: list_routes(host) == before, "all routes are back")
        mesh.lab.wait_reachable()
    assert list_failures(host) == []


def test_routes_of_flannels_to_other_locations_give_way_to_ours_again_and_again(
    mesh: Meeting,
) -> None:
    for name in ("a1", "a2"):
        host = mesh.lab.host(name)
        before = host.run(["ip", "route", "show", "proto", "107"])
        mesh.flannel.repeat_routes(name)
        shown = partial(host.run, ["ip", "route", "show", "proto", "107"])
        wait_until(lambda: shown() == before, f"{name} took its routes back")  # noqa: B023 - called at once
        assert list_failures(host) == []


def test_between_locations_flannels_packets_are_never_seen(mesh: Meeting) -> None:
    with never_seen(mesh.lab, "internet", f"udp dport {PORT}"):
        mesh.lab.wait_reachable()
        check_transfer(mesh.lab.host("a2"), mesh.lab.host("b2"), "10.2.22.1")
        check_transfer(mesh.lab.host("home"), mesh.lab.host("a2"), "10.2.12.1")
    with pytest.raises(AssertionError), never_seen(mesh.lab, "east", f"udp dport {PORT}"):
        mesh.lab.wait_reachable()


def test_flannels_configuration_of_pods_is_not_touched(mesh: Meeting) -> None:
    for host in mesh.hosts():
        assert host.run(["ls", "/etc/cni/net.d"]).split() == ["10-flannel.conflist"]
        assert host.run(["cat", PATH]) == CONFIGURATION
