"""Two meshes cut down to what one node's state depends on: what it comes to must be the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.mesh.difference import Difference
from kilo.mesh.foretell import Foretold, Hosts, Known, foretell_node, name_keys
from kilo.mesh.model import (
    Endpoint,
    Granularity,
    Node,
    NodeReport,
    PartialSettings,
    Peer,
    Settings,
    Snapshot,
)
from kilo.mesh.survey import Flags, Survey, make_survey
from kilo.mesh.view import RenderOptions
from tests.builders import make_key
from tests.mesh.fleets import make_node, make_peer
from tests.mesh.random_fleets import Fleet, fleets

NOW = 1_000_000


def make_fleet(size: int) -> list[Node]:
    """Nodes of as many locations, two in each, none in another's way."""
    return [
        make_node(
            f"n{i:02}",
            location=f"l{i // 2}",
            endpoint=f"198.51.100.{i + 1}:51820",
            internal=f"192.168.{i // 2}.{i + 1}/24",
            pods=f"10.2.{i}.0/24",
            keepalive=25 * (i % 3 == 0),
        )
        for i in range(size)
    ]


FLEET = make_fleet(12)
PEERS = [
    make_peer(f"p{i}", f"10.5.0.{i}/32", endpoint=f"203.0.113.{i}:1", keepalive=25 * (i == 3))
    for i in (1, 2, 3)
]


def survey(
    nodes: list[Node], peers: list[Peer], flags: Settings | None = None, cut: int = 0
) -> Survey:
    snapshot = Snapshot(
        nodes=tuple(sorted(nodes, key=lambda node: node.name)),
        peers=tuple(sorted(peers, key=lambda peer: peer.name)),
        last_seen={node.name: NOW for node in nodes[cut:]},
    )
    untold = Flags(settings=PartialSettings(), defaults=flags or Settings())
    return make_survey(snapshot, untold, wall=NOW, evident=PartialSettings())


def tell(difference: Difference, hosts: Hosts) -> list[Foretold]:
    """Of every node."""
    before, after = difference.whole.before.snapshot, difference.whole.after.snapshot
    names = sorted({node.name for node in (*before.nodes, *after.nodes)})
    owners = name_keys(after) | name_keys(before)
    known: Known = {}
    return [foretell_node(name, difference, hosts, owners, known) for name in names]


def check_same(before: Survey, after: Survey, hosts: Hosts) -> Difference:
    """That nothing is lost by narrowing."""
    difference = Difference.find(before, after)
    whole = replace(difference, neighbourhoods={})
    assert tell(difference, hosts) == tell(whole, hosts)
    return difference


def move(node: Node) -> Node:
    return make_node(
        node.name,
        location=node.spec.location,
        endpoint="198.51.100.99:51820",
        internal=" ".join(map(str, node.internal_ips)),
        pods=" ".join(map(str, node.pod_subnets)),
    )


def see(witness: Node, name: str) -> NodeReport:
    """The witness' report, with where it has seen another node."""
    assert witness.report is not None
    seen = ((make_key(name), Endpoint.parse("203.0.113.200:7")),)
    return replace(witness.report, discovered_endpoints=seen)


CHANGES: dict[str, Callable[[list[Node], list[Peer]], tuple[list[Node], list[Peer]]]] = {
    "a peer comes": lambda nodes, peers: (nodes, [*peers, make_peer("q", "10.5.0.9/32")]),
    "a peer goes": lambda nodes, peers: (nodes, peers[1:]),
    "a peer moves": lambda nodes, peers: (
        nodes,
        [replace(peers[0], endpoint=peers[1].endpoint), *peers[1:]],
    ),
    "a node moves": lambda nodes, peers: ([*nodes[:4], move(nodes[4]), *nodes[5:]], peers),
    "another leads": lambda nodes, peers: (
        [*nodes[:5], replace(nodes[5], spec=replace(nodes[5].spec, leader=True)), *nodes[6:]],
        peers,
    ),
    "the last location comes": lambda nodes, peers: ([*nodes, *make_fleet(14)[12:]], peers),
    "a node behind NAT is seen elsewhere": lambda nodes, peers: (
        [*nodes[:-1], replace(nodes[-1], report=see(nodes[-1], "n06"))],
        peers,
    ),
    "a peer behind NAT is seen elsewhere": lambda nodes, peers: (
        [*nodes[:-1], replace(nodes[-1], report=see(nodes[-1], "p3"))],
        peers,
    ),
    "nothing": lambda nodes, peers: (nodes, peers),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cni", [True, False], ids=["pods are ours", "pods are others'"])
def test_a_change_of_little_is_told_from_little(change: str, cni: bool) -> None:  # noqa: FBT001 - a parameter
    before, after = survey(FLEET, PEERS), survey(*CHANGES[change](FLEET, PEERS))
    difference = check_same(before, after, Hosts(options=RenderOptions(cni=cni)))
    pair = difference.narrow("n00")
    assert sum(1 for _ in pair.after.topology.nodes) <= 6
    assert len(pair.after.topology.peers) <= 1


def test_who_stays_where_another_leaves_is_told_the_whole() -> None:
    """Its neighbour is no neighbour any more, though nothing near it is new."""
    cross = Settings(granularity=Granularity.CROSS)
    nodes = [
        make_node("a", location="", internal="192.168.0.1/24", pods="10.2.1.0/24"),
        make_node("b", location="", internal="192.168.0.2/24", pods="10.2.2.0/24"),
        make_node("x", location="x", internal="192.168.1.1/24", pods="10.2.3.0/24"),
    ]
    left = make_node("b", location="c", internal="192.168.0.2/24", pods="10.2.2.0/24")
    before, after = survey(nodes, PEERS, cross), survey([nodes[0], left, nodes[2]], PEERS, cross)
    check_same(before, after, Hosts(options=RenderOptions(cni=True)))


def test_where_all_are_numbered_anew_nothing_is_left_out() -> None:
    """The first segment goes, and all others get other WireGuard addresses."""
    before, after = survey(FLEET, PEERS), survey(FLEET[2:], PEERS)
    difference = check_same(before, after, Hosts())
    assert difference.narrow("n05") is difference.whole


@pytest.mark.parametrize("changing", [4, 7], ids=["whose pods they are", "who lives there"])
def test_where_a_host_lives_among_anothers_pods_nothing_is_left_out(changing: int) -> None:
    """There is no barrier for them, and whether there is one depends on both nodes."""
    lodger = make_node("n07", location="l3", internal="10.2.4.9/24", pods="10.2.7.0/24")
    nodes = [*FLEET[:7], lodger, *FLEET[8:]]
    moved = [*nodes[:changing], move(nodes[changing]), *nodes[changing + 1 :]]
    difference = check_same(survey(nodes, PEERS), survey(moved, PEERS), Hosts())
    assert difference.narrow("n00") is difference.whole


@given(fleets(), fleets(), st.data())
@settings(deadline=None, max_examples=60)
def test_what_is_narrowed_comes_to_the_same(
    fleet: Fleet, other: Fleet, data: st.DataObject
) -> None:
    """Part of one mesh, with all its quarrels, is replaced by what another has of that name."""
    chosen = data.draw(st.sets(st.sampled_from("abcdefpqr")))
    nodes = {n.name: n for n in fleet.nodes} | {n.name: n for n in other.nodes if n.name in chosen}
    peers = {p.name: p for p in fleet.peers} | {p.name: p for p in other.peers if p.name in chosen}
    full = replace(fleet.settings, granularity=Granularity.FULL)
    for flags in (fleet.settings, full):
        before = survey(list(fleet.nodes), list(fleet.peers), flags)
        after = survey(list(nodes.values()), list(peers.values()), flags)
        check_same(before, after, Hosts(options=fleet.options))
