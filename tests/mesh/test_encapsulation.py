"""Spec section 5: which packets between nodes of one location travel inside IPIP."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface

import pytest

from kilo.mesh.host import HostAddress, HostFacts
from kilo.mesh.model import Encapsulation, Granularity, Node, Settings
from kilo.mesh.view import Compatibility, RenderOptions
from tests.mesh.fleets import make_host, make_node, make_peer, nets, render_node, say

NEAR = make_node("b", location="east", internal="192.168.1.2/24", pods="10.2.2.0/24")
FAR = make_node("c", location="east", internal="192.168.7.3/24", pods="10.2.3.0/24")
LEADER = make_node(
    "a", location="east", internal="192.168.1.1/24", pods="10.2.1.0/24 fd00:2:1::/64"
)
ELSEWHERE = make_node("z", location="west", internal="192.168.2.1/24")
MESH = [LEADER, NEAR, FAR, ELSEWHERE]
TO_ELSEWHERE = "route 192.168.2.1/32 via 10.4.0.2 dev kilo0 src 192.168.1.1 onlink"


def _set(encapsulation: Encapsulation) -> Settings:
    return Settings(encapsulation=encapsulation)


@pytest.mark.parametrize(
    ("encapsulation", "routes", "rules"),
    [
        pytest.param(
            Encapsulation.NEVER,
            [
                "route 10.2.2.0/24 via 192.168.1.2 dev eth0 onlink",
                "route 10.2.3.0/24 via 192.168.7.3 dev eth0 onlink",
                TO_ELSEWHERE,
            ],
            [],
            id="never",
        ),
        pytest.param(
            Encapsulation.CROSSSUBNET,
            [
                "route 10.2.2.0/24 via 192.168.1.2 dev eth0 onlink",
                "route 10.2.3.0/24 via 192.168.7.3 dev tunl0 onlink",
                TO_ELSEWHERE,
                "route 192.168.7.3/32 via 192.168.7.3 dev tunl0 onlink table 1107",
            ],
            [
                "rule from 10.2.1.0/24 to 192.168.7.3/32 lookup 1107",
                "rule to 192.168.7.3/32 iif kilo0 lookup 1107",
            ],
            id="crosssubnet: only what lies outside the subnet of the internal IP",
        ),
        pytest.param(
            Encapsulation.ALWAYS,
            [
                "route 10.2.2.0/24 via 192.168.1.2 dev tunl0 onlink",
                "route 10.2.3.0/24 via 192.168.7.3 dev tunl0 onlink",
                "route 192.168.1.2/32 via 192.168.1.2 dev tunl0 onlink table 1107",
                TO_ELSEWHERE,
                "route 192.168.7.3/32 via 192.168.7.3 dev tunl0 onlink table 1107",
            ],
            [
                "rule from 10.2.1.0/24 to 192.168.1.2/32 lookup 1107",
                "rule from 10.2.1.0/24 to 192.168.7.3/32 lookup 1107",
                "rule to 192.168.1.2/32 iif kilo0 lookup 1107",
                "rule to 192.168.7.3/32 iif kilo0 lookup 1107",
            ],
            id="always: every neighbour; a tunnel between segments never",
        ),
    ],
)
def test_a_leader_encapsulates(
    encapsulation: Encapsulation, routes: list[str], rules: list[str]
) -> None:
    state = render_node("a", MESH, settings=_set(encapsulation))
    assert (say(state.routes), say(state.rules)) == (routes, rules)


def test_another_node_encapsulates_what_it_sends_to_its_leader_and_has_no_rule_for_kilo0() -> None:
    state = render_node(
        "c", MESH, [make_peer("p", "10.5.0.1/32")], settings=_set(Encapsulation.CROSSSUBNET)
    )
    assert say(state.routes) == [
        "route 10.2.1.0/24 via 192.168.1.1 dev tunl0 onlink",
        "route 10.2.2.0/24 via 192.168.1.2 dev tunl0 onlink",
        "route 10.4.0.1/32 via 192.168.1.1 dev tunl0 onlink",
        "route 10.4.0.2/32 via 192.168.1.1 dev tunl0 onlink",
        "route 10.5.0.1/32 via 192.168.1.1 dev tunl0 onlink",
        "route 192.168.1.1/32 via 192.168.1.1 dev tunl0 onlink table 1107",
        "route 192.168.1.2/32 via 192.168.1.2 dev tunl0 onlink table 1107",
        "route 192.168.2.1/32 via 192.168.1.1 dev tunl0 onlink",
    ]
    assert say(state.rules) == [
        "rule from 10.2.3.0/24 to 192.168.1.1/32 lookup 1107",
        "rule from 10.2.3.0/24 to 192.168.1.2/32 lookup 1107",
    ]


def test_without_local_there_is_neither_table_1107_nor_a_rule() -> None:
    options = RenderOptions(local=False)
    for name in "ac":
        state = render_node(name, MESH, settings=_set(Encapsulation.ALWAYS), options=options)
        assert {route.table for route in state.routes} == {254}
        assert not state.rules


def test_a_node_without_pods_has_no_rule_for_them() -> None:
    nodes = [make_node("a", internal="192.168.1.1/24"), make_node("b", internal="192.168.1.2/24")]
    leader, other = (
        render_node(name, nodes, settings=_set(Encapsulation.ALWAYS)).rules for name in "ab"
    )
    assert say(leader) == ["rule to 192.168.1.2/32 iif kilo0 lookup 1107"]
    assert say(other) == []


def test_each_pod_subnet_of_the_family_has_its_rule() -> None:
    nodes = [
        make_node("a", internal="192.168.1.1/24"),
        make_node("b", internal="192.168.1.2/24", pods="10.2.1.0/24 10.2.2.0/24 fd00:2::/64"),
    ]
    assert say(render_node("b", nodes, settings=_set(Encapsulation.ALWAYS)).rules) == [
        "rule from 10.2.1.0/24 to 192.168.1.1/32 lookup 1107",
        "rule from 10.2.2.0/24 to 192.168.1.1/32 lookup 1107",
    ]


def test_ipip_carries_ipv4_only_so_ipv6_goes_as_it_is() -> None:
    nodes = [
        make_node("a", internal="fd00:1::1/64", pods="fd00:2:1::/64"),
        make_node("b", internal="fd00:1:9::2/64", pods="fd00:2:2::/64"),
    ]
    state = render_node("a", nodes, settings=_set(Encapsulation.ALWAYS))
    assert say(state.routes) == ["route fd00:2:2::/64 via fd00:1:9::2 dev eth0 onlink"]
    assert not state.rules


def test_with_cross_the_location_is_encapsulated_and_the_tunnels_are_not() -> None:
    settings = Settings(encapsulation=Encapsulation.ALWAYS, granularity=Granularity.CROSS)
    state = render_node("b", MESH, settings=settings)
    links = {str(route.destination): route.link for route in state.routes if route.table == 254}
    assert links == {
        "10.2.1.0/24": "tunl0",
        "10.2.3.0/24": "tunl0",
        "10.4.0.1/32": "tunl0",
        "10.4.0.3/32": "tunl0",
        "192.168.2.1/32": "kilo0",
    }
    assert {rule.destination for rule in state.rules} == set(nets("192.168.1.1/32 192.168.7.3/32"))


def test_two_hosts_with_one_address_do_not_encapsulate_to_themselves() -> None:
    nodes = [
        make_node(name, internal="192.168.1.1/24", pods=f"10.2.{i}.0/24")
        for i, name in enumerate("ab")
    ]
    state = render_node("a", nodes, settings=_set(Encapsulation.ALWAYS))
    assert (state.routes, state.rules) == (frozenset(), frozenset())


# The link, and who may send by it.


def test_a_node_that_encapsulates_has_a_tunnel_and_takes_ipip_from_its_location_only() -> None:
    state = render_node("a", MESH, settings=_set(Encapsulation.CROSSSUBNET))
    assert say(state.tunnels) == ["tunnel tunl0 mtu 1480 up address 10.2.1.1/32"]
    assert state.firewall is not None
    assert state.firewall.tunnel_sources == set(
        nets("192.168.1.1/32 192.168.1.2/32 192.168.7.3/32")
    )


def test_without_ipv4_pods_the_tunnel_has_no_address() -> None:
    nodes = [make_node("a", internal="192.168.1.1/24"), make_node("b", internal="192.168.1.2/24")]
    state = render_node("a", nodes, settings=_set(Encapsulation.ALWAYS))
    assert say(state.tunnels) == ["tunnel tunl0 mtu 1480 up"]


@pytest.mark.parametrize(
    ("name", "encapsulation"),
    [
        pytest.param("a", Encapsulation.NEVER, id="never"),
        pytest.param("z", Encapsulation.ALWAYS, id="alone in its location"),
    ],
)
def test_where_nothing_is_encapsulated_there_is_no_tunnel_and_no_guard(
    name: str, encapsulation: Encapsulation
) -> None:
    state = render_node(name, MESH, settings=_set(encapsulation))
    assert not state.tunnels
    assert state.firewall is None or not state.firewall.tunnel_sources


def test_a_tunnel_that_somebody_else_uses_is_used_and_neither_changed_nor_guarded() -> None:
    host = replace(make_host(LEADER), busy_tunnels=frozenset({"tunl0"}))
    state = render_node("a", MESH, settings=_set(Encapsulation.ALWAYS), host=host)
    assert not state.tunnels
    assert state.firewall is not None
    assert not state.firewall.tunnel_sources
    assert "route 10.2.2.0/24 via 192.168.1.2 dev tunl0 onlink" in say(state.routes)


# Beside another network.


def _beside(compatibility: Compatibility, **links: int) -> tuple[RenderOptions, HostFacts]:
    host = make_host(FAR)
    if compatibility is Compatibility.CILIUM:
        inside = HostAddress(link="cilium_host", interface=ip_interface("10.2.3.77/32"))
        host = replace(host, addresses=(*host.addresses, inside))
    return (
        RenderOptions(local=False, compatibility=compatibility),
        replace(host, mtus={**host.mtus, **links}),
    )


def test_beside_flannel_packets_go_over_its_link_to_the_leaders_pod_network() -> None:
    options, host = _beside(Compatibility.FLANNEL, **{"flannel.1": 1450})
    state = render_node("c", MESH, settings=_set(Encapsulation.ALWAYS), options=options, host=host)
    assert say(state.routes) == [
        "route 10.4.0.1/32 via 10.2.1.0 dev flannel.1 onlink",
        "route 10.4.0.2/32 via 10.2.1.0 dev flannel.1 onlink",
        "route 192.168.2.1/32 via 10.2.1.0 dev flannel.1 onlink",
    ]
    assert not state.tunnels
    assert state.firewall is None


def test_while_flannel_has_no_link_there_are_no_routes_over_it() -> None:
    options, host = _beside(Compatibility.FLANNEL)
    state = render_node("c", MESH, settings=_set(Encapsulation.ALWAYS), options=options, host=host)
    assert not state.routes


def test_while_flannels_link_is_down_there_are_none_either_for_no_kernel_would_take_them() -> None:
    options, host = _beside(Compatibility.FLANNEL, **{"flannel.1": 1450})
    host = replace(host, down_links=frozenset({"flannel.1"}))
    state = render_node("c", MESH, settings=_set(Encapsulation.ALWAYS), options=options, host=host)
    assert not state.routes


def _let_cilium_find_the_leader() -> list[Node]:
    assert LEADER.report is not None
    found = replace(LEADER.report, cni_compatibility_ip=ip_interface("10.2.1.77/32"))
    return [replace(LEADER, report=found), NEAR, FAR, ELSEWHERE]


@pytest.mark.parametrize(
    ("links", "tunnel", "mtu"),
    [
        pytest.param({"cilium_tunl": 1480}, "cilium_tunl", 1480, id="the kernel's, renamed"),
        pytest.param({}, "tunl0", 1480, id="ours, where Cilium has renamed none"),
        pytest.param({"cilium_vxlan": 1500}, "tunl0", 1430, id="in an overlay"),
    ],
)
def test_beside_cilium_packets_go_to_where_it_finds_the_leader(
    links: dict[str, int], tunnel: str, mtu: int
) -> None:
    options, host = _beside(Compatibility.CILIUM, **links)
    # Cilium leaves a link that it has renamed down.
    host = replace(host, down_links=frozenset({"cilium_tunl"}))
    mesh = _let_cilium_find_the_leader()
    state = render_node("c", mesh, settings=_set(Encapsulation.ALWAYS), options=options, host=host)
    assert say(state.routes) == [
        f"route 10.4.0.1/32 via 10.2.1.77 dev {tunnel} onlink",
        f"route 10.4.0.2/32 via 10.2.1.77 dev {tunnel} onlink",
        f"route 192.168.2.1/32 via 10.2.1.77 dev {tunnel} onlink",
    ]
    assert say(state.tunnels) == [f"tunnel {tunnel} mtu {mtu} up address 10.2.3.77/32"]
    assert state.firewall is not None
    own_location = nets("192.168.1.1/32 192.168.1.2/32 192.168.7.3/32 10.2.1.77/32")
    assert state.firewall.tunnel_sources == set(own_location)


def test_a_tunnel_of_ciliums_that_somebody_uses_is_used_and_not_changed() -> None:
    options, host = _beside(Compatibility.CILIUM, cilium_tunl=1480)
    host = replace(host, busy_tunnels=frozenset({"cilium_tunl"}))
    mesh = _let_cilium_find_the_leader()
    state = render_node("c", mesh, settings=_set(Encapsulation.ALWAYS), options=options, host=host)
    assert {route.link for route in state.routes} == {"cilium_tunl"}
    assert not state.tunnels


def test_a_host_that_cilium_does_not_find_sends_nothing_through_it() -> None:
    options, host = _beside(Compatibility.CILIUM)
    host = make_host(FAR)
    mesh = _let_cilium_find_the_leader()
    state = render_node("c", mesh, settings=_set(Encapsulation.ALWAYS), options=options, host=host)
    assert not state.routes


def test_beside_cilium_a_leader_whose_address_there_is_not_known_yet_is_no_gateway() -> None:
    options, host = _beside(Compatibility.CILIUM)
    state = render_node("c", MESH, settings=_set(Encapsulation.ALWAYS), options=options, host=host)
    assert not state.routes
