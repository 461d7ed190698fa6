"""Spec section 4, points 1 to 4: segments, leaders, numbers, allowed IPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from kilo.errors import MeshError
from kilo.mesh.model import Endpoint, Granularity, Node, NodeSpec, Settings
from kilo.mesh.topology import (
    build_topology,
    find_leader,
    is_public,
    required_key,
)
from tests.builders import make_key
from tests.mesh.fleets import describe_segment, interfaces, make_node, nets

FLEET = (
    make_node("a", location="east", internal="192.168.1.1/24"),
    make_node("b", location="east", internal="192.168.1.2/24"),
    make_node("c", location="west", internal="192.168.2.1/24"),
    make_node("d", internal="192.168.3.1/24"),
    make_node("e", location="east"),
)


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        pytest.param(
            Granularity.LOCATION,
            [
                "location: [d*] 10.4.0.1/16",
                "location:east [a* b] 10.4.0.2/16",
                "location:west [c*] 10.4.0.3/16",
                "node:e [e*] 10.4.0.4/16",
            ],
            id="location: one a location, and one a node without internal IP",
        ),
        pytest.param(
            Granularity.FULL,
            [
                "node:a [a*] 10.4.0.1/16",
                "node:b [b*] 10.4.0.2/16",
                "node:c [c*] 10.4.0.3/16",
                "node:d [d*] 10.4.0.4/16",
                "node:e [e*] 10.4.0.5/16",
            ],
            id="full: one a node",
        ),
        pytest.param(
            Granularity.CROSS,
            [
                "node:a [a*] 10.4.0.1/16",
                "node:b [b*] 10.4.0.2/16",
                "node:c [c*] 10.4.0.3/16",
                "node:d [d*] 10.4.0.4/16",
                "node:e [e*] 10.4.0.5/16",
            ],
            id="cross: one a node",
        ),
    ],
)
def test_granularity_cuts_the_mesh_into_numbered_segments(
    granularity: Granularity, expected: list[str]
) -> None:
    topology = build_topology(FLEET, (), Settings(granularity=granularity))
    assert list(map(describe_segment, topology.segments)) == expected


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        (
            Granularity.LOCATION,
            ["location:", "location:east", "location:west", "node:e"],
        ),
        (Granularity.FULL, ["node:a", "node:b", "node:c", "node:d", "node:e"]),
        (
            Granularity.CROSS,
            ["location:east", "location:east", "location:west", "location:", "node:e"],
        ),
    ],
)
def test_only_cross_puts_several_segments_into_one_neighbourhood(
    granularity: Granularity, expected: list[str]
) -> None:
    topology = build_topology(FLEET, (), Settings(granularity=granularity))
    assert [segment.neighbourhood for segment in topology.segments] == expected


def test_segments_are_sorted_as_text_so_that_a_tenth_comes_before_a_second() -> None:
    nodes = [make_node(f"n{i}", location=str(i), internal=f"192.168.1.{i}/24") for i in (2, 10, 1)]
    topology = build_topology(nodes, (), Settings())
    assert [s.name for s in topology.segments] == ["location:1", "location:10", "location:2"]


def _lead(name: str, endpoint: str, *, leader: bool = False) -> Node:
    return make_node(name, endpoint=endpoint, leader=leader)


PUBLIC, PRIVATE = "203.0.113.7:51820", "192.168.1.1:51820"


@pytest.mark.parametrize(
    ("nodes", "leader"),
    [
        pytest.param([_lead("a", PRIVATE), _lead("b", PRIVATE)], "a", id="the first by name"),
        pytest.param(
            [_lead("a", PRIVATE), _lead("b", PUBLIC), _lead("c", PUBLIC)],
            "b",
            id="the first public one before the first",
        ),
        pytest.param(
            [_lead("a", PUBLIC), _lead("b", PRIVATE, leader=True)],
            "b",
            id="a volunteer without public endpoint before a public one",
        ),
        pytest.param(
            [
                _lead("a", PUBLIC),
                _lead("b", PRIVATE, leader=True),
                _lead("c", PUBLIC, leader=True),
            ],
            "c",
            id="a public volunteer before all",
        ),
        pytest.param(
            [_lead("a", PRIVATE, leader=True), _lead("b", PRIVATE, leader=True)],
            "a",
            id="the first of equal volunteers",
        ),
        pytest.param(
            [_lead("a", PUBLIC, leader=True), _lead("b", PUBLIC, leader=True)],
            "a",
            id="the first of equal public volunteers",
        ),
    ],
)
def test_the_leader_is(nodes: Sequence[Node], leader: str) -> None:
    assert find_leader(nodes).name == leader


@pytest.mark.parametrize(
    ("endpoint", "public"),
    [
        pytest.param("203.0.113.7:1", True, id="an ordinary IPv4 address"),
        pytest.param("100.64.0.1:1", True, id="carrier NAT's, as Kilo has it"),
        pytest.param("169.254.0.1:1", True, id="link-local IPv4, for only RFC 1918 is private"),
        pytest.param("10.255.255.255:1", False, id="10/8"),
        pytest.param("11.0.0.0:1", True, id="beyond 10/8"),
        pytest.param("172.15.255.255:1", True, id="before 172.16/12"),
        pytest.param("172.16.0.0:1", False, id="172.16/12 begins"),
        pytest.param("172.31.255.255:1", False, id="172.16/12 ends"),
        pytest.param("172.32.0.0:1", True, id="beyond 172.16/12"),
        pytest.param("192.168.255.255:1", False, id="192.168/16"),
        pytest.param("192.169.0.0:1", True, id="beyond 192.168/16"),
        pytest.param("[2001:db8::1]:1", True, id="an ordinary IPv6 address"),
        pytest.param("[fd00::1]:1", False, id="fd00::/16"),
        pytest.param("[fd01::1]:1", True, id="the rest of fd00::/8, as Kilo has it"),
        pytest.param("example.com:1", True, id="a name, whatever it resolves to"),
    ],
)
def test_an_endpoint_is_public_or_not(endpoint: str, public: bool) -> None:  # noqa: FBT001 - a column of the table
    assert is_public(Endpoint.parse(endpoint)) is public


def test_no_endpoint_is_not_public() -> None:
    assert not is_public(None)


def test_a_segment_owns_wireguard_ips_internal_ips_and_pod_subnets_of_all_its_nodes() -> None:
    nodes = [
        make_node("a", internal="192.168.1.1/24 fd00:1::1/64", pods="10.2.1.0/24 fd00:2:1::/64"),
        make_node("b", internal="192.168.1.2/24", pods="10.2.2.0/24 10.2.3.0/24"),
        make_node("c", location="x", internal="192.168.2.1/24"),
    ]
    subnets = nets("10.4.0.0/16 fd00:4::/64")
    segment, _ = build_topology(nodes, (), Settings(subnets=subnets)).segments
    assert segment.allowed_ips == nets(
        "10.4.0.1/32 fd00:4::1/128 192.168.1.1/32 fd00:1::1/128 10.2.1.0/24 fd00:2:1::/64"
        " 192.168.1.2/32 10.2.2.0/24 10.2.3.0/24"
    )


def test_location_ips_of_all_nodes_are_the_segments_each_once() -> None:
    nodes = [
        make_node("a", internal="192.168.1.1/24", location_ips="192.168.9.0/24 192.168.8.1/32"),
        make_node("b", internal="192.168.1.2/24", location_ips="192.168.8.1/32 192.168.7.0/24"),
    ]
    (segment,) = build_topology(nodes, (), Settings()).segments
    assert segment.allowed_location_ips == nets("192.168.9.0/24 192.168.8.1/32 192.168.7.0/24")


def test_more_segments_than_addresses_is_an_error_that_names_the_subnet() -> None:
    settings = Settings(subnets=nets("10.4.0.0/16 10.4.0.0/30"))
    nodes = [make_node(f"n{i}") for i in range(3)]
    with pytest.raises(MeshError) as caught:
        build_topology(nodes, (), settings)
    assert str(caught.value) == (
        "subnet 10.4.0.0/30 has 2 addresses for 3 segments: the network stays as it is"
    )


def test_what_an_operator_declares_wins_over_what_an_agent_reports() -> None:
    node = make_node("a", endpoint="198.51.100.1:1", internal="192.168.1.1/24")
    forced = Endpoint.parse("203.0.113.9:2")
    declared = replace(node, spec=NodeSpec(endpoint=forced, public_key=make_key("declared")))
    assert (declared.endpoint, declared.public_key) == (forced, make_key("declared"))
    named = replace(node, spec=NodeSpec(internal_ips=interfaces("192.168.9.9/24")))
    assert named.internal_ips == interfaces("192.168.9.9/24")


def test_of_a_node_with_a_declared_key_the_agent_s_addresses_do_not_count() -> None:
    """It may be the only one that can read its report."""
    node = make_node("a", endpoint="198.51.100.1:1", internal="192.168.1.1/24")
    assert replace(node, spec=NodeSpec(public_key=make_key("a"))).internal_ips == ()


def test_a_node_declared_to_have_no_internal_ip_is_a_segment_of_its_own() -> None:
    node = make_node("a", location="east", internal="192.168.1.1/24")
    alone = replace(node, spec=replace(node.spec, internal_ips=()))
    (segment,) = build_topology([alone], (), Settings()).segments
    assert describe_segment(segment) == "node:a [a*] 10.4.0.1/16"
    assert segment.allowed_ips == nets("10.4.0.1/32")


def test_the_first_segment_that_has_seen_a_device_says_where_it_is() -> None:
    roamer = make_key("roamer")
    here, there = Endpoint.parse("203.0.113.1:1000"), Endpoint.parse("203.0.113.2:2000")
    nodes = [
        make_node("z", location="a", internal="192.168.1.1/24", seen=[(roamer, here)]),
        make_node("a", location="b", internal="192.168.2.1/24", seen=[(roamer, there)]),
    ]
    topology = build_topology(nodes, (), Settings())
    assert topology.discovered_endpoints == {roamer: here}


def test_where_a_device_is_seen_on_its_own_lan_is_of_no_use_to_others() -> None:
    roamer = make_key("roamer")
    lan, public = Endpoint.parse("192.168.1.9:51820"), Endpoint.parse("203.0.113.2:2000")
    nodes = [
        make_node("z", location="a", internal="192.168.1.1/24", seen=[(roamer, lan)]),
        make_node("a", location="b", internal="192.168.2.1/24", seen=[(roamer, public)]),
    ]
    assert build_topology(nodes, (), Settings()).discovered_endpoints == {roamer: public}
    assert build_topology(nodes[:1], (), Settings()).discovered_endpoints == {roamer: lan}


def test_an_empty_mesh_has_no_segments() -> None:
    topology = build_topology((), (), Settings())
    assert (topology.segments, list(topology.nodes)) == ((), [])
    assert topology.find_segment("a") is None


def test_a_node_without_key_has_no_place_in_a_topology() -> None:
    with pytest.raises(ValueError, match="node a has no public key"):
        required_key(Node(name="a"))
