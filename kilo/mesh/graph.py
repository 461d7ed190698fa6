"""Topology -> DOT, drawn to look right under ``circo``: a cluster a segment, its nodes around
the leader, the leaders joined with each other, the peers dashed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kilo.mesh.model import Node, Peer
from kilo.mesh.topology import Segment, Topology


def draw_graph(topology: Topology) -> str:
    """The mesh as a directed graph called ``kilo``, labelled with the Kilo subnet."""
    return "\n".join(["digraph kilo {", *_indent(_draw_body(topology)), "}", ""])


def _draw_body(topology: Topology) -> Iterator[str]:
    yield f"label={_quote(', '.join(map(str, topology.settings.subnets)))};"
    yield "labelloc=t;"
    yield "outputorder=nodesfirst;"
    yield "overlap=false;"
    for segment in topology.segments:
        yield from _draw_segment(segment)
    yield from _draw_tunnels(topology)
    if topology.peers:
        yield from _draw_peers(topology)


def _draw_segment(segment: Segment) -> Iterator[str]:
    yield f"subgraph {_quote('cluster_location_' + segment.name)} {{"
    yield from _indent((f"label={_quote(segment.name)};", 'style="dashed,rounded";'))
    for node in segment.nodes:
        rank = ", rank=1" if node is segment.leader else ""
        label = _quote(*_describe_node(segment, node))
        yield f"  {_quote(node.name)} [label={label}{rank}, shape=ellipse];"
    for node in segment.nodes:
        if node is not segment.leader:
            yield f"  {_join(segment.leader.name, node.name)} [dir=both];"
    yield "}"


def _describe_node(segment: Segment, node: Node) -> Iterator[str]:
    yield segment.name
    yield node.name
    yield from map(str, node.pod_subnets)
    yield from (str(address.ip) for address in node.internal_ips)
    if node is segment.leader:
        yield from (str(address.ip) for address in segment.wireguard_ips)
        yield str(node.endpoint)


def _draw_tunnels(topology: Topology) -> Iterator[str]:
    """One edge a pair; dotted where ``cross`` leaves two nodes of a location to their LAN."""
    for index, segment in enumerate(topology.segments):
        for other in topology.segments[index + 1 :]:
            near = segment.neighbourhood == other.neighbourhood
            style = ", style=dotted, arrowhead=none, arrowtail=none" if near else ""
            yield f"{_join(segment.leader.name, other.leader.name)} [dir=both{style}];"


def _draw_peers(topology: Topology) -> Iterator[str]:
    yield 'subgraph "cluster_peers" {'
    yield from _indent(('label="peers";', 'style="dashed,rounded";'))
    for peer in topology.peers:
        label = _quote(*_describe_peer(peer))
        yield f"  {_quote('peer:' + peer.name)} [label={label}, shape=ellipse];"
    yield "}"
    for segment in topology.segments:
        for peer in topology.peers:
            edge = _join(segment.leader.name, "peer:" + peer.name)
            yield f"{edge} [dir=both, style=dashed];"


def _describe_peer(peer: Peer) -> Iterator[str]:
    yield peer.name
    yield from map(str, peer.allowed_ips)
    if peer.endpoint is not None:
        yield str(peer.endpoint)


def _join(tail: str, head: str) -> str:
    return f"{_quote(tail)} -> {_quote(head)}"


def _quote(*lines: str) -> str:
    r"""A DOT string of several lines; whatever is in the mesh cannot end it early."""
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'


def _indent(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)
