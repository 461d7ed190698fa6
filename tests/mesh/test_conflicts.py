"""Spec section 4, points 5 and 6: who may claim what, and what a refusal says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kilo.mesh.model import Granularity, Node, Peer, Settings
from kilo.mesh.topology import build_topology
from tests.builders import make_key
from tests.mesh.fleets import describe_refusals, make_node, make_peer, nets

EAST = make_node("e", location="east", internal="192.168.1.1/24", pods="10.2.1.0/24 fd00:2:1::/64")
WEST = make_node("w", location="west", internal="192.168.2.1/24", pods="10.2.2.0/24")
SETTINGS = Settings(service_cidrs=nets("10.43.0.0/16"))


def _location_ips(east: str, west: str, peers: Sequence[Peer] = ()) -> tuple[list[str], list[str]]:
    """What the locations keep, and the refusals."""
    nodes = [
        make_node("e", location="east", internal="192.168.1.1/24", location_ips=east),
        make_node(
            "w", location="west", internal="192.168.2.1/24", pods="10.2.2.0/24", location_ips=west
        ),
    ]
    topology = build_topology(nodes, peers, SETTINGS)
    kept = [" ".join(map(str, segment.allowed_location_ips)) for segment in topology.segments]
    return kept, describe_refusals(topology)


@pytest.mark.parametrize(
    ("east", "west", "kept", "refusals"),
    [
        pytest.param(
            "192.168.8.0/24", "192.168.9.0/24", ["192.168.8.0/24", "192.168.9.0/24"], [], id="apart"
        ),
        pytest.param(
            "192.168.8.0/24",
            "192.168.8.7/32",
            ["", "192.168.8.7/32"],
            [
                (
                    "Segment location:east: allowedLocationIPs 192.168.8.0/24 refused:"
                    " it overlaps 192.168.8.7/32 of segment location:west"
                )
            ],
            id="of two that overlap the later segment keeps its own, as Kilo has it",
        ),
        pytest.param(
            "192.168.8.7/32",
            "192.168.8.0/24 192.168.9.0/24",
            ["", "192.168.8.0/24 192.168.9.0/24"],
            [
                (
                    "Segment location:east: allowedLocationIPs 192.168.8.7/32 refused:"
                    " it overlaps 192.168.8.0/24 of segment location:west"
                )
            ],
            id="whichever is the wider",
        ),
        pytest.param(
            "192.168.8.0/24 192.168.8.7/32",
            "",
            ["192.168.8.0/24 192.168.8.7/32", ""],
            [],
            id="a location may overlap itself",
        ),
        pytest.param(
            "192.168.2.1/32",
            "",
            ["", ""],
            [
                (
                    "Segment location:east: allowedLocationIPs 192.168.2.1/32 refused:"
                    " it lies inside 192.168.2.1/32 of Node w"
                )
            ],
            id="another node's internal IP",
        ),
        pytest.param(
            "192.168.1.1/32",
            "",
            ["", ""],
            [
                (
                    "Segment location:east: allowedLocationIPs 192.168.1.1/32 refused:"
                    " it lies inside 192.168.1.1/32 of Node e"
                )
            ],
            id="its own node's internal IP, for that one is a member",
        ),
        pytest.param(
            "10.2.2.128/25",
            "",
            ["", ""],
            [
                (
                    "Segment location:east: allowedLocationIPs 10.2.2.128/25 refused:"
                    " it lies inside 10.2.2.0/24 of Node w"
                )
            ],
            id="a part of a pod subnet",
        ),
        pytest.param(
            "10.4.0.2/32",
            "",
            ["", ""],
            [
                (
                    "Segment location:east: allowedLocationIPs 10.4.0.2/32 refused:"
                    " it lies inside 10.4.0.2/32 of Segment location:west"
                )
            ],
            id="a WireGuard IP",
        ),
        pytest.param(
            "192.168.0.0/16", "", ["192.168.0.0/16", ""], [], id="a wide one around node addresses"
        ),
        pytest.param("fd00:2::/32", "", ["fd00:2::/32", ""], [], id="families never meet"),
    ],
)
def test_allowed_location_ips(east: str, west: str, kept: list[str], refusals: list[str]) -> None:
    assert _location_ips(east, west) == (kept, refusals)


@pytest.mark.parametrize("claim", ["10.5.0.0/24", "10.5.0.1/32", "10.5.0.0/16"])
def test_an_allowed_location_ip_that_overlaps_a_peers_is_dropped(claim: str) -> None:
    kept, refusals = _location_ips(claim, "", [make_peer("p", "10.5.0.0/24")])
    assert kept == ["", ""]
    assert refusals == [
        (
            f"Segment location:east: allowedLocationIPs {claim} refused:"
            " it overlaps 10.5.0.0/24 of peer p"
        )
    ]


def test_a_peers_refused_claim_costs_no_location_its_ips() -> None:
    peers = [make_peer("p", "0.0.0.0/0 10.5.0.1/32")]
    kept, refusals = _location_ips("192.168.8.0/24", "", peers)
    assert kept == ["192.168.8.0/24", ""]
    assert refusals == [
        "Peer p: spec.allowedIPs 0.0.0.0/0 refused: a peer cannot claim every address there is"
    ]


def test_with_full_two_nodes_of_one_place_conflict_as_any_two_segments() -> None:
    nodes = [make_node(name, location_ips="192.168.8.0/24") for name in "ab"]
    topology = build_topology(nodes, (), Settings(granularity=Granularity.FULL))
    assert [s.allowed_location_ips for s in topology.segments] == [(), nets("192.168.8.0/24")]


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ("0.0.0.0/0", "a peer cannot claim every address there is"),
        ("::/0", "a peer cannot claim every address there is"),
        ("10.2.1.0/24", "it lies inside 10.2.1.0/24 of Node e"),
        ("10.2.1.7/32", "it lies inside 10.2.1.0/24 of Node e"),
        ("fd00:2:1::7/128", "it lies inside fd00:2:1::/64 of Node e"),
        ("192.168.2.1/32", "it lies inside 192.168.2.1/32 of Node w"),
        ("10.4.0.2/32", "it lies inside 10.4.0.2/32 of Segment location:west"),
        ("10.43.7.0/24", "it lies inside 10.43.0.0/16 of the service CIDRs"),
        ("10.43.0.0/16", "it lies inside 10.43.0.0/16 of the service CIDRs"),
    ],
)
def test_a_peer_is_refused(claim: str, reason: str) -> None:
    peer = make_peer("p", f"{claim} 10.5.0.1/32")
    topology = build_topology([EAST, WEST], [peer], SETTINGS)
    assert describe_refusals(topology) == [f"Peer p: spec.allowedIPs {claim} refused: {reason}"]
    assert [p.allowed_ips for p in topology.peers] == [nets("10.5.0.1/32")]


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param("10.2.0.0/16", id="a wide network that contains a node's"),
        pytest.param("10.4.0.9/32", id="an address of the Kilo subnet that nobody has"),
        pytest.param("192.168.1.0/24", id="the network around an internal IP"),
        pytest.param("fd00:5::/64", id="another family"),
    ],
)
def test_a_peer_may_have(claim: str) -> None:
    topology = build_topology([EAST, WEST], [make_peer("p", claim)], SETTINGS)
    assert describe_refusals(topology) == []
    assert [p.allowed_ips for p in topology.peers] == [nets(claim)]


def test_an_allowed_ip_of_two_peers_goes_to_the_first_by_name() -> None:
    peers = [make_peer("q", "10.5.0.1/32 10.5.0.2/32"), make_peer("p", "10.5.0.1/32")]
    topology = build_topology([EAST], peers, SETTINGS)
    assert [(p.name, p.allowed_ips) for p in topology.peers] == [
        ("p", nets("10.5.0.1/32")),
        ("q", nets("10.5.0.2/32")),
    ]
    assert describe_refusals(topology) == [
        "Peer q: spec.allowedIPs 10.5.0.1/32 refused: Peer p claims it too"
    ]


def test_a_network_inside_another_peers_is_no_conflict_for_the_longer_prefix_wins() -> None:
    peers = [make_peer("p", "10.5.0.0/24"), make_peer("q", "10.5.0.7/32")]
    assert len(build_topology([EAST], peers, SETTINGS).peers) == 2


def test_a_peer_that_names_a_network_twice_has_it_once() -> None:
    peers = [make_peer("p", "10.5.0.1/32 10.5.0.1/32")]
    topology = build_topology([EAST], peers, SETTINGS)
    assert topology.peers[0].allowed_ips == nets("10.5.0.1/32")
    assert describe_refusals(topology) == []


def test_a_peer_left_with_nothing_takes_no_part() -> None:
    peers = [make_peer("p", "0.0.0.0/0"), make_peer("q", "")]
    assert build_topology([EAST], peers, SETTINGS).peers == ()


@pytest.mark.parametrize(
    ("peers", "granted", "refusal"),
    [
        pytest.param(
            [make_peer("p", "10.5.0.1/32", key="e")], [], "Peer p: the key of node e", id="a node's"
        ),
        pytest.param(
            [make_peer("p", "10.5.0.1/32"), make_peer("q", "10.5.0.2/32", key="p")],
            ["p"],
            "Peer q: the key of Peer p",
            id="an earlier peer's",
        ),
    ],
)
def test_a_peer_with_a_key_that_is_taken_is_refused(
    peers: Sequence[Peer], granted: list[str], refusal: str
) -> None:
    topology = build_topology([EAST], peers, SETTINGS)
    assert [peer.name for peer in topology.peers] == granted
    claimant, reason = refusal.split(": ")
    key = peers[-1].public_key
    assert describe_refusals(topology) == [f"{claimant}: publicKey {key} refused: it is {reason}"]


def test_a_peer_that_takes_no_part_keeps_its_key_from_nobody() -> None:
    peers = [make_peer("p", "0.0.0.0/0", key="k"), make_peer("q", "10.5.0.1/32", key="k")]
    assert [p.name for p in build_topology([EAST], peers, SETTINGS).peers] == ["q"]


def test_a_refused_peers_networks_are_free_for_others() -> None:
    peers = [make_peer("p", "10.5.0.1/32", key="e"), make_peer("q", "10.5.0.1/32")]
    topology = build_topology([EAST], peers, SETTINGS)
    assert [(p.name, p.allowed_ips) for p in topology.peers] == [("q", nets("10.5.0.1/32"))]


def test_of_nodes_with_one_key_only_the_first_by_name_takes_part() -> None:
    nodes = [make_node("z", key="disk"), make_node("b", key="disk"), make_node("a", key="own")]
    topology = build_topology(nodes, (), Settings())
    assert [node.name for node in topology.nodes] == ["a", "b"]
    assert describe_refusals(topology) == [
        f"Node z: publicKey {make_key('disk')} refused: it is the key of node b"
    ]


@pytest.mark.parametrize(
    ("first", "second", "refusal"),
    [
        pytest.param(
            make_node("a", location="1", internal="192.168.1.1/24"),
            make_node("b", location="2", internal="192.168.1.1/24"),
            "Node b: internalIP 192.168.1.1/32 refused: it belongs to Node a",
            id="two locations may use the same private network",
        ),
        pytest.param(
            make_node("a", internal="192.168.1.1/24"),
            make_node("b", internal="192.168.1.1/24"),
            "Node b: internalIP 192.168.1.1/32 refused: it belongs to Node a",
            id="and so may two hosts of the default location",
        ),
        pytest.param(
            make_node("a", location="1", internal="192.168.1.1/24", pods="10.2.1.0/24"),
            make_node("b", location="2", internal="192.168.2.1/24", pods="10.2.1.0/24"),
            "Node b: podSubnets 10.2.1.0/24 refused: it belongs to Node a",
            id="a pod subnet that was given out twice",
        ),
        pytest.param(
            make_node("a", location="1", internal="10.4.0.2/16"),
            make_node("b", location="2", internal="192.168.2.1/24"),
            "Node a: internalIP 10.4.0.2/32 refused: it belongs to Segment location:2",
            id="an internal IP that is a WireGuard IP",
        ),
    ],
)
def test_a_network_that_two_claim_has_one_owner(first: Node, second: Node, refusal: str) -> None:
    topology = build_topology([second, first], (), Settings())
    assert describe_refusals(topology) == [refusal]
    owned = [network for segment in topology.segments for network in segment.allowed_ips]
    assert len(owned) == len(set(owned))
