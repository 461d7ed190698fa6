"""Claims on the same addresses or keys: who wins, what is refused, and why.

Every rule looks only at the snapshot, so every node comes to the same answer. Nothing is
refused silently: each refusal becomes a ``Refusal``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kilo.mesh.addressing import covers
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import IPNetwork, Node, Peer


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
    fences = {**owners, **dict.fromkeys(service_cidrs, "the service CIDRs")}
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
    peer: Peer, claimed: dict[IPNetwork, str], fences: Mapping[IPNetwork, str]
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


def _find_objection(network: IPNetwork, fences: Mapping[IPNetwork, str]) -> str:
    if network.prefixlen == 0:
        return "a peer cannot claim every address there is"
    cover = find_cover(network, fences)
    return f"it lies inside {cover} of {fences[cover]}" if cover else ""


def find_cover(network: IPNetwork, networks: Mapping[IPNetwork, str]) -> IPNetwork | None:
    """The narrowest of ``networks`` that contains ``network``, itself included."""
    for prefix in range(network.prefixlen, -1, -1):
        candidate = network.supernet(new_prefix=prefix)
        if candidate in networks:
            return candidate
    return None


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
    granted, refusals = [], []
    for index, (name, networks) in enumerate(claims):
        later = [(other, claim) for other, theirs in claims[index + 1 :] for claim in theirs]
        kept = []
        for network in dict.fromkeys(networks):
            reason = _find_location_objection(network, later, owners, peers)
            if reason:
                refusals.append(_refuse_location_ip(name, network, reason))
            else:
                kept.append(network)
        granted.append(tuple(kept))
    return granted, refusals


def _refuse_location_ip(segment: str, network: IPNetwork, reason: str) -> Refusal:
    return Refusal(
        claimant=f"Segment {segment}",
        field="allowedLocationIPs",
        value=str(network),
        reason=reason,
    )


def _find_location_objection(
    network: IPNetwork,
    others: Iterable[tuple[str, IPNetwork]],
    owners: Mapping[IPNetwork, str],
    peers: Iterable[Peer],
) -> str:
    for name, other in others:
        if overlap(network, other):
            return f"it overlaps {other} of segment {name}"
    if cover := find_cover(network, owners):
        return f"it lies inside {cover} of {owners[cover]}"
    for peer in peers:
        for claim in peer.allowed_ips:
            if overlap(network, claim):
                return f"it overlaps {claim} of peer {peer.name}"
    return ""


def overlap(one: IPNetwork, other: IPNetwork) -> bool:
    """Whether two networks share an address."""
    return covers(one, other) or covers(other, one)
