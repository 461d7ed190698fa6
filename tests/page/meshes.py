"""Meshes as an agent shows them after a pass: what the page is made to draw."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, Granularity, Node, Peer, Settings, Snapshot
from kilo.mesh.state import PeerStats
from kilo.mesh.topology import build_topology
from kilo.status import Status
from tests.builders import make_key
from tests.mesh.fleets import make_node, make_peer

SILENT_SECONDS = 500
"""So long, and a node takes no part."""
MOST_IN_PLACE = 60
AGES = (5.0, 40.0, 95.0, 20.0, 900.0, 130.0)
"""Of handshakes, in turn, seconds; one of them is of a tunnel that nobody uses."""


def make_status(
    nodes: Sequence[Node],
    peers: Iterable[Peer] = (),
    *,
    granularity: Granularity = Granularity.LOCATION,
    silent: Iterable[Node] = (),
) -> Status:
    """What the agent of the first of ``nodes`` knows, which leads its segment; nobody has yet
    shaken hands.
    """
    status = Status(name=nodes[0].name, interface="kilo0")
    settings = replace(Settings(), granularity=granularity)
    now, away = int(time.time()), tuple(silent)
    in_order = sorted((*nodes, *away), key=lambda node: node.name)
    seen = {node.name: now - (SILENT_SECONDS if node in away else 7) for node in in_order}
    all_peers = tuple(sorted(peers, key=lambda peer: peer.name))
    status.topology = build_topology(nodes, all_peers, settings)
    status.snapshot = Snapshot(nodes=tuple(in_order), peers=all_peers, last_seen=seen)
    status.not_ready = ""
    return status


def shake_hands(status: Status, ages: Mapping[str, float | None]) -> None:
    """Node or peer -> how long ago, seconds; None: never. Who is not named has no tunnel."""
    now = time.time()
    status.stats = {
        make_key(name): _make_stats(number, 0.0 if age is None else now - age)
        for number, (name, age) in enumerate(ages.items(), start=1)
    }


def _make_stats(number: int, handshake: float) -> PeerStats:
    host = f"203.0.113.{number % 250 + 1}"
    return PeerStats(
        endpoint=Endpoint(host=host, port=51820),
        latest_handshake=handshake,
        received_bytes=number * 1_500_000 if handshake else 0,
        sent_bytes=number * 47_000,
    )


def find_others(status: Status) -> list[tuple[str, PublicKey]]:
    """The other ends of this node's tunnels, by name."""
    assert status.topology is not None
    leaders = [s.leader.name for s in status.topology.segments if s.leader.name != status.name]
    return [(name, make_key(name)) for name in leaders]


def make_three() -> Status:
    """Three nodes in three places, and three peers; of everything one."""
    status = make_status(
        [
            make_place("berlin", 1, 1),
            make_place("paris", 2, 1),
            make_place("tokyo", 3, 1),
        ],
        [make_peer("laptop", "10.5.0.1/32"), make_peer("phone", "10.5.0.2/32")],
    )
    shake_hands(status, {"paris-1": 12.0, "tokyo-1": 1265.0, "laptop": 64.0, "phone": None})
    return status


def make_place(location: str, site: int, number: int) -> Node:
    return make_node(
        f"{location}-{number}",
        location=location,
        endpoint=f"198.51.100.{site}:51820",
        internal=f"192.168.{site}.{number}/24",
        pods=number_pods(site * MOST_IN_PLACE + number),
    )


def number_pods(index: int) -> str:
    """One of the 4,096 small subnets of 10.2.0.0/16."""
    return f"10.2.{index // 16}.{index % 16 * 16}/28"


CITIES = """
    amsterdam berlin chicago dublin frankfurt geneva helsinki istanbul jakarta kyoto lisbon madrid
    nairobi oslo paris quito rome seoul tokyo utrecht vienna warsaw york zurich
"""


def make_many() -> Status:
    """300 nodes in 24 places of very different size, with peers, silent nodes and a dead tunnel."""
    sizes = [40, 34, 28, 24, 20, 18, 16, 14, 12, 11, 10, 9, 8, 8, 7, 7, 6, 6, 5, 5, 4, 3, 3, 2]
    nodes = [
        make_place(city, site, number)
        for site, (city, size) in enumerate(zip(CITIES.split(), sizes, strict=True), start=1)
        for number in range(1, size + 1)
    ]
    peers = [make_peer(f"laptop-{number}", f"10.5.0.{number}/32") for number in range(1, 13)]
    status = make_status(
        nodes, peers, silent=[make_place("oslo", 14, 50), make_place("rome", 17, 50)]
    )
    others = [name for name, _ in find_others(status)]
    ages: dict[str, float | None] = {
        name: AGES[index % len(AGES)]
        for index, name in enumerate((*others, *(peer.name for peer in peers)))
    }
    shake_hands(status, {**ages, "helsinki-1": None, "laptop-7": None})
    return status


def make_full(number: int) -> Status:
    """So many nodes, each a segment of its own."""
    nodes = [
        make_node(
            f"node-{index:03}",
            endpoint=f"198.51.100.1:{10000 + index}",
            internal=f"192.168.{index // 200}.{index % 200 + 1}/16",
            pods=number_pods(index),
        )
        for index in range(number)
    ]
    status = make_status(nodes, granularity=Granularity.FULL)
    others = [name for name, _ in find_others(status)]
    shake_hands(status, {name: AGES[index % len(AGES)] for index, name in enumerate(others)})
    return status
