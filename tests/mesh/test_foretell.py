"""What agents will do about a change, told from afar; that it is right is tested beside agents."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kilo.mesh.foretell import Foretold, Hosts, foretell
from kilo.mesh.model import (
    Endpoint,
    Granularity,
    IPAddress,
    Node,
    PartialSettings,
    Peer,
    Settings,
    Snapshot,
)
from kilo.mesh.survey import Flags, Survey, make_survey
from tests.builders import make_key
from tests.mesh.fleets import make_node, make_peer

NOW = 1_000_000
A = make_node("a", location="east", internal="192.168.1.11/24", pods="10.2.1.0/24")
B = make_node("b", location="west", internal="192.168.2.11/24", pods="10.2.2.0/24")
PHONE = make_peer("phone", "10.5.0.1/32", endpoint="203.0.113.5:5")


def survey(
    *nodes: Node, peers: tuple[Peer, ...] = (), settings: PartialSettings | None = None
) -> Survey:
    """The mesh of these, all of them seen just now."""
    snapshot = Snapshot(
        nodes=nodes,
        peers=peers,
        settings=settings or PartialSettings(),
        last_seen={node.name: NOW for node in nodes},
    )
    untold = Flags(settings=PartialSettings(), defaults=Settings())
    return make_survey(snapshot, untold, wall=NOW)


def tell(before: Survey, after: Survey, hosts: Hosts | None = None) -> dict[str, Foretold]:
    return {one.node: one for one in foretell(before, after, hosts or Hosts())}


def test_where_nothing_changes_nothing_is_foretold() -> None:
    mesh = survey(A, B, peers=(PHONE,))
    assert all(not one.changes and not one.note for one in tell(mesh, mesh).values())


def test_an_endpoint_that_is_taken_back_stays_in_the_devices() -> None:
    without = replace(PHONE, endpoint=None)
    told = tell(survey(A, B, peers=(PHONE,)), survey(A, B, peers=(without,)))
    assert not any(one.changes for one in told.values())


def test_another_endpoint_cuts_no_session() -> None:
    moved = replace(PHONE, endpoint=Endpoint.parse("203.0.113.6:6"))
    told = tell(survey(A, peers=(PHONE,)), survey(A, peers=(moved,)))
    assert list(map(str, told["a"].changes)) == [
        f"~ peer {make_key('phone')} dev kilo0 endpoint 203.0.113.6:6 allowed-ips 10.5.0.1/32"
    ]
    assert told["a"].cut == ()


def test_another_key_cuts_the_session_of_the_old_one() -> None:
    renewed = replace(PHONE, public_key=make_key("new"))
    told = tell(survey(A, peers=(PHONE,)), survey(A, peers=(renewed,)))
    assert told["a"].cut == ("peer phone",)


def test_a_leader_that_is_relieved_loses_all_its_sessions() -> None:
    eager = make_node("c", location="east", internal="192.168.1.12/24", leader=True)
    told = tell(survey(A, B, peers=(PHONE,)), survey(A, B, eager, peers=(PHONE,)))
    assert told["a"].cut == ("node b", "peer phone")
    assert told["b"].cut == ("node a",)
    assert "~ link kilo0 mtu 1420 down" in str(told["a"].changes)


def test_names_are_resolved_by_who_asks() -> None:
    address: IPAddress | None = Endpoint.parse("203.0.113.9:9").ip
    assert address is not None
    named = replace(PHONE, endpoint=Endpoint(host="home.example.com", port=7))
    mesh = (survey(A), survey(A, peers=(named,)))
    known = tell(*mesh, Hosts(resolved={"home.example.com": address}))
    assert f"+ peer {make_key('phone')} dev kilo0 endpoint 203.0.113.9:7" in str(known["a"].changes)
    assert f"+ peer {make_key('phone')} dev kilo0 allowed-ips" in str(tell(*mesh)["a"].changes)


def test_agents_that_would_refuse_the_change_leave_their_network_as_it_is() -> None:
    assert B.report is not None
    kilos_own = replace(B, report=replace(B.report, agent=""))
    cross = PartialSettings(granularity=Granularity.CROSS)
    told = tell(survey(A, kilos_own), survey(A, kilos_own, settings=cross))
    assert not told["a"].changes
    assert "granularity cross: the agent of Node b is Kilo's own" in told["a"].note


@pytest.mark.parametrize("before", [(A,), (A, replace(B, report=None))])
def test_a_node_that_comes_makes_its_network_from_nothing(before: tuple[Node, ...]) -> None:
    told = tell(survey(*before), survey(A, B))
    assert f"+ wireguard kilo0 public-key {make_key('b')}" in str(told["b"].changes)
    assert f"+ peer {make_key('b')}" in str(told["a"].changes)


def test_a_node_that_is_left_out_does_nothing_about_it() -> None:
    twin = replace(B, report=A.report)
    told = tell(survey(A, B), survey(A, twin))
    assert not told["b"].changes
    assert told["b"].note.startswith(f"takes no part: publicKey {make_key('a')}")
    assert told["a"].cut == ("node b",)
