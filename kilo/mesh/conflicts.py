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


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A claim that was not granted; ``str()`` is one line for an operator."""

    claimant: str
    """Kind and name, ``Peer squat``."""
    field: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.claimant}: {self.field} {self.value} refused: {self.reason}"


def drop_shared_keys(nodes: Sequence[Node]) -> tuple[list[Node], list[Refusal]]:
    """Of several nodes with one public key only the first by name takes part.

    WireGuard knows a device by its key alone: a second one, a cloned disk say, would take the
    first one's packets.
    """
    owners: dict[PublicKey | None, str] = {}
    kept, refusals = [], []
    for node in sorted(nodes, key=lambda node: node.name):
        owner = owners.setdefault(node.public_key, node.name)
        if owner == node.name:
            kept.append(node)
        else:
            refusals.append(_refuse_key(f"Node {node.name}", node.public_key, f"node {owner}"))
    return kept, refusals


def _refuse_key(claimant: str, key: PublicKey | None, owner: str) -> Refusal:
    return Refusal(
        claimant=claimant, field="publicKey", value=str(key), reason=f"it is the key of {owner}"
    )


def grant_first(
    claims: Iterable[tuple[str, str, IPNetwork]],
) -> tuple[dict[IPNetwork, str], list[Refusal]]:
    """Give every network to the first who claims it; claims are (claimant, field, network)."""
    owners: dict[IPNetwork, str] = {}
    refusals = []
    for claimant, field, network in claims:
        owner = owners.setdefault(network, claimant)
        if owner != claimant:
            reason = f"it belongs to {owner}"
            refusals.append(
                Refusal(claimant=claimant, field=field, value=str(network), reason=reason)
            )
    return owners, refusals


def grant_peers(
    peers: Iterable[Peer],
    *,
    keys: Mapping[PublicKey, str],
    owners: Mapping[IPNetwork, str],
    service_cidrs: Iterable[IPNetwork],
) -> tuple[tuple[Peer, ...], list[Refusal]]:
    """The peers that take part, by name, with the allowed IPs they may have.

    ``keys`` and ``owners`` are those of the nodes and segments, which always come first. A peer
    left without any allowed IP takes no part, and so owns no key.
    """
    key_owners = dict(keys)
    claimed: dict[IPNetwork, str] = {}
    fences = NetworkIndex(owners.items())
    for network in service_cidrs:
        fences.add(network, "the service CIDRs")
    granted, refusals = [], []
    for peer in sorted(peers, key=lambda peer: peer.name):
        claimant = f"Peer {peer.name}"
        if owner := key_owners.get(peer.public_key):
            refusals.append(_refuse_key(claimant, peer.public_key, owner))
            continue
        allowed, refused = _grant_allowed_ips(peer, claimed, fences)
        refusals += refused
        if allowed:
            key_owners[peer.public_key] = claimant
            granted.append(replace(peer, allowed_ips=allowed))
    return tuple(granted), refusals


def _grant_allowed_ips(
    peer: Peer, claimed: dict[IPNetwork, str], fences: NetworkIndex
) -> tuple[tuple[IPNetwork, ...], list[Refusal]]:
    claimant = f"Peer {peer.name}"
    allowed, refusals = [], []
    for network in dict.fromkeys(peer.allowed_ips):
        reason = _find_objection(network, fences)
        if not reason and claimed.setdefault(network, claimant) != claimant:
            reason = f"{claimed[network]} claims it too"
        if reason:
            refusals.append(
                Refusal(
                    claimant=claimant, field="spec.allowedIPs", value=str(network), reason=reason
                )
            )
        else:
            allowed.append(network)
    return tuple(allowed), refusals


def _find_objection(network: IPNetwork, fences: NetworkIndex) -> str:
    if network.prefixlen == 0:
        return "a peer cannot claim every address there is"
    return _describe_cover(fences.find_cover(network))


def _describe_cover(cover: tuple[IPNetwork, str] | None) -> str:
    return f"it lies inside {cover[0]} of {cover[1]}" if cover else ""


def grant_location_ips(
    claims: Sequence[tuple[str, Sequence[IPNetwork]]],
    *,
    owners: Mapping[IPNetwork, str],
    peers: Sequence[Peer],
) -> tuple[list[tuple[IPNetwork, ...]], list[Refusal]]:
    """The allowed location IPs each segment keeps; claims are (segment name, networks) in order.

    Where two segments' claims overlap the one later in the order keeps its own: Kilo filters
    the segments one after the other against what is left of the others, and agents of both
    kinds must agree. (Kilo's ``filterAllowedLocationIPs``, 2021.) So each need only be compared
    with the later ones: what overlapped it of the earlier ones is gone.
    """
    others = _Others(owners, peers)
    granted, refusals = [], []
    for name, networks in reversed(claims):
        objections = {network: others.find_objection(network) for network in networks}
        granted.append(tuple(network for network, reason in objections.items() if not reason))
        refusals.append([_refuse_location_ip(name, *one) for one in objections.items() if one[1]])
        others.add_segment(name, networks)
    return granted[::-1], [one for segment in reversed(refusals) for one in segment]


def _refuse_location_ip(segment: str, network: IPNetwork, reason: str) -> Refusal:
    return Refusal(
        claimant=f"Segment {segment}",
        field="allowedLocationIPs",
        value=str(network),
        reason=reason,
    )


class _Others:
    """All who may stand against a segment's allowed location IPs."""

    def __init__(self, owners: Mapping[IPNetwork, str], peers: Iterable[Peer]) -> None:
        self._later = NetworkIndex()
        self._owners = NetworkIndex(owners.items())
        self._peers = NetworkIndex(
            (network, peer.name) for peer in peers for network in peer.allowed_ips
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
            return f"it overlaps {claim[0]} of peer {claim[1]}"
        return ""
