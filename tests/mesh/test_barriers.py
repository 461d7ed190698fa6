"""Which networks nobody is sent to in clear, whatever routes are missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_interface, ip_network

from kilo.mesh.barriers import list_barriers
from kilo.mesh.diff import diff
from kilo.mesh.host import HostFacts
from kilo.mesh.model import Node, NodeSpec, Settings
from kilo.mesh.state import Barrier, DataplaneState, Link, Route
from kilo.mesh.topology import build_topology
from kilo.mesh.view import Compatibility, Observations, RenderOptions, View
from tests.mesh.fleets import make_host, make_node, nets

OWN = make_node("a", location="east", internal="192.168.1.1/24", pods="10.2.1.0/24 fd00:2:1::/64")
NEAR = make_node("b", location="east", internal="192.168.1.2/24", pods="10.2.2.0/24")
FAR = make_node("c", location="west", internal="192.168.2.3/24", pods="10.2.3.0/24 fd00:2:3::/64")
KILO = "10.4.0.0/16"


def list_for_own(
    others: Iterable[Node] = (),
    *,
    absent: Iterable[Node] = (),
    options: RenderOptions | None = None,
    host: HostFacts | None = None,
) -> set[str]:
    """The barriers on node ``a`` beside nodes that are ready and others that are not."""
    members = [OWN, *others]
    view = View.of_node(
        "a",
        build_topology(members, (), Settings()),
        host=host or make_host(OWN),
        options=options or RenderOptions(),
        observations=Observations(),
    )
    return {str(barrier.destination) for barrier in list_barriers(view, [*members, *absent])}


def test_pods_of_all_other_nodes_and_the_meshs_own_addresses_are_behind_barriers() -> None:
    assert list_for_own() == {KILO}
    assert list_for_own([NEAR, FAR]) == {KILO, "10.2.2.0/24", "10.2.3.0/24", "fd00:2:3::/64"}


def test_a_node_that_has_fallen_silent_keeps_its_barrier() -> None:
    assert list_for_own(absent=[NEAR, FAR]) == list_for_own([NEAR, FAR])


def test_pods_elsewhere_keep_it_while_their_node_has_no_agent_and_pods_nearby_do_not() -> None:
    without_agent = [replace(node, report=None) for node in (NEAR, FAR)]
    assert list_for_own(absent=without_agent) == {KILO, "10.2.3.0/24", "fd00:2:3::/64"}
    options = RenderOptions(cni=True)
    everybodys = list_for_own([NEAR, FAR])
    assert list_for_own(absent=without_agent, options=options) == everybodys


def test_where_another_network_connects_a_location_its_pods_are_left_to_that() -> None:
    options = RenderOptions(local=False)
    expected = {KILO, "10.2.3.0/24", "fd00:2:3::/64"}
    assert list_for_own([NEAR, FAR], options=options) == expected


def test_beside_cilium_the_leader_is_found_through_its_network_or_not_at_all() -> None:
    options = RenderOptions(local=False, compatibility=Compatibility.CILIUM)
    assert NEAR.report is not None
    for address, expected in (("10.2.2.77/32", {"10.2.2.0/24"}), ("10.9.0.1/32", set())):
        report = replace(NEAR.report, cni_compatibility_ip=ip_interface(address))
        found = list_for_own([replace(NEAR, report=report)], options=options)
        assert found == {KILO} | expected


def test_a_network_that_a_host_lives_in_is_never_cut_off() -> None:
    for wide in ("192.168.0.0/16", "198.51.100.0/24", "128.0.0.0/1"):
        spec = NodeSpec(location="west", pod_subnets=nets(wide))
        assert list_for_own([NEAR], absent=[Node(name="d", spec=spec)]) == {KILO, "10.2.2.0/24"}


def test_what_our_own_links_bear_does_not_count_as_a_host() -> None:
    facts = make_host(OWN)
    borne = make_host(make_node("x", internal="10.4.0.1/16")).addresses[0]
    host = replace(facts, addresses=(*facts.addresses, replace(borne, link="kilo0")))
    assert list_for_own(host=host) == {KILO}


def test_a_host_without_ipv6_has_barriers_of_ipv4_only() -> None:
    host = replace(make_host(OWN), families=frozenset({4}))
    assert list_for_own([FAR], host=host) == {KILO, "10.2.3.0/24"}


def test_barriers_are_there_before_anything_else_and_go_last() -> None:
    network = ip_network("10.2.3.0/24")
    state = DataplaneState(
        links=frozenset({Link(name="kilo0", mtu=1420, up=True)}),
        routes=frozenset({Route(destination=network, link="kilo0")}),
        barriers=frozenset({Barrier(destination=network)}),
    )
    coming = list(diff(DataplaneState(), state))
    going = list(diff(state, DataplaneState()))
    assert isinstance(coming[0].resource, Barrier)
    assert isinstance(going[-1].resource, Barrier)
