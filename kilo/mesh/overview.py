"""The mesh and how it fares, as one document: what ``/status`` answers and ``kgctl status`` shows.

Names are those of the documents of the store; times are Unix seconds, 0 for never. No secrets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypedDict

from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Node, Peer, Settings, Snapshot
from kilo.mesh.state import PeerStats, sort_networks
from kilo.mesh.topology import Segment, Topology


class TunnelView(TypedDict):
    """What a device has measured of one other end."""

    endpoint: str
    latestHandshake: float
    receivedBytes: int
    sentBytes: int


class NodeView(TypedDict):
    """A node that takes part."""

    name: str
    publicKey: str
    endpoint: str
    internalIPs: list[str]
    podSubnets: list[str]
    agent: str
    lastSeen: int


class SegmentView(TypedDict):
    """A segment; its tunnel is None where the one who tells has none to it."""

    name: str
    leader: str
    leaderSince: float
    """As far as the agent that tells has seen; 0: nobody has."""
    wireguardIPs: list[str]
    allowedIPs: list[str]
    nodes: list[NodeView]
    tunnel: TunnelView | None


class PeerView(TypedDict):
    """A peer, whether it takes part, and what of it is refused or wrong."""

    name: str
    publicKey: str
    ready: bool
    allowedIPs: list[str]
    endpoint: str
    remarks: list[str]
    tunnel: TunnelView | None


class AbsentView(TypedDict):
    """A node that takes no part."""

    name: str
    reason: str
    lastSeen: int


class MeshView(TypedDict):
    """What holds for all."""

    granularity: str
    subnets: list[str]
    port: int
    mtu: int | None
    encapsulation: str
    serviceCIDRs: list[str]


class RepairView(TypedDict):
    """A change of ours that somebody else had undone, and when it was made again."""

    at: float
    change: str


class AgentView(TypedDict):
    """The agent that tells."""

    node: str
    interface: str
    version: str
    ready: bool
    reasons: list[str]
    """Why it is not ready, a line each."""
    warnings: list[str]
    since: float
    """Since when it is ready, or is not."""
    failures: list[str]
    """All that its kernel refused in the last pass, a line each."""
    repairs: list[RepairView]
    """The latest of them, the newest last."""
    mtu: int
    """Of its interface, in bytes; 0: there is none."""


class Overview(TypedDict):
    """All of it."""

    at: float
    """When it was told."""
    agent: AgentView | None
    """None: nobody who is part of the mesh tells it, but who has read the store."""
    mesh: MeshView
    segments: list[SegmentView]
    absent: list[AbsentView]
    peers: list[PeerView]
    refusals: list[str]
    problems: list[str]
    """What stands in the store and was left out."""
    doubts: list[str]
    """What makes agents come to another answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Who tells, and what only that one knows."""

    at: float
    """Unix seconds."""
    agent: AgentView | None = None
    leader_since: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Segment -> since when its leader leads it, in Unix seconds."""
    stats: Mapping[PublicKey, PeerStats] = field(default_factory=lambda: MappingProxyType({}))
    """What the own device has measured; empty where there is none, or it is down."""


def describe_mesh(
    snapshot: Snapshot,
    topology: Topology,
    told: Told,
    *,
    absent: Mapping[str, str],
    doubts: Iterable[str],
) -> Overview:
    """The document. ``absent`` are the nodes that take no part, each with the reason."""
    seen = snapshot.last_seen
    return Overview(
        at=told.at,
        agent=told.agent,
        mesh=_describe_settings(topology.settings),
        segments=[_describe_segment(one, seen, told) for one in topology.segments],
        absent=[
            AbsentView(name=name, reason=reason, lastSeen=seen.get(name, 0))
            for name, reason in sorted(absent.items())
        ],
        peers=_describe_peers(snapshot, topology, told.stats),
        refusals=list(map(str, topology.refusals)),
        problems=list(map(str, snapshot.problems)),
        doubts=[*doubts, *(f"store {name}: {reason}" for name, reason in snapshot.away.items())],
    )


def _describe_settings(settings: Settings) -> MeshView:
    return MeshView(
        granularity=settings.granularity.value,
        subnets=list(map(str, settings.subnets)),
        port=settings.port,
        mtu=settings.mtu,
        encapsulation=settings.encapsulation.value,
        serviceCIDRs=list(map(str, settings.service_cidrs)),
    )


def _describe_segment(segment: Segment, seen: Mapping[str, int], told: Told) -> SegmentView:
    allowed = sort_networks((*segment.allowed_ips, *segment.allowed_location_ips))
    return SegmentView(
        name=segment.name,
        leader=segment.leader.name,
        leaderSince=told.leader_since.get(segment.name, 0.0),
        wireguardIPs=[str(one.ip) for one in segment.wireguard_ips],
        allowedIPs=list(map(str, allowed)),
        nodes=[_describe_node(node, seen) for node in segment.nodes],
        tunnel=_describe_tunnel(told.stats.get(segment.key)),
    )


def _describe_node(node: Node, seen: Mapping[str, int]) -> NodeView:
    return NodeView(
        name=node.name,
        publicKey=str(node.public_key),
        endpoint=str(node.endpoint),
        internalIPs=[str(one.ip) for one in node.internal_ips],
        podSubnets=list(map(str, node.pod_subnets)),
        agent=node.report.agent if node.report else "",
        lastSeen=seen.get(node.name, 0),
    )


def _describe_tunnel(stats: PeerStats | None) -> TunnelView | None:
    if stats is None:
        return None
    return TunnelView(
        endpoint=str(stats.endpoint or ""),
        latestHandshake=stats.latest_handshake,
        receivedBytes=stats.received_bytes,
        sentBytes=stats.sent_bytes,
    )


def _describe_peers(
    snapshot: Snapshot, topology: Topology, stats: Mapping[PublicKey, PeerStats]
) -> list[PeerView]:
    """Of every peer that could be read; one that takes no part has no tunnel, whoever has its
    key.
    """
    granted = {peer.name: peer for peer in topology.peers}
    remarks: dict[str, list[str]] = {}
    for refusal in topology.refusals:
        text = f"{refusal.field} {refusal.value} refused: {refusal.reason}"
        remarks.setdefault(refusal.claimant, []).append(text)
    for problem in snapshot.problems:
        remarks.setdefault(problem.object, []).append(str(problem))
    return [
        _describe_peer(peer, granted.get(peer.name), remarks.get(f"Peer {peer.name}", []), stats)
        for peer in snapshot.peers
    ]


def _describe_peer(
    peer: Peer,
    granted: Peer | None,
    remarks: list[str],
    stats: Mapping[PublicKey, PeerStats],
) -> PeerView:
    return PeerView(
        name=peer.name,
        publicKey=str(peer.public_key),
        ready=granted is not None,
        allowedIPs=list(map(str, sort_networks(granted.allowed_ips))) if granted else [],
        endpoint=str(peer.endpoint or ""),
        remarks=remarks,
        tunnel=_describe_tunnel(stats.get(peer.public_key)) if granted else None,
    )
