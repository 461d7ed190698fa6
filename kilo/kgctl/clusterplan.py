"""What two meshes must hold of each other to be linked, as values: no I/O, no clock.

Each segment of the one is a Peer of the other, under a name that stays when another node leads: a
new leader then is one write, and there is no moment at which nobody, or two, claim its networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from kilo.backends.documents import is_object_name
from kilo.kgctl.meshing import is_cluster
from kilo.mesh.addressing import host_network
from kilo.mesh.aspeer import make_peer
from kilo.mesh.model import IPNetwork, Peer
from kilo.mesh.networkindex import NetworkIndex
from kilo.mesh.state import sort_networks
from kilo.mesh.survey import Survey
from kilo.mesh.topology import Segment, is_public
from kilo.mesh.wgconf import describe_segment

MOST_OVERLAPS = 3
"""In one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One of the two meshes, as it is now."""

    label: str
    """What messages call it: its kubeconfig, say."""
    survey: Survey

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Those that have somebody to lead them."""
        return self.survey.topology.segments


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerChange:
    """One write to a store; ``str()`` is one line for an operator."""

    label: str
    name: str
    peer: Peer | None
    """None: it is deleted."""
    is_new: bool = False

    def __str__(self) -> str:
        if self.peer is None:
            return f"- peer {self.name} ({self.label})"
        networks = ", ".join(map(str, self.peer.allowed_ips))
        where = f" at {self.peer.endpoint}" if self.peer.endpoint else ""
        sign = "+" if self.is_new else "~"
        return f"{sign} peer {self.name} ({self.label}): {self.peer.public_key}{where}: {networks}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPlan:
    """What is to be done, or why nothing is."""

    changes: tuple[PeerChange, ...] = ()
    refusals: tuple[str, ...] = ()
    """Why the two must not be linked as they are; there are no changes then."""
    notes: tuple[str, ...] = ()


def plan_link(link: str, one: View, other: View) -> LinkPlan:
    """Compute a pass over both stores."""
    refusals = (*find_overlaps(link, one, other), *find_shared_keys(link, one, other))
    if refusals:
        return LinkPlan(refusals=refusals)
    changes: list[PeerChange] = []
    notes: list[str] = []
    for source, target in ((one, other), (other, one)):
        notes += _list_problems(source, target)
        if not source.segments:
            notes.append(f"{source.label}: no node is ready there, and its peers stay as they are")
            continue
        wanted = make_peers(link, source, target)
        changes += diff_peers(target.label, wanted, list_own(link, target.survey.snapshot.peers))
        notes += _list_shared_addresses(link, source, target)
    return LinkPlan(changes=tuple(changes), notes=tuple(notes))


def _list_problems(view: View, other: View) -> Iterator[str]:
    for problem in view.survey.snapshot.problems:
        yield f"{view.label}: {problem}"
    if is_cluster(view.survey.snapshot) and not view.survey.topology.settings.service_cidrs:
        yield (
            f"{view.label}: its service CIDR is not known, so its Services are not reached, nor is"
            f" it compared with what {other.label} has: name it by --service-cidr, or"
            " --to-service-cidr, or in the settings of the mesh"
        )


# Which Peers are the link's.


def name_peer(link: str, segment: Segment) -> str:
    """What the segment is called among the peers of the other mesh, whoever leads it."""
    kind, _, name = segment.name.partition(":")
    if kind == "location" and not name:
        return f"link.{link}"
    # A node's name may have dots, a location's that is used as it is has none: they cannot meet.
    chosen = f"link.{link}.node.{name}" if kind == "node" else f"link.{link}.{name}"
    if is_object_name(chosen) and ("." not in name or kind == "node"):
        return chosen
    return f"link.{link}.{hashlib.sha256(segment.name.encode()).hexdigest()[:10]}"


def is_own(link: str, name: str) -> bool:
    """Whether a peer of that name is this link's making."""
    return name == f"link.{link}" or name.startswith(f"link.{link}.")


def list_own(link: str, peers: Iterable[Peer]) -> dict[str, Peer]:
    """Those that are the link's, by name."""
    return {peer.name: peer for peer in peers if is_own(link, peer.name)}


def make_peers(link: str, source: View, target: View) -> dict[str, Peer]:
    """Every segment of ``source`` as a peer of ``target``, by name; one carries the services."""
    held = list_own(link, target.survey.snapshot.peers)
    services = source.survey.topology.settings.service_cidrs
    carrier = choose_carrier(link, source, held)
    shared = _find_shared(link, source, target)
    peers = {}
    for segment in source.segments:
        conf = describe_segment(source.survey.topology, segment)
        networks = [network for network in conf.allowed_ips if network not in shared]
        networks += services if segment is carrier else ()
        name = name_peer(link, segment)
        allowed = tuple(sort_networks(set(networks)))
        peers[name] = make_peer(name, replace(conf, allowed_ips=allowed))
    return peers


def choose_carrier(link: str, source: View, held: Mapping[str, Peer]) -> Segment | None:
    """The segment that the services of ``source`` are reached through: the one they are now, else
    one that can be called from anywhere.
    """
    services = set(source.survey.topology.settings.service_cidrs)

    def carries(segment: Segment) -> bool:
        peer = held.get(name_peer(link, segment))
        return peer is not None and not services.isdisjoint(peer.allowed_ips)

    return min(
        source.segments,
        key=lambda segment: (not carries(segment), not is_public(segment.leader.endpoint)),
        default=None,
    )


def diff_peers(
    label: str, wanted: Mapping[str, Peer], held: Mapping[str, Peer]
) -> Iterator[PeerChange]:
    """What makes a store hold exactly these; what is as it should be is not written."""
    for name in sorted(held.keys() - wanted.keys()):
        yield PeerChange(label=label, name=name, peer=None)
    for name, peer in sorted(wanted.items()):
        before = held.get(name)
        if before is None or _canonical(before) != peer:
            yield PeerChange(label=label, name=name, peer=peer, is_new=before is None)


def _canonical(peer: Peer) -> Peer:
    networks = tuple(sort_networks(set(peer.allowed_ips)))
    return replace(peer, allowed_ips=networks, origin="")


# What must not be in both.


def find_overlaps(link: str, one: View, other: View) -> tuple[str, ...]:
    """A line for what both meshes have, if they do; nothing may be linked then."""
    found = [*_match(one, other, link), *_match_hosts(one, other), *_match_hosts(other, one)]
    if not found:
        return ()
    more = len(found) - MOST_OVERLAPS
    rest = f"; and {more} more" if more > 0 else ""
    return ("; ".join(found[:MOST_OVERLAPS]) + rest,)


def _match(one: View, other: View, link: str) -> Iterator[str]:
    """What either would reach through the link, against all that the other has."""
    mine, theirs = list(_list_networks(one)), list(_list_networks(other))
    yield from _compare(one, other, mine, [*theirs, *_list_guests(other, link)])
    yield from _compare(other, one, theirs, _list_guests(one, link))


def _match_hosts(one: View, other: View) -> Iterator[str]:
    """Packets for a host of its own, and those of its tunnels, must not go through the link."""
    hosts = (*_list_hosts(other), *_list_endpoints(other))
    yield from _compare(one, other, _list_networks(one), hosts)


def _compare(
    one: View,
    other: View,
    mine: Iterable[tuple[IPNetwork, str]],
    theirs: Iterable[tuple[IPNetwork, str]],
) -> Iterator[str]:
    index = NetworkIndex(theirs)
    for network, what in mine:
        if found := index.find_overlap(network):
            yield f"{one.label}: {what} overlaps {found[1]} of {other.label}"


def _list_networks(view: View) -> Iterator[tuple[IPNetwork, str]]:
    topology = view.survey.topology
    for node in view.survey.snapshot.nodes:
        for network in node.pod_subnets:
            yield network, f"pod subnet {network} of node {node.name}"
        # Those that were declared: the mesh itself drops one that a peer of the link has as well.
        for network in node.spec.allowed_location_ips:
            yield network, f"allowed location IP {network} of node {node.name}"
    for network in topology.settings.service_cidrs:
        yield network, f"service CIDR {network}"
    for network in topology.settings.subnets:
        yield network, f"Kilo subnet {network}"


def _list_guests(view: View, link: str) -> Iterator[tuple[IPNetwork, str]]:
    """What peers have that are none of the link's."""
    for peer in view.survey.snapshot.peers:
        if not is_own(link, peer.name):
            for network in peer.allowed_ips:
                yield network, f"allowed IP {network} of peer {peer.name}"


def _list_hosts(view: View) -> Iterator[tuple[IPNetwork, str]]:
    for node in view.survey.topology.nodes:
        for interface in node.internal_ips:
            network = host_network(interface.ip)
            yield network, f"internal IP {interface.ip} of node {node.name}"


def _list_endpoints(view: View) -> Iterator[tuple[IPNetwork, str]]:
    for node in view.survey.topology.nodes:
        address = node.endpoint.ip if node.endpoint else None
        if address is not None:
            yield host_network(address), f"endpoint {node.endpoint} of node {node.name}"


def _find_shared(link: str, source: View, target: View) -> dict[IPNetwork, str]:
    """Addresses of hosts that the other has too, and as what, be it that a peer of it has them:
    private networks are alike everywhere.
    """
    index = NetworkIndex((*_list_guests(target, link), *_list_hosts(target)))
    found = ((network, index.find_overlap(network)) for network, _ in _list_hosts(source))
    return {network: there[1] for network, there in found if there}


def _list_shared_addresses(link: str, source: View, target: View) -> Iterator[str]:
    shared = _find_shared(link, source, target)
    for network, what in _list_hosts(source):
        if network in shared:
            yield (
                f"{source.label}: {what} is not reached through the link: {target.label} has it as"
                f" {shared[network]}"
            )


def find_shared_keys(link: str, one: View, other: View) -> tuple[str, ...]:
    """Devices that stand in both already, and not by this link's doing."""
    return (*_match_keys(link, one, other), *_match_keys(link, other, one))


def _match_keys(link: str, one: View, other: View) -> Iterator[str]:
    nodes = {node.public_key: node.name for node in one.survey.topology.nodes}
    for node in other.survey.topology.nodes:
        if node.public_key in nodes:
            yield (
                f"node {nodes[node.public_key]} of {one.label} is node {node.name} of"
                f" {other.label}: they are one mesh"
            )
    for peer in other.survey.snapshot.peers:
        if peer.public_key in nodes and not is_own(link, peer.name):
            yield (
                f"peer {peer.name} of {other.label} is node {nodes[peer.public_key]} of"
                f" {one.label}, and not this link's making: kgctl delete peer {peer.name}"
            )


def find_strangers(link: str, one: View, other: View) -> tuple[str, ...]:
    """Whether the link's peers are of another mesh altogether: its name is in use there."""
    return (*_match_strangers(link, one, other), *_match_strangers(link, other, one))


def _knows(link: str, source: View, target: View) -> bool:
    """Whether a peer of the link in ``target`` is a node of ``source``, be it ready or not."""
    keys = {node.public_key for node in source.survey.snapshot.nodes}
    own = list_own(link, target.survey.snapshot.peers).values()
    return any(peer.public_key in keys for peer in own)


def _match_strangers(link: str, source: View, target: View) -> Iterator[str]:
    own = list_own(link, target.survey.snapshot.peers).values()
    if not own:
        return
    index = NetworkIndex(_list_networks(source))
    networks = [network for peer in own for network in peer.allowed_ips]
    is_elsewhere = networks and not any(map(index.find_overlap, networks))
    # Spokes of a hub may be numbered alike, so keys count too; but not those of one side alone: all
    # nodes of a mesh that is linked may have been replaced since.
    if is_elsewhere or not (_knows(link, source, target) or _knows(link, target, source)):
        yield (
            f"{target.label}: link {link} is there already, and with another mesh than"
            f" {source.label}: choose another --name, or kgctl cluster unlink first"
        )
