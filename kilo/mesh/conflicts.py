"""Claims on the same addresses or keys: who wins, what is refused, and why.

Every rule looks only at the snapshot, so every node comes to the same answer. Nothing is
refused silently: each refusal becomes a ``Refusal``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kilo.mesh.keys import PublicKey
from kilo.mesh.model import IPNetwork, Node, Peer
from kilo.mesh.networkindex import NetworkIndex

MOST_NAMES = 5
"""In one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A claim that was not granted; ``str()`` is one line for an operator."""

    claimant: str
    """Kind and name, ``Peer squat``."""
    field: str
    value: str
    reason: str
    origin: str = ""
    """The store that the claimant stands in, where there are several."""

    def __str__(self) -> str:
        claimant = Claimant(name=self.claimant, origin=self.origin)
        return f"{claimant}: {self.field} {self.value} refused: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimant:
    """Who claims something; ``str()`` names it, with its store where there are several."""

    name: str
    """Kind and name, ``Peer squat``."""
    origin: str = ""

    @classmethod
    def of(cls, one: Node | Peer) -> Claimant:
        """A node or a peer."""
        kind = "Node" if isinstance(one, Node) else "Peer"
        return cls(name=f"{kind} {one.name}", origin=one.origin)

    def __str__(self) -> str:
        return f"{self.name} ({self.origin})" if self.origin else self.name

    def refuse(self, field: str, value: object, reason: str) -> Refusal:
        """Its claim on that value is not granted."""
        return Refusal(
            claimant=self.name, field=field, value=str(value), reason=reason, origin=self.origin
        )


Claim = tuple[Claimant, str, IPNetwork]
"""Who claims which network for its own, and in which field."""


def drop_shared_keys(nodes: Sequence[Node]) -> tuple[list[Node], list[Refusal]]:
    """Of several nodes with one public key only the first by name takes part.

    WireGuard knows a device by its key alone: a second one, a cloned disk say, would take the
    first one's packets.
    """
    owners: dict[PublicKey | None, Node] = {}
    kept, refusals = [], []
    for node in sorted(nodes, key=lambda node: node.name):
        owner = owners.setdefault(node.public_key, node)
        if owner is node:
            kept.append(node)
        else:
            refusals.append(_refuse_key(Claimant.of(node), node.public_key, name_in_text(owner)))
    return kept, refusals


def name_in_text(one: Node | Peer) -> Claimant:
    """``node berlin``, with its store: as it is called in the middle of a sentence."""
    claimant = Claimant.of(one)
    return replace(claimant, name=claimant.name[0].lower() + claimant.name[1:])


def _refuse_key(claimant: Claimant, key: PublicKey | None, owner: Claimant) -> Refusal:
    return claimant.refuse("publicKey", key, f"it is the key of {owner}")


def find_foreign_node(nodes: Iterable[Node]) -> Node | None:
    """The first by name of those where Kilo's own agent runs, which the others have to follow."""
    foreign = (node for node in nodes if node.has_foreign_agent)
    return min(foreign, key=lambda node: node.name, default=None)


def leave_out_unknown_stores(
    nodes: Sequence[Node], peers: Sequence[Peer]
) -> tuple[Sequence[Node], Sequence[Peer], list[Refusal]]:
    """Where Kilo's own agents take part, what stands in other stores than theirs does not.

    They read their cluster and know of no other store: with its nodes they would count other
    segments, and so have other addresses and leaders than we (spec section 12).
    """
    foreign = find_foreign_node(nodes)
    if foreign is None:
        return nodes, peers, []
    everything: list[Node | Peer] = [*nodes, *peers]
    others = {one.origin for one in everything} - {foreign.origin}
    refusals = [
        Claimant(name=f"Store {origin}").refuse(
            "nodes and peers",
            _list_names([one.name for one in everything if one.origin == origin]),
            f"the agent of {Claimant.of(foreign)} is Kilo's own or too old and knows of no other"
            " store than its own",
        )
        for origin in sorted(others)
    ]
    return (
        [node for node in nodes if node.origin == foreign.origin],
        [peer for peer in peers if peer.origin == foreign.origin],
        refusals,
    )


def _list_names(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def grant_first(
    claims: Iterable[Claim],
) -> tuple[dict[IPNetwork, Claimant], list[Refusal]]:
    """Give every network to the first who claims it."""
    owners: dict[IPNetwork, Claimant] = {}
    refusals = []
    for claimant, field, network in claims:
        owner = owners.setdefault(network, claimant)
        if owner is not claimant and owner != claimant:
            refusals.append(claimant.refuse(field, network, f"it belongs to {owner}"))
    return owners, refusals


def grant_peers(
    peers: Iterable[Peer],
    *,
    keys: Mapping[PublicKey, Node],
    owners: Mapping[IPNetwork, Claimant],
    service_cidrs: Iterable[IPNetwork],
) -> tuple[tuple[Peer, ...], list[Refusal]]:
    """The peers that take part, by name, with the allowed IPs they may have.

    ``keys`` and ``owners`` are those of the nodes and segments, which always come first. A peer
    left without any allowed IP takes no part, and so owns no key.
    """
    key_owners: dict[PublicKey, Peer] = {}
    claimed: dict[IPNetwork, Claimant] = {}
    fences: NetworkIndex[Claimant | str] = NetworkIndex(owners)
    for network in service_cidrs:
        fences.add(network, "the service CIDRs")
    granted, refusals = [], []
    for peer in sorted(peers, key=lambda peer: peer.name):
        claimant = Claimant.of(peer)
        if node := keys.get(peer.public_key):
            refusals.append(_refuse_key(claimant, peer.public_key, name_in_text(node)))
            continue
        if other := key_owners.get(peer.public_key):
            refusals.append(_refuse_key(claimant, peer.public_key, Claimant.of(other)))
            continue
        allowed, refused = _grant_allowed_ips(peer, claimed, fences)
        refusals += refused
        if allowed:
            key_owners[peer.public_key] = peer
            granted.append(replace(peer, allowed_ips=allowed))
    return tuple(granted), refusals


def _grant_allowed_ips(
    peer: Peer, claimed: dict[IPNetwork, Claimant], fences: NetworkIndex[Claimant | str]
) -> tuple[tuple[IPNetwork, ...], list[Refusal]]:
    claimant = Claimant.of(peer)
    allowed, refusals = [], []
    for network in dict.fromkeys(peer.allowed_ips):
        reason = _find_objection(network, fences)
        if not reason and claimed.setdefault(network, claimant) != claimant:
            reason = f"{claimed[network]} claims it too"
        if reason:
            refusals.append(claimant.refuse("spec.allowedIPs", network, reason))
        else:
            allowed.append(network)
    return tuple(allowed), refusals


def _find_objection(network: IPNetwork, fences: NetworkIndex[Claimant | str]) -> str:
    if network.prefixlen == 0:
        return "a peer cannot claim every address there is"
    return _describe_cover(fences.find_cover(network))


def _describe_cover(cover: tuple[IPNetwork, object] | None) -> str:
    return f"it lies inside {cover[0]} of {cover[1]}" if cover else ""


def grant_location_ips(
    claims: Sequence[tuple[str, Sequence[IPNetwork]]],
    *,
    owners: Mapping[IPNetwork, Claimant],
    peers: Sequence[Peer],
) -> tuple[list[tuple[IPNetwork, ...]], list[Refusal]]:
    """The allowed location IPs each segment keeps; claims are (segment name, networks) in order.

    Where two segments' claims overlap the one later in the order keeps its own: Kilo filters
    the segments one after the other against what is left of the others, and agents of both
    kinds must agree. (Kilo's ``filterAllowedLocationIPs``, 2021.) So each need only be compared
    with the later ones: what overlapped it of the earlier ones is gone.
    """
    if not any(networks for _, networks in claims):
        return [()] * len(claims), []
    others = _Others(owners, peers)
    granted, refusals = [], []
    for name, networks in reversed(claims):
        objections = {network: others.find_objection(network) for network in networks}
        granted.append(tuple(network for network, reason in objections.items() if not reason))
        refusals.append([_refuse_location_ip(name, *one) for one in objections.items() if one[1]])
        others.add_segment(name, networks)
    return granted[::-1], [one for segment in reversed(refusals) for one in segment]


def _refuse_location_ip(segment: str, network: IPNetwork, reason: str) -> Refusal:
    return Claimant(name=f"Segment {segment}").refuse("allowedLocationIPs", network, reason)


class _Others:
    """All who may stand against a segment's allowed location IPs."""

    def __init__(self, owners: Mapping[IPNetwork, Claimant], peers: Iterable[Peer]) -> None:
        self._later: NetworkIndex[str] = NetworkIndex()
        self._owners = NetworkIndex(owners)
        self._peers = NetworkIndex(
            {network: name_in_text(peer) for peer in peers for network in peer.allowed_ips}
        )

    def add_segment(self, name: str, networks: Iterable[IPNetwork]) -> None:
        """Its claims stand against those of the segments before it."""
        for network in networks:
            self._later.add(network, name)

    def find_objection(self, network: IPNetwork) -> str:
        """Why it cannot be had; empty if it can."""
        if other := self._later.find_overlap(network):
            return f"it overlaps {other[0]} of segment {other[1]}"
        if cover := self._owners.find_cover(network):
            return _describe_cover(cover)
        if claim := self._peers.find_overlap(network):
            return f"it overlaps {claim[0]} of {claim[1]}"
        return ""
