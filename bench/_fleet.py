"""Meshes of any size, the same ones every time, as values and as each store's documents.

Nodes go round the locations: node 0 is in location 0, node 1 in location 1. The first two nodes of
a location have public endpoints and so may lead it; the others are found at internal addresses.
Every node has a report, every one but the own host's, which its agent is to make.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network

from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, Node, NodeReport, NodeSpec, Peer, Snapshot

PODS = int(ip_address("10.64.0.0"))
"""Of 10.64.0.0/10, a /26 a node."""
PUBLIC = int(ip_address("198.18.0.0"))
"""Of 198.18.0.0/15, which is for benchmarks (RFC 2544)."""
INTERNAL = int(ip_address("192.168.0.1"))
ROAMING = int(ip_address("10.5.0.1"))
PORT = 51820


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How large a mesh is, and whether the own host, node 0, leads its location."""

    nodes: int
    locations: int
    leads: bool = True

    @property
    def peers(self) -> int:
        """A tenth as many as nodes."""
        return self.nodes // 10

    def __str__(self) -> str:
        role = "leader" if self.leads else "not a leader"
        return f"{self.nodes:,} nodes in {self.locations} locations, {self.peers} peers, {role}"


def name_node(number: int) -> str:
    """Names sort as their numbers do."""
    return f"node-{number:05}"


def make_key(name: str) -> PublicKey:
    """Nobody has the private half."""
    return PublicKey.from_bytes(hashlib.sha256(name.encode()).digest())


def make_spec(fleet: Fleet, number: int, *, leader: bool | None = None) -> NodeSpec:
    """What is declared of a node; ``leader`` None: as the fleet says, in location 0 only."""
    chosen = 0 if fleet.leads else fleet.locations
    return NodeSpec(
        location=f"location-{number % fleet.locations:04}",
        leader=number == chosen if leader is None else leader,
        pod_subnets=(ip_network((PODS + 64 * number, 26)),),
    )


def make_report(fleet: Fleet, number: int) -> NodeReport:
    """What the agent of a node says."""
    internal = ip_address(INTERNAL + number)
    host = ip_address(PUBLIC + number) if number < 2 * fleet.locations else internal
    return NodeReport(
        name=name_node(number),
        public_key=make_key(name_node(number)),
        endpoint=Endpoint(host=str(host), port=PORT),
        internal_ips=(ip_interface(f"{internal}/16"),),
        agent="kg bench",
    )


def make_peer(number: int) -> Peer:
    """A device that roams."""
    name = f"peer-{number:05}"
    return Peer(
        name=name,
        public_key=make_key(name),
        allowed_ips=(ip_network(ROAMING + number),),
    )


def list_nodes(fleet: Fleet) -> Iterator[Node]:
    """All of them, node 0 as if its agent had reported."""
    for number in range(fleet.nodes):
        yield Node(
            name=name_node(number),
            spec=make_spec(fleet, number),
            report=make_report(fleet, number),
        )


def make_snapshot(fleet: Fleet) -> Snapshot:
    """The whole mesh."""
    return Snapshot(
        nodes=tuple(list_nodes(fleet)),
        peers=tuple(make_peer(number) for number in range(fleet.peers)),
    )
