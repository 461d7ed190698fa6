"""What two meshes differ in, cut down to what one node's state depends on.

To render a node takes as long as its mesh is large, and of a mesh all nodes are rendered; but a
change is mostly about one or two of them. What is the same in both meshes, and reached from the
node in the same way, adds the same to both states, and can be left out of both: the step from one
to the other stays what it is. Where that is not certain nothing is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

from kilo.mesh.addressing import host_network
from kilo.mesh.barriers import list_node_places
from kilo.mesh.conflicts import find_foreign_node
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import IPNetwork, Node, Peer, Snapshot
from kilo.mesh.networkindex import NetworkIndex
from kilo.mesh.survey import Survey
from kilo.mesh.topology import Segment, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two meshes, to be compared for one node."""

    before: Survey
    after: Survey


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two meshes, and what of them is not the same in both."""

    whole: Pair
    segments: frozenset[str]
    """Names of segments that are not the same, or are in one of them only."""
    peers: frozenset[str]
    nodes: frozenset[str]
    neighbourhoods: Mapping[str, frozenset[str]]
    """Node -> the segments that it reaches without a tunnel; of the nodes that may be narrowed."""
    moves_networks: bool
    """Whether somebody has other networks; if nobody, all firewalls of such nodes stay."""

    @classmethod
    def find(cls, before: Survey, after: Survey) -> Self:
        """Compare them. Takes as long as the meshes are large."""
        whole = Pair(before=before, after=after)
        old, new = before.topology, after.topology
        segments = _find_changed(old.segments, new.segments) | {
            segment.name for segment in old.segments if _is_seen_elsewhere(segment.key, old, new)
        }
        nodes = _find_changed(before.snapshot.nodes, after.snapshot.nodes)
        near = _list_lasting(old, new, segments) if _is_separable(whole, nodes) else {}
        return cls(
            whole=whole,
            segments=segments,
            peers=_find_changed(old.peers, new.peers)
            | {peer.name for peer in old.peers if _is_seen_elsewhere(peer.public_key, old, new)},
            nodes=nodes,
            neighbourhoods=near,
            moves_networks=_list_networks(old) != _list_networks(new),
        )

    def narrow(self, name: str) -> Pair:
        """Both meshes with all that the node called ``name`` can see a difference in."""
        near = self.neighbourhoods.get(name)
        if near is None or name in self.nodes:
            return self.whole
        kept = near | self.segments
        return Pair(
            before=self._cut(self.whole.before, name, kept),
            after=self._cut(self.whole.after, name, kept),
        )

    def _cut(self, survey: Survey, name: str, segments: frozenset[str]) -> Survey:
        topology, snapshot = survey.topology, survey.snapshot
        nodes = self.nodes | {name}
        return replace(
            survey,
            topology=replace(
                topology,
                segments=tuple(one for one in topology.segments if one.name in segments),
                peers=tuple(one for one in topology.peers if one.name in self.peers),
            ),
            snapshot=replace(
                snapshot, nodes=tuple(node for node in snapshot.nodes if node.name in nodes)
            ),
        )


def _find_changed(
    before: Iterable[Segment | Peer | Node], after: Iterable[Segment | Peer | Node]
) -> frozenset[str]:
    old, new = ({one.name: one for one in side} for side in (before, after))
    return frozenset(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def _is_seen_elsewhere(key: PublicKey, before: Topology, after: Topology) -> bool:
    return before.discovered_endpoints.get(key) != after.discovered_endpoints.get(key)


def _list_lasting(
    before: Topology, after: Topology, changed: frozenset[str]
) -> dict[str, frozenset[str]]:
    """Those that are the same in both: who has lost a neighbour sees a difference, too."""
    old = dict(_list_neighbourhoods(before, changed))
    new = dict(_list_neighbourhoods(after, changed))
    return {name: near for name, near in new.items() if old.get(name) == near}


def _list_neighbourhoods(
    topology: Topology, changed: frozenset[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    """Of every node near which nothing changes."""
    groups: dict[str, list[Segment]] = {}
    for segment in topology.segments:
        groups.setdefault(segment.neighbourhood, []).append(segment)
    for group in groups.values():
        names = frozenset(segment.name for segment in group)
        if names.isdisjoint(changed):
            yield from ((node.name, names) for segment in group for node in segment.nodes)


def _list_networks(topology: Topology) -> list[tuple[object, ...]]:
    """All that firewalls are made of."""
    segments = [(one.name, one.allowed_ips, one.allowed_location_ips) for one in topology.segments]
    return [*segments, *((peer.name, peer.allowed_ips) for peer in topology.peers)]


# Whether what is left out has nothing to do with what is kept.


def _is_separable(whole: Pair, changed: frozenset[str]) -> bool:
    sides = (whole.before, whole.after)
    return (
        whole.before.topology.settings == whole.after.topology.settings
        and all(_has_own_names(side.snapshot) for side in sides)
        # Whose agents follow others is judged by all.
        and not any(find_foreign_node(side.topology.nodes) for side in sides)
        # Of two routes to one network the first in order is made.
        and all(_has_own_networks(side.topology) for side in sides)
        and _has_own_barriers(sides, changed)
    )


def _has_own_names(snapshot: Snapshot) -> bool:
    return all(
        len({one.name for one in group}) == len(group) for group in (snapshot.nodes, snapshot.peers)
    )


def _has_own_networks(topology: Topology) -> bool:
    """Whether no network is two segments' or peers'."""
    counts = Counter[IPNetwork]()
    for segment in topology.segments:
        own = (*segment.allowed_ips, *segment.allowed_location_ips, *segment.wireguard_networks)
        counts.update(set(own))
    for peer in topology.peers:
        counts.update(set(peer.allowed_ips))
    return counts.total() == len(counts)


def _has_own_barriers(sides: Iterable[Survey], changed: frozenset[str]) -> bool:
    """Whether no barrier depends both on nodes that change and on others: by a network of both, or
    by one in which a host of the other lives.
    """
    nodes = [node for side in sides for node in side.snapshot.nodes]
    subnets = {net for side in sides for net in side.topology.settings.subnets}
    theirs = [node for node in nodes if node.name in changed]
    others = [node for node in nodes if node.name not in changed]
    networks = frozenset(network for node in theirs for network in node.pod_subnets)
    rest = frozenset(network for node in others for network in node.pod_subnets) | subnets
    return (
        networks.isdisjoint(rest)
        and not _is_inhabited(networks, others)
        and not _is_inhabited(rest, theirs)
    )


def _is_inhabited(networks: Iterable[IPNetwork], nodes: Iterable[Node]) -> bool:
    index = NetworkIndex((network, "") for network in networks)
    return any(index.find_cover(host_network(place)) for place in list_node_places(nodes))
