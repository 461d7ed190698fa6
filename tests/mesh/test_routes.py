"""Spec section 5: the routes of leaders and others."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from kilo.mesh.model import Endpoint, Granularity, Node, Settings
from kilo.mesh.view import Observations, RenderOptions
from tests.builders import make_key
from tests.mesh.fleets import make_facts, make_node, make_peer, nets, render_node, say

EAST = [
    make_node("a", location="east", internal="192.168.1.1/24", pods="10.2.1.0/24"),
    make_node("b", location="east", internal="192.168.1.2/24", pods="10.2.2.0/24"),
]
WEST = [
    make_node(
        "c",
        location="west",
        endpoint="203.0.113.3:1234",
        internal="192.168.2.1/24",
        pods="10.2.3.0/24",
        location_ips="192.168.9.9/32",
    ),
    make_node("d", location="west", internal="192.168.2.2/24", pods="10.2.4.0/24"),
]
MESH = [*EAST, *WEST]
PEER = make_peer("p", "10.5.0.1/32 10.5.0.2/32")
DUAL = Settings(subnets=nets("10.4.0.0/16 fd00:4::/64"))

LEADER_ROUTES = [
    "route 10.2.2.0/24 via 192.168.1.2 dev eth0 onlink",
    "route 10.2.3.0/24 via 10.4.0.2 dev kilo0 src 192.168.1.1 onlink",
    "route 10.2.4.0/24 via 10.4.0.2 dev kilo0 src 192.168.1.1 onlink",
    "route 10.5.0.1/32 dev kilo0",
    "route 10.5.0.2/32 dev kilo0",
    "route 192.168.2.1/32 via 10.4.0.2 dev kilo0 src 192.168.1.1 onlink",
    "route 192.168.2.2/32 via 10.4.0.2 dev kilo0 src 192.168.1.1 onlink",
    "route 192.168.9.9/32 via 10.4.0.2 dev kilo0 src 192.168.1.1 onlink",
]
OTHER_ROUTES = [
    "route 10.2.1.0/24 via 192.168.1.1 dev eth0 onlink",
    "route 10.2.3.0/24 via 192.168.1.1 dev eth0 onlink",
    "route 10.2.4.0/24 via 192.168.1.1 dev eth0 onlink",
    "route 10.4.0.1/32 via 192.168.1.1 dev eth0 onlink",
    "route 10.4.0.2/32 via 192.168.1.1 dev eth0 onlink",
    "route 10.5.0.1/32 via 192.168.1.1 dev eth0 onlink",
    "route 10.5.0.2/32 via 192.168.1.1 dev eth0 onlink",
    "route 192.168.2.1/32 via 192.168.1.1 dev eth0 onlink",
    "route 192.168.2.2/32 via 192.168.1.1 dev eth0 onlink",
    "route 192.168.9.9/32 via 192.168.1.1 dev eth0 onlink",
]
NOT_LOCAL = RenderOptions(local=False)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        pytest.param("a", RenderOptions(), LEADER_ROUTES, id="a leader's"),
        pytest.param("b", RenderOptions(), OTHER_ROUTES, id="another's"),
        pytest.param("a", NOT_LOCAL, LEADER_ROUTES[1:], id="a leader's without --local"),
        pytest.param("b", NOT_LOCAL, OTHER_ROUTES[1:], id="another's without --local"),
    ],
)
def test_routes_are(name: str, options: RenderOptions, expected: list[str]) -> None:
    assert say(render_node(name, MESH, [PEER], options=options).routes) == expected


def _home(endpoint: str, keepalive: int = 0) -> list[Node]:
    home = make_node(
        "n", location="home", endpoint=endpoint, internal="192.168.5.1/24", keepalive=keepalive
    )
    return [EAST[0], home]


HOME_ROUTE = "route 192.168.5.1/32 via 10.4.0.2 dev kilo0 src 192.168.1.1 onlink"


@pytest.mark.parametrize(
    ("nodes", "observations", "expected"),
    [
        pytest.param(_home("203.0.113.1:1"), Observations(), [HOME_ROUTE], id="it is elsewhere"),
        pytest.param(_home("192.168.5.1:1"), Observations(), [], id="the internal IP itself"),
        pytest.param(
            _home("home.example:1"),
            Observations(resolved={"home.example": ip_address("192.168.5.1")}),
            [],
            id="a name that resolves to it",
        ),
        pytest.param(
            _home("192.168.5.1:1", keepalive=25),
            Observations(endpoints={make_key("n"): Endpoint.parse("203.0.113.50:1")}),
            [HOME_ROUTE],
            id="behind NAT, and seen elsewhere: what the node says is no endpoint",
        ),
        pytest.param(
            _home("203.0.113.1:1", keepalive=25),
            Observations(endpoints={make_key("n"): Endpoint.parse("192.168.5.1:1")}),
            [],
            id="behind NAT, but seen at its internal IP",
        ),
        pytest.param(
            _home("203.0.113.1:1"),
            Observations(endpoints={make_key("n"): Endpoint.parse("192.168.5.1:1")}),
            [],
            id="the device has roamed there by itself",
        ),
        pytest.param(
            _home("203.0.113.1:1"),
            Observations(lost_endpoints={make_key("n"): Endpoint.parse("192.168.5.1:1")}),
            [],
            id="and idles there",
        ),
    ],
)
def test_no_route_leads_a_tunnels_endpoint_into_the_tunnel(
    nodes: list[Node], observations: Observations, expected: list[str]
) -> None:
    state = render_node("a", nodes, observations=observations)
    assert say(state.routes) == expected
    (peer,) = state.peers
    assert nets("192.168.5.1/32")[0] in peer.allowed_ips


def test_the_preferred_source_is_left_to_the_kernel_where_the_host_does_not_bear_it() -> None:
    state = render_node("a", _home("203.0.113.1:1"), host=make_facts(eth0="198.51.100.1/24"))
    assert say(state.routes) == ["route 192.168.5.1/32 via 10.4.0.2 dev kilo0 onlink"]


def test_the_preferred_source_is_left_to_the_kernel_where_another_node_owns_it() -> None:
    twins = [
        make_node("a", location="1", internal="192.168.1.1/24"),
        make_node("b", location="2", internal="192.168.1.1/24", pods="10.2.2.0/24"),
    ]
    assert say(render_node("b", twins).routes) == [
        "route 192.168.1.1/32 via 10.4.0.1 dev kilo0 onlink"
    ]
    assert say(render_node("a", twins).routes) == [
        "route 10.2.2.0/24 via 10.4.0.2 dev kilo0 src 192.168.1.1 onlink"
    ]


def test_two_hosts_of_one_location_with_one_address_are_no_gateways_for_each_other() -> None:
    twins = [
        make_node("a", internal="192.168.1.1/24", pods="10.2.1.0/24"),
        make_node("b", internal="192.168.1.1/24", pods="10.2.2.0/24"),
        make_node("c", internal="192.168.1.3/24", pods="10.2.3.0/24"),
    ]
    assert say(render_node("b", twins).routes) == [
        "route 10.2.3.0/24 via 192.168.1.3 dev eth0 onlink"
    ]


def test_both_families_are_routed_each_by_its_own_addresses() -> None:
    nodes = [
        make_node(
            "a",
            location="east",
            internal="192.168.1.1/24 fd00:1::1/64",
            pods="10.2.1.0/24 fd00:2:1::/64",
        ),
        make_node("b", location="east", internal="192.168.1.2/24", pods="fd00:2:2::/64"),
        make_node(
            "c",
            location="west",
            internal="192.168.2.1/24 fd00:1:2::1/64",
            pods="10.2.3.0/24 fd00:2:3::/64",
        ),
    ]
    assert say(render_node("a", nodes, settings=DUAL).routes) == [
        "route 10.2.3.0/24 via 10.4.0.2 dev kilo0 src 192.168.1.1 onlink",
        "route 192.168.2.1/32 via 10.4.0.2 dev kilo0 src 192.168.1.1 onlink",
        "route fd00:1:2::1/128 via fd00:4::2 dev kilo0 src fd00:1::1 onlink",
        "route fd00:2:3::/64 via fd00:4::2 dev kilo0 src fd00:1::1 onlink",
    ]


def test_a_family_without_kilo_subnet_goes_into_the_tunnel_without_gateway() -> None:
    nodes = [
        make_node("a", location="east", internal="192.168.1.1/24 fd00:1::1/64"),
        make_node("c", location="west", pods="fd00:2:3::/64"),
    ]
    assert say(render_node("a", nodes, [make_peer("p", "fd00:5::1/128")]).routes) == [
        "route fd00:2:3::/64 dev kilo0 src fd00:1::1",
        "route fd00:5::1/128 dev kilo0 src fd00:1::1",
    ]


def test_a_node_without_internal_ip_tunnels_to_its_own_location_and_sets_no_source() -> None:
    nodes = [*EAST, make_node("n", location="east", pods="10.2.9.0/24")]
    assert say(render_node("n", nodes).routes) == [
        "route 10.2.1.0/24 via 10.4.0.1 dev kilo0 onlink",
        "route 10.2.2.0/24 via 10.4.0.1 dev kilo0 onlink",
        "route 192.168.1.1/32 via 10.4.0.1 dev kilo0 onlink",
        "route 192.168.1.2/32 via 10.4.0.1 dev kilo0 onlink",
    ]


def test_with_full_neighbours_are_reached_through_tunnels_too() -> None:
    state = render_node("a", EAST, settings=Settings(granularity=Granularity.FULL))
    assert say(state.routes) == [
        "route 10.2.2.0/24 via 10.4.0.2 dev kilo0 src 192.168.1.1 onlink",
        "route 192.168.1.2/32 via 10.4.0.2 dev kilo0 src 192.168.1.1 onlink",
    ]
    assert len(state.peers) == 1


def test_with_cross_only_other_locations_are_reached_through_tunnels() -> None:
    state = render_node("b", MESH, [PEER], settings=Settings(granularity=Granularity.CROSS))
    assert {peer.public_key for peer in state.peers} == set(map(make_key, "cdp"))
    assert say(state.routes) == [
        "route 10.2.1.0/24 via 192.168.1.1 dev eth0 onlink",
        "route 10.2.3.0/24 via 10.4.0.3 dev kilo0 src 192.168.1.2 onlink",
        "route 10.2.4.0/24 via 10.4.0.4 dev kilo0 src 192.168.1.2 onlink",
        "route 10.4.0.1/32 via 192.168.1.1 dev eth0 onlink",
        "route 10.5.0.1/32 dev kilo0",
        "route 10.5.0.2/32 dev kilo0",
        "route 192.168.2.1/32 via 10.4.0.3 dev kilo0 src 192.168.1.2 onlink",
        "route 192.168.2.2/32 via 10.4.0.4 dev kilo0 src 192.168.1.2 onlink",
        "route 192.168.9.9/32 via 10.4.0.3 dev kilo0 src 192.168.1.2 onlink",
    ]


def test_a_refused_pod_subnet_is_not_routed() -> None:
    nodes = [
        make_node("a", internal="192.168.1.1/24"),
        make_node("b", internal="192.168.1.2/24", pods="10.2.7.0/24"),
        make_node("c", internal="192.168.1.3/24", pods="10.2.7.0/24"),
    ]
    assert say(render_node("a", nodes).routes) == [
        "route 10.2.7.0/24 via 192.168.1.2 dev eth0 onlink"
    ]


def test_a_pod_subnet_claimed_twice_in_a_location_stays_with_its_owner() -> None:
    nodes = [
        make_node("a", internal="192.168.1.1/24", pods="10.2.7.0/24"),
        make_node("b", internal="192.168.1.2/24", pods="10.2.7.0/24"),
    ]
    assert say(render_node("a", nodes).routes) == []
    assert "route 10.2.7.0/24 via 192.168.1.1 dev eth0 onlink" in say(
        render_node("b", nodes).routes
    )


def test_a_pod_subnet_claimed_twice_with_cross_stays_with_its_owner() -> None:
    nodes = [
        make_node("a", internal="192.168.1.1/24", pods="10.2.7.0/24"),
        make_node("b", internal="192.168.1.2/24", pods="10.2.7.0/24"),
    ]
    state = render_node("a", nodes, settings=Settings(granularity=Granularity.CROSS))
    assert say(state.routes) == ["route 10.4.0.2/32 via 192.168.1.2 dev eth0 onlink"]


def test_no_route_leads_a_peers_endpoint_into_its_own_tunnel() -> None:
    peer = make_peer("p", "10.5.0.0/24 203.0.113.9/32", endpoint="203.0.113.9:7")
    assert say(render_node("a", EAST[:1], [peer]).routes) == ["route 10.5.0.0/24 dev kilo0"]


def test_a_node_without_internal_ip_speaks_with_an_address_of_its_own_pods() -> None:
    """Its WireGuard address moves when the segments are numbered anew, this one does not."""
    alone = make_node("a", pods="10.2.1.0/24 fd00:2:1::/64")
    other = make_node(
        "b", location="west", internal="192.168.2.1/24", pods="10.2.2.0/24 fd00:2:2::/64"
    )
    host = make_facts(eth0="198.51.100.1/24", pods="10.2.1.1/24 fd00:2:1::1/64")
    assert say(render_node("a", [alone, other], host=host).routes) == [
        "route 10.2.2.0/24 via 10.4.0.1 dev kilo0 src 10.2.1.1 onlink",
        "route 192.168.2.1/32 via 10.4.0.1 dev kilo0 src 10.2.1.1 onlink",
        "route fd00:2:2::/64 dev kilo0 src fd00:2:1::1",
    ]
