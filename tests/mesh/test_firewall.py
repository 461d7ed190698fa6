"""Spec section 5: what is masqueraded and what is forwarded."""

from __future__ import annotations

import pytest

from kilo.mesh.collapse import collapse
from kilo.mesh.model import Encapsulation, Granularity, Settings
from kilo.mesh.state import Firewall
from kilo.mesh.view import RenderOptions
from tests.mesh.fleets import make_node, make_peer, nets, render_node

MESH = [
    make_node(
        "a",
        location="east",
        internal="192.168.1.1/24",
        pods="10.2.1.0/24",
        location_ips="192.168.8.8/32",
    ),
    make_node("b", location="east", internal="192.168.1.2/24", pods="10.2.2.0/24 fd00:2:2::/64"),
    make_node(
        "c",
        location="west",
        internal="192.168.2.1/24",
        pods="10.2.4.0/24",
        location_ips="192.168.9.9/32",
    ),
]
PEER = make_peer("p", "10.5.0.1/32")
SETTINGS = Settings(service_cidrs=nets("10.43.0.0/16"))
KNOWN = (
    "known 10.2.1.0/24,10.2.2.0/24,10.2.4.0/24,10.4.0.1/32,10.4.0.2/32,10.5.0.1/32,10.43.0.0/16,"
    "192.168.1.1/32,192.168.1.2/32,192.168.2.1/32"
)
CNI = RenderOptions(cni=True)
FORWARD = RenderOptions(forward_rules=True)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        pytest.param(
            "a",
            RenderOptions(),
            f"firewall {KNOWN},192.168.9.9/32,fd00:2:2::/64"
            " masquerade-destinations 192.168.8.8/32 masquerade-sources 10.5.0.1/32"
            " clamp-links kilo0",
            id="peers, and to the own location's allowed location IPs",
        ),
        pytest.param(
            "b",
            RenderOptions(),
            f"firewall {KNOWN},192.168.9.9/32,fd00:2:2::/64"
            " masquerade-destinations 192.168.8.8/32 masquerade-sources 10.5.0.1/32",
            id="on every node of the location alike",
        ),
        pytest.param(
            "c",
            RenderOptions(),
            f"firewall {KNOWN},192.168.8.8/32,fd00:2:2::/64"
            " masquerade-destinations 192.168.9.9/32 masquerade-sources 10.5.0.1/32"
            " clamp-links kilo0",
            id="another location's are known, its own are not",
        ),
        pytest.param(
            "b",
            CNI,
            f"firewall {KNOWN},192.168.9.9/32,fd00:2:2::/64 masquerade-destinations 192.168.8.8/32"
            " masquerade-sources 10.2.2.0/24,10.5.0.1/32,fd00:2:2::/64",
            id="with --cni the own pods of both families too",
        ),
        pytest.param(
            "a",
            FORWARD,
            f"firewall {KNOWN},192.168.9.9/32,fd00:2:2::/64"
            " masquerade-destinations 192.168.8.8/32 masquerade-sources 10.5.0.1/32"
            " forward 10.2.1.0/24,10.2.2.0/24,192.168.1.1/32,192.168.1.2/32,192.168.8.8/32,"
            "fd00:2:2::/64 clamp-links kilo0",
            id="a leader forwards for its segment, but not its WireGuard IP",
        ),
        pytest.param(
            "b",
            FORWARD,
            f"firewall {KNOWN},192.168.9.9/32,fd00:2:2::/64"
            " masquerade-destinations 192.168.8.8/32 masquerade-sources 10.5.0.1/32"
            " forward 10.2.2.0/24,fd00:2:2::/64",
            id="another forwards for its own pods",
        ),
    ],
)
def test_the_firewall_is(name: str, options: RenderOptions, expected: str) -> None:
    state = render_node(name, MESH, [PEER], settings=SETTINGS, options=options)
    assert str(state.firewall) == expected


def test_with_cross_a_neighbours_printer_is_the_own_locations_as_with_location() -> None:
    settings = Settings(granularity=Granularity.CROSS)
    firewall = render_node("b", MESH, settings=settings).firewall
    assert firewall is not None
    assert firewall.masquerade_destinations == frozenset(nets("192.168.8.8/32"))
    assert nets("192.168.8.8/32")[0] not in firewall.known


def test_where_nothing_is_masqueraded_or_forwarded_there_is_no_firewall() -> None:
    nodes = [make_node("a", internal="192.168.1.1/24", pods="10.2.1.0/24")]
    assert render_node("a", nodes, settings=SETTINGS).firewall is None
    assert render_node("a", nodes, options=CNI).firewall is not None


def test_where_nothing_is_masqueraded_nodes_come_and_go_without_a_change_of_the_firewall() -> None:
    nodes = [make_node("a", internal="192.168.1.1/24", pods="10.2.1.0/24")]
    nodes += [make_node(n, location=n, internal=f"192.168.{n}.1/24") for n in ("2", "3")]
    firewall = render_node("a", nodes).firewall
    assert str(firewall) == "firewall clamp-links kilo0"
    assert render_node("a", nodes[:2]).firewall == firewall


@pytest.mark.parametrize(
    ("name", "encapsulation", "links"),
    [
        pytest.param("a", "never", {"kilo0"}, id="a leader into the mesh"),
        pytest.param("b", "never", set(), id="others send to their leader as they are"),
        pytest.param("b", "always", {"tunl0"}, id="or in IPIP"),
        pytest.param("a", "always", {"kilo0", "tunl0"}, id="a leader both ways"),
        pytest.param("d", "always", set(), id="who forwards nothing clamps nothing"),
    ],
)
def test_connections_are_clamped_where_packets_are_wrapped_up(
    name: str, encapsulation: str, links: set[str]
) -> None:
    nodes = [*MESH, make_node("d", location="north", internal="192.168.4.1/24")]
    settings = Settings(encapsulation=Encapsulation(encapsulation))
    firewall = render_node(name, nodes, settings=settings).firewall
    assert (firewall.clamp_links if firewall else frozenset()) == links


def test_a_node_address_inside_a_wide_allowed_location_ip_stays_known() -> None:
    nodes = [
        make_node("a", location="1", internal="192.168.1.1/24", location_ips="192.168.0.0/16"),
        make_node("b", location="2", internal="192.168.2.1/24"),
    ]
    firewall = render_node("a", nodes).firewall
    assert firewall is not None
    assert set(nets("192.168.1.1/32 192.168.2.1/32")) <= firewall.known


def test_networks_are_collapsed_so_that_none_overlaps_another() -> None:
    given = nets("10.2.0.0/24 10.2.1.0/24 10.2.1.7/32 fd00::/64 fd00::1/128 10.2.0.0/24")
    assert collapse(given) == frozenset(nets("10.2.0.0/23 fd00::/64"))
    assert collapse(()) == frozenset()
    assert collapse(nets("10.2.0.0/24 10.2.2.0/24")) == frozenset(nets("10.2.0.0/24 10.2.2.0/24"))


def test_an_empty_firewall_is_one_word() -> None:
    assert str(Firewall()) == "firewall"
