"""``kgctl why``: both ways of a packet, and what agents on them have to say."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from kilo.http import StatusServer
from kilo.mesh.model import Endpoint, PartialSettings, Settings, Snapshot
from kilo.mesh.state import PeerStats
from kilo.mesh.survey import Flags, make_survey
from kilo.status import Status
from tests.builders import make_key, make_report, networks
from tests.kernel.wireguard_hosts import Host
from tests.kgctl.site import NODES, PHONE, REPORTS, Site
from tests.mesh.fleets import make_node

ROOT = Path(__file__).parents[2]


def test_both_ways_are_shown(site: Site) -> None:
    said = site.ask("why", "a2", "10.2.3.7")
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert lines[0] == "there: from 192.168.1.12 to node b1"
    assert lines[1] == "  node a2: route 10.2.3.0/24 via 192.168.1.11 dev lan onlink"
    assert lines[2].startswith(
        "  node a1: route 10.2.3.0/24 via 10.4.0.2 dev kilo0 src 192.168.1.11"
    )
    assert lines[3:6] == ["  node b1: has it", "  arrives", "back: from 10.2.3.7 to node a2"]
    assert lines[-2:] == ["  node a2: has it", "  arrives"]


def test_who_takes_no_part_is_told_why(site: Site) -> None:
    site.put_report(make_report("b1"), age_seconds=300)
    site.put_peer(replace(PHONE, name="thief"))
    for end, reason in (
        ("b1", "node b1 takes no part in the mesh: silent for 300s"),
        ("thief", "publicKey"),
        ("nobody", "nobody: is no node and no peer that takes part"),
        ("10.99.0.1", "10.99.0.1: is no node and no peer"),
    ):
        said = site.ask("why", "a1", end)
        assert (said.status, said.out) == (1, "")
        assert reason in said.err


def test_what_has_no_way_is_stopped_and_ends_it_with_1(site: Site) -> None:
    """Its leader can be reached by IPv4 alone, so nothing of IPv6 gets there."""
    site.put_node("a2", replace(NODES["a2"], pod_subnets=networks("fd00:a:0:2::/64")))
    said = site.ask("why", "fd00:a:0:2::7", "phone")
    assert said.status == 1
    lines = said.out.splitlines()
    assert lines[:2] == [
        "there: from fd00:a:0:2::7 to peer phone",
        "  stopped: node a2 has no route to fd00:5::1",
    ]


def make_agent(name: str, **tunnels: float) -> Status:
    """The agent of a node of the site, with the age in seconds of each tunnel's handshake."""
    nodes = tuple(
        make_node(
            report.name,
            location=NODES[report.name].location,
            endpoint=str(report.endpoint),
            internal=" ".join(map(str, report.internal_ips)),
            pods=" ".join(map(str, NODES[report.name].pod_subnets)),
        )
        for report in REPORTS
    )
    now = time.time()
    snapshot = Snapshot(nodes=nodes, last_seen={node.name: int(now) for node in nodes})
    status = Status(name=name, interface="kilo0")
    untold = Flags(settings=PartialSettings(), defaults=Settings())
    status.snapshot, status.not_ready = snapshot, ""
    status.topology = make_survey(snapshot, untold, wall=now).topology
    status.stats = {
        make_key(other): PeerStats(
            endpoint=Endpoint.parse("203.0.113.1:1"),
            latest_handshake=now - age if age else 0.0,
            received_bytes=0,
            sent_bytes=0,
        )
        for other, age in tunnels.items()
    }
    return status


@pytest.fixture
def lan() -> Iterator[Host]:
    """A namespace that bears the addresses of a1 and a2; nobody is at b1's."""
    with Host("why") as host:
        for address in ("192.168.1.11", "192.168.1.12"):
            host.sh(f"ip address add {address}/32 dev lo")
        host.sh("ip route add unreachable 192.168.2.11/32")
        yield host


def ask(host: Host, site: Site, *words: str) -> str:
    """What ``kgctl why`` says there."""
    command = f"{sys.executable} -m kilo.kgctl why {' '.join(words)} --ask --ask-port=1109"
    return host.sh(f"cd {ROOT}; {command} --backend=file --directory={site.directory} || true")


def serve(host: Host, stack: ExitStack, address: str, status: Status) -> None:
    server = StatusServer(f"{address}:1109", status)
    host.call(server.start)
    stack.callback(server.stop)


def test_agents_on_the_way_are_asked(site: Site, lan: Host) -> None:
    leader, neighbour = make_agent("a1", b1=0), make_agent("a2")
    neighbour.not_ready = "+ route 10.2.3.0/24: File exists"
    leader.warnings = ("chain FORWARD of table ip filter drops what nobody accepts",)
    with ExitStack() as stack:
        serve(lan, stack, "192.168.1.11", leader)
        serve(lan, stack, "192.168.1.12", neighbour)
        lines = ask(lan, site, "a2", "10.2.3.7").splitlines()
    there = lines[: lines.index("  arrives")]
    assert there[2] == "    ? its agent is not ready: + route 10.2.3.0/24: File exists"
    assert there[4:6] == [
        "    ? chain FORWARD of table ip filter drops what nobody accepts",
        "    ? there was no handshake in this tunnel yet",
    ]
    assert there[7].startswith("    ? agent http://192.168.2.11:1109: ")


@pytest.mark.parametrize(
    ("age", "doubt"),
    [(900.0, "the last handshake in this tunnel was 15m ago: idle, or cut since"), (10.0, "")],
)
def test_the_age_of_a_handshake_is_judged(site: Site, lan: Host, age: float, doubt: str) -> None:
    with ExitStack() as stack:
        serve(lan, stack, "192.168.1.11", make_agent("a1", b1=age))
        lines = ask(lan, site, "a1", "10.2.3.7").splitlines()
    assert lines[1].startswith("  node a1: route 10.2.3.0/24")
    assert (f"    ? {doubt}" in lines) is bool(doubt)
    assert lines[3 if doubt else 2] == "  node b1: has it"
