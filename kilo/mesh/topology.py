"""Segments, leaders, and who is reached through whom: the same on every node.

Spec section 4 to the letter, since agents of both kinds may share a mesh; ``cross`` is the
one addition, and a setting of the whole mesh.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Network, ip_network
from itertools import chain
from types import MappingProxyType

from kilo.mesh.addressing import allocate, host_network
from kilo.mesh.conflicts import (
    Claim,
    Claimant,
    Refusal,
    drop_shared_keys,
    grant_first,
    grant_location_ips,
    grant_peers,
    leave_out_unknown_stores,
)
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import (
    Endpoint,
    Granularity,
    IPAddress,
    IPInterface,
    IPNetwork,
    Node,
    Peer,
    Settings,
    find_address,
)

PRIVATE_IPV4 = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
NOT_PUBLIC_IPV6 = IPv6Network("fd00::/16")
"""As narrow as Kilo has it, not the whole of fd00::/8: leaders must come out the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One unit of the mesh: the nodes behind one tunnel."""

    name: str
    neighbourhood: str
    """Segments of one neighbourhood reach each other without a tunnel; only ``cross`` has any
    with more than one segment."""
    nodes: tuple[Node, ...]
    """Sorted by name."""
    leader: Node
    wireguard_ips: tuple[IPInterface, ...]
    """One of each Kilo subnet, with the subnet's prefix length."""
    allowed_ips: tuple[IPNetwork, ...]
    """What the segment owns: pod subnets, internal IPs, WireGuard IPs."""
    allowed_location_ips: tuple[IPNetwork, ...]

    @property
    def key(self) -> PublicKey:
        """The leader's public key, by which the others know the segment."""
        return required_key(self.leader)

    @property
    def pod_owners(self) -> Mapping[IPNetwork, Node]:
        """The pod subnets the segment was granted, each with its owner: the first who claims it."""
        granted = frozenset(self.allowed_ips)
        owners: dict[IPNetwork, Node] = {}
        for node in self.nodes:
            for network in node.pod_subnets:
                if network in granted:
                    owners.setdefault(network, node)
        return owners

    @property
    def wireguard_networks(self) -> tuple[IPNetwork, ...]:
        """The WireGuard addresses as /32 and /128."""
        return tuple(host_network(interface) for interface in self.wireguard_ips)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The whole mesh as every node computes it."""

    settings: Settings
    segments: tuple[Segment, ...]
    """Sorted by name; the i-th has the i-th WireGuard address."""
    peers: tuple[Peer, ...]
    """Those that take part, sorted by name, with the allowed IPs they were granted."""
    refusals: tuple[Refusal, ...]
    discovered_endpoints: Mapping[PublicKey, Endpoint] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """Where nodes have seen devices behind NAT; the first public one in segment order counts."""

    def find_segment(self, node_name: str) -> Segment | None:
        """The segment that the node belongs to."""
        return next((s for s in self.segments if any(n.name == node_name for n in s.nodes)), None)

    @property
    def nodes(self) -> Iterator[Node]:
        """All nodes, in segment order."""
        return (node for segment in self.segments for node in segment.nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A segment before addresses and claims are settled."""

    name: str
    neighbourhood: str
    nodes: tuple[Node, ...]


def build_topology(nodes: Iterable[Node], peers: Iterable[Peer], settings: Settings) -> Topology:
    """Compute the mesh from the nodes that are ready and the peers that are declared.

    ``MeshError`` if the segments do not fit the Kilo subnet; nothing should be changed then.
    """
    known, known_peers, refusals = leave_out_unknown_stores(list(nodes), list(peers))
    members, refused = drop_shared_keys(known)
    refusals += refused
    drafts = _draft_segments(members, settings.granularity)
    addresses = allocate(settings.subnets, len(drafts))
    tunnels = [
        _list_wireguard_claims(draft, interfaces)
        for draft, interfaces in zip(drafts, addresses, strict=True)
    ]
    claims = [_list_node_claims(draft) for draft in drafts]
    # The WireGuard addresses before all others.
    owners, refused = grant_first(chain(*tunnels, *claims))
    refusals += refused
    keys = {required_key(node): node for node in members}
    granted, refused = grant_peers(
        known_peers, keys=keys, owners=owners, service_cidrs=settings.service_cidrs
    )
    refusals += refused
    location_ips, refused = grant_location_ips(
        [(draft.name, _list_location_ips(draft)) for draft in drafts], owners=owners, peers=granted
    )
    segments = tuple(
        _finish_segment(draft, interfaces, ips, _list_granted(tunnel, own, owners))
        for draft, interfaces, ips, tunnel, own in zip(
            drafts, addresses, location_ips, tunnels, claims, strict=True
        )
    )
    return Topology(
        settings=settings,
        segments=segments,
        peers=granted,
        refusals=(*refusals, *refused),
        discovered_endpoints=_gather_discovered_endpoints(segments),
    )


def required_key(node: Node) -> PublicKey:
    """The key of a node that takes part, and so has one."""
    if node.public_key is None:
        raise ValueError(f"node {node.name} has no public key, so it is not ready")
    return node.public_key


def is_public(endpoint: Endpoint | None) -> bool:
    """Whether a leader with this endpoint can be reached from anywhere (spec section 4.2).

    A DNS name counts as public: it may resolve differently on every node, and all must agree.
    """
    return endpoint is not None and _is_public_host(endpoint.host)


@lru_cache(maxsize=1 << 15)
def _is_public_host(host: str) -> bool:
    """Remembered: every change of the mesh asks it of every node."""
    address = find_address(host)
    return address is None or is_public_address(address)


def is_public_address(address: IPAddress) -> bool:
    """Every IPv4 address outside RFC 1918 and every IPv6 address outside fd00::/16."""
    if address.version == 4:
        return not any(address in network for network in PRIVATE_IPV4)
    return address not in NOT_PUBLIC_IPV6


def find_leader(nodes: Sequence[Node]) -> Node:
    """The leader among nodes sorted by name: volunteers first, public endpoints first."""
    return min(nodes, key=lambda node: (not node.spec.leader, not is_public(node.endpoint)))


def _draft_segments(nodes: Iterable[Node], granularity: Granularity) -> list[_Draft]:
    """Segments sorted by name; their nodes stay in the order given, which is by name too."""
    members: dict[tuple[str, str], list[Node]] = {}
    for node in nodes:
        members.setdefault(_place(node, granularity), []).append(node)
    return [
        _Draft(
            name=name,
            neighbourhood=neighbourhood,
            nodes=tuple(group),
        )
        for (name, neighbourhood), group in sorted(members.items())
    ]


def _place(node: Node, granularity: Granularity) -> tuple[str, str]:
    """The names of the segment and the neighbourhood of a node."""
    alone = f"node:{node.name}"
    if granularity is Granularity.FULL or not node.internal_ips:
        return alone, alone
    location = f"location:{node.spec.location}"
    return (location if granularity is Granularity.LOCATION else alone), location


def _list_wireguard_claims(draft: _Draft, interfaces: Iterable[IPInterface]) -> list[Claim]:
    claimant = Claimant(name=f"Segment {draft.name}")
    return [(claimant, "WireGuard IP", host_network(interface)) for interface in interfaces]


def _list_node_claims(draft: _Draft) -> list[Claim]:
    """What the nodes of a segment claim for their own."""
    claims: list[Claim] = []
    for node in draft.nodes:
        claimant = Claimant.of(node)
        claims += ((claimant, "internalIP", host_network(one)) for one in node.internal_ips)
        claims += ((claimant, "podSubnets", subnet) for subnet in node.pod_subnets)
    return claims


def _list_granted(
    tunnel: Iterable[Claim], claims: Iterable[Claim], owners: Mapping[IPNetwork, Claimant]
) -> tuple[IPNetwork, ...]:
    """What a segment has of what it and its nodes claim; its WireGuard addresses in any case."""
    granted = [network for _, _, network in tunnel]
    granted += (network for claimant, _, network in claims if owners[network] is claimant)
    return tuple(dict.fromkeys(granted))


def _list_location_ips(draft: _Draft) -> list[IPNetwork]:
    return [network for node in draft.nodes for network in node.spec.allowed_location_ips]


def _finish_segment(
    draft: _Draft,
    addresses: tuple[IPInterface, ...],
    location_ips: tuple[IPNetwork, ...],
    granted: tuple[IPNetwork, ...],
) -> Segment:
    return Segment(
        name=draft.name,
        neighbourhood=draft.neighbourhood,
        nodes=draft.nodes,
        leader=find_leader(draft.nodes),
        wireguard_ips=addresses,
        allowed_ips=granted,
        allowed_location_ips=location_ips,
    )


def _gather_discovered_endpoints(segments: Iterable[Segment]) -> Mapping[PublicKey, Endpoint]:
    """The first public endpoint seen, else the first: who shares a LAN with a device behind NAT
    sees it at an address that is of no use to the others.
    """
    found: dict[PublicKey, Endpoint] = {}
    for segment in segments:
        for node in segment.nodes:
            for key, endpoint in node.discovered_endpoints:
                if key not in found or is_public(endpoint) > is_public(found[key]):
                    found[key] = endpoint
    return MappingProxyType(found)
