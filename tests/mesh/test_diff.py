"""Least change, in the right order (house rule 7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from kilo.mesh.diff import Change, Changes, diff
from kilo.mesh.model import Endpoint, Granularity, Node, Peer, Settings
from kilo.mesh.state import DataplaneState, Route, WireGuardPeer
from tests.builders import make_key, make_preshared_key
from tests.mesh.fleets import make_node, make_peer, nets, render_node
from tests.mesh.kernel_model import list_unreachable, replay

A = make_node("a", location="east", internal="192.168.1.1/24", pods="10.2.1.0/24")
B = make_node("b", location="east", internal="192.168.1.2/24", pods="10.2.2.0/24")
C = make_node("c", location="west", endpoint="203.0.113.3:51820", internal="192.168.2.1/24")
D = make_node("d", location="zone", endpoint="203.0.113.4:51820", internal="192.168.3.1/24")
PEER = make_peer("p", "10.5.0.1/32")


def _diff(
    before: Sequence[Node],
    after: Sequence[Node],
    *,
    name: str = "a",
    peers: tuple[Sequence[Peer], Sequence[Peer]] = ((), ()),
) -> list[str]:
    """What one node does when the mesh changes."""
    old, new = (
        render_node(name, nodes, some) for nodes, some in zip((before, after), peers, strict=True)
    )
    return str(diff(old, new)).splitlines()


def test_what_is_equal_needs_no_change() -> None:
    state = render_node("a", [A, B, C], [PEER])
    changes = diff(state, state)
    assert (len(changes), str(changes), bool(changes)) == (0, "", False)


def test_a_node_that_comes_touches_only_what_leads_to_it() -> None:
    assert _diff([A, C], [A, C, D]) == [
        (
            f"+ peer {make_key('d')} dev kilo0 endpoint 203.0.113.4:51820"
            " allowed-ips 10.4.0.3/32,192.168.3.1/32"
        ),
        "+ route 192.168.3.1/32 via 10.4.0.3 dev kilo0 src 192.168.1.1 onlink",
    ]


def test_a_node_that_goes_loses_its_route_before_its_tunnel() -> None:
    assert _diff([A, C, D], [A, C]) == [
        "- route 192.168.3.1/32 via 10.4.0.3 dev kilo0 src 192.168.1.1 onlink",
        (
            f"- peer {make_key('d')} dev kilo0 endpoint 203.0.113.4:51820"
            " allowed-ips 10.4.0.3/32,192.168.3.1/32"
        ),
    ]


def test_a_peer_that_comes_touches_only_itself_and_the_firewall() -> None:
    assert _diff([A, C], [A, C], peers=([PEER], [PEER, make_peer("q", "10.5.0.2/32")])) == [
        f"+ peer {make_key('q')} dev kilo0 allowed-ips 10.5.0.2/32",
        (
            "~ firewall known 10.2.1.0/24,10.4.0.1/32,10.4.0.2/32,10.5.0.1/32,10.5.0.2/32,"
            "192.168.1.1/32,192.168.2.1/32 masquerade-sources 10.5.0.1/32,10.5.0.2/32"
            " clamp-links kilo0"
        ),
        "+ route 10.5.0.2/32 dev kilo0",
    ]


def test_the_first_peer_brings_a_firewall_and_the_last_takes_it_away() -> None:
    firewall = (
        "firewall known 10.2.1.0/24,10.4.0.1/32,10.5.0.1/32,192.168.1.1/32"
        " masquerade-sources 10.5.0.1/32 clamp-links kilo0"
    )
    peer = f"peer {make_key('p')} dev kilo0 allowed-ips 10.5.0.1/32"
    assert _diff([A], [A], peers=([], [PEER])) == [
        f"+ {peer}",
        f"+ {firewall}",
        "+ route 10.5.0.1/32 dev kilo0",
    ]
    assert _diff([A], [A], peers=([PEER], [])) == [
        "- route 10.5.0.1/32 dev kilo0",
        f"- {firewall}",
        f"- {peer}",
    ]


def test_a_peer_that_changes_is_changed_in_place() -> None:
    changed = replace(PEER, endpoint=Endpoint.parse("203.0.113.9:1"))
    assert _diff([A], [A], peers=([PEER], [changed])) == [
        f"~ peer {make_key('p')} dev kilo0 endpoint 203.0.113.9:1 allowed-ips 10.5.0.1/32"
    ]


def test_a_changed_preshared_key_is_a_change() -> None:
    keyed, other = (replace(PEER, preshared_key=make_preshared_key(x)) for x in "kl")
    for before, after in ((PEER, keyed), (keyed, other), (keyed, PEER)):
        assert len(_diff([A], [A], peers=([before], [after]))) == 1


TO_C = (
    f"peer {make_key('c')} dev kilo0 endpoint 203.0.113.3:51820"
    " allowed-ips 10.4.0.2/32,192.168.2.1/32"
)
VOLUNTEER = replace(B, spec=replace(B.spec, leader=True))


def test_a_leader_that_steps_down_replaces_its_routes_before_the_tunnels_go() -> None:
    assert _diff([A, B, C], [A, VOLUNTEER, C]) == [
        "+ route 10.4.0.1/32 via 192.168.1.2 dev eth0 onlink",
        "+ route 10.4.0.2/32 via 192.168.1.2 dev eth0 onlink",
        "~ route 192.168.2.1/32 via 192.168.1.2 dev eth0 onlink",
        "- address 10.4.0.1/16 dev kilo0",
        "- firewall clamp-links kilo0",
        f"- {TO_C}",
        "~ link kilo0 mtu 1420 down",
    ]


def test_a_node_that_begins_to_lead_has_its_tunnels_before_its_routes() -> None:
    assert _diff([A, B, C], [A, VOLUNTEER, C], name="b") == [
        "~ link kilo0 mtu 1420 up",
        f"+ {TO_C}",
        "+ firewall clamp-links kilo0",
        "+ address 10.4.0.1/16 dev kilo0",
        "- route 10.4.0.2/32 via 192.168.1.1 dev eth0 onlink",
        "~ route 192.168.2.1/32 via 10.4.0.2 dev kilo0 src 192.168.1.2 onlink",
        "- route 10.4.0.1/32 via 192.168.1.1 dev eth0 onlink",
    ]


def test_an_address_that_was_ours_goes_before_it_becomes_a_gateway() -> None:
    """Linux refuses a gateway that is an address of its own."""
    newcomer = make_node("z", location="asia", internal="192.168.9.1/24")
    addresses_and_routes = [step for step in _diff([A, C], [newcomer, A, C]) if "peer" not in step]
    assert addresses_and_routes == [
        "+ address 10.4.0.2/16 dev kilo0",
        "- address 10.4.0.1/16 dev kilo0",
        "+ route 192.168.9.1/32 via 10.4.0.1 dev kilo0 src 192.168.1.1 onlink",
        "~ route 192.168.2.1/32 via 10.4.0.3 dev kilo0 src 192.168.1.1 onlink",
    ]


def test_a_route_to_a_gateway_goes_before_the_routes_through_it() -> None:
    """IPv6 takes no gateway on one link while the route to it is on another."""
    one, two = (
        make_node(name, location="east", internal=f"fd00::{name}/64", pods=f"fd00:2:{name}::/64")
        for name in "ab"
    )
    before, after = (
        render_node("a", [one, two], settings=Settings(granularity=granularity))
        for granularity in (Granularity.FULL, Granularity.CROSS)
    )
    steps = str(diff(before, after)).splitlines()
    gone = next(step for step in steps if step.startswith("- route fd00::b/128"))
    through = next(step for step in steps if step.startswith("~ route fd00:2:b::/64 via fd00::b"))
    assert steps.index(gone) < steps.index(through)


def _state(*peers: tuple[str, str]) -> DataplaneState:
    return DataplaneState(
        peers=frozenset(
            WireGuardPeer(
                link="kilo0", public_key=make_key(name), allowed_ips=frozenset(nets(allowed))
            )
            for name, allowed in peers
        )
    )


def _order(changes: Iterable[Change], names: Iterable[str]) -> list[str]:
    known = {make_key(name): name for name in names}
    peers = (change.resource for change in changes)
    return [known[peer.public_key] for peer in peers if isinstance(peer, WireGuardPeer)]


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_an_allowed_ip_that_moves_is_taken_before_it_is_given_up(names: tuple[str, str]) -> None:
    giver, taker = names
    before = _state((giver, "10.2.1.0/24 10.2.9.0/24"), (taker, "10.2.2.0/24"))
    after = _state((giver, "10.2.1.0/24"), (taker, "10.2.2.0/24 10.2.9.0/24"))
    changes = diff(before, after)
    assert _order(changes, names) == [taker, giver]
    moving = nets("10.2.9.0/24")[0]
    for state in replay(before, changes):
        assert sum(moving in peer.allowed_ips for peer in state.peers) == 1


def test_a_peer_loses_a_network_with_the_other_changes_of_peers() -> None:
    """In one batch, so that the driver sees which networks another peer takes over."""
    old = make_node("c", location="west", internal="192.168.2.1/24", pods="10.2.3.0/24")
    new = make_node("c", location="west", internal="192.168.2.1/24")
    assert _diff([A, old], [A, new]) == [
        (
            f"~ peer {make_key('c')} dev kilo0 endpoint 198.51.100.1:51820"
            " allowed-ips 10.4.0.2/32,192.168.2.1/32"
        ),
        "- route 10.2.3.0/24 via 10.4.0.2 dev kilo0 src 192.168.1.1 onlink",
    ]


def test_a_new_leader_takes_its_predecessors_allowed_ips_before_that_one_goes() -> None:
    before, after = _state(("a", "10.2.1.0/24")), _state(("b", "10.2.1.0/24"))
    verbs = [str(change)[0] for change in diff(before, after)]
    assert verbs == ["+", "-"]


@pytest.mark.parametrize("backwards", [False, True], ids=["comes", "goes"])
def test_no_packet_finds_a_route_without_its_tunnel_on_the_way(backwards: bool) -> None:  # noqa: FBT001 - both ways
    before, after = DataplaneState(), render_node("a", [A, B, C, D], [PEER])
    if backwards:
        before, after = after, before
    states = list(replay(before, diff(before, after)))
    assert states[-1] == after
    assert [list_unreachable(state, "kilo0") for state in states] == [[]] * len(states)


def test_an_address_that_becomes_a_gateway_goes_before_the_routes_through_it() -> None:
    newcomer = make_node("0", location="a", internal="192.168.9.1/24")
    changes = _diff([A], [newcomer, A])
    route = "+ route 192.168.9.1/32 via 10.4.0.1 dev kilo0 src 192.168.1.1 onlink"
    order = ["+ address 10.4.0.2/16 dev kilo0", "- address 10.4.0.1/16 dev kilo0", route]
    assert [change for change in changes if change in order] == order


def test_the_last_address_of_a_family_goes_after_its_routes() -> None:
    state = render_node("a", [A, C])
    changes = str(diff(state, DataplaneState())).splitlines()
    verbs = [change.split()[1] for change in changes]
    assert verbs == ["route", "address", "firewall", "peer", "wireguard", "link"]


def test_a_route_to_what_becomes_a_gateway_goes_before_the_routes_through_it() -> None:
    gateway, behind = nets("fd00:4::2/128 fd00:2::/64")
    old = Route(destination=gateway, link="eth0")
    new = Route(destination=behind, link="kilo0", gateway=gateway.network_address)
    changes = diff(DataplaneState(routes=frozenset({old})), DataplaneState(routes=frozenset({new})))
    assert (
        str(changes)
        == "- route fd00:4::2/128 dev eth0\n+ route fd00:2::/64 via fd00:4::2 dev kilo0"
    )


def test_one_destination_may_have_a_route_in_each_of_two_tables() -> None:
    main = Route(destination=nets("192.168.1.2/32")[0], link="eth0")
    other = replace(main, link="tunl0", table=1107)
    changes = diff(DataplaneState(), DataplaneState(routes=frozenset({main, other})))
    assert str(changes) == (
        "+ route 192.168.1.2/32 dev eth0\n+ route 192.168.1.2/32 dev tunl0 table 1107"
    )


def test_a_change_is_about_something() -> None:
    with pytest.raises(ValueError, match="old resource, a new one or both"):
        _ = Change().resource


def test_changes_can_be_counted_and_walked() -> None:
    changes = diff(DataplaneState(), _state(("a", "10.2.1.0/24")))
    assert (len(changes), list(changes)) == (1, list(changes.steps))
    assert changes == Changes(changes.steps)
