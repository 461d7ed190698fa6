"""Devices that move: which endpoint is right when the device's live one is not the configured one.

WireGuard learns a device's new endpoint before anybody else and goes on with it; putting the
configured one back would cut the device off. ``settle`` therefore bends the desired peers to
what the device already has wherever that is right, so that the diff can stay a plain comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from kilo.mesh.keys import PublicKey, Withheld
from kilo.mesh.model import Endpoint, Node, Peer
from kilo.mesh.state import PeerStats, WireGuardPeer

SESSION_SECONDS = 180.0
"""WireGuard's Reject-After-Time: no session outlives its handshake by more than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The device's statistics, and those of the pass before; times are Unix seconds."""

    now: float
    stats: Mapping[PublicKey, PeerStats] = field(default_factory=lambda: MappingProxyType({}))
    earlier: Mapping[PublicKey, PeerStats] = field(default_factory=lambda: MappingProxyType({}))


def settle(
    desired: Iterable[WireGuardPeer],
    actual: Iterable[WireGuardPeer],
    *,
    observed: Observed,
    configured: Mapping[PublicKey, Endpoint],
) -> frozenset[WireGuardPeer]:
    """The desired peers, with the endpoint and preshared key of the device where those stand.

    ``configured`` holds the endpoints that were desired at the pass before. A new peer whose
    preshared key was withheld (a start from the snapshot on disk) is left out until it is known.
    """
    present = {peer.key: peer for peer in actual}
    settled = (
        _settle_peer(peer, present.get(peer.key), observed, configured.get(peer.public_key))
        for peer in desired
    )
    return frozenset(peer for peer in settled if not isinstance(peer.preshared_key, Withheld))


def _settle_peer(
    peer: WireGuardPeer,
    present: WireGuardPeer | None,
    observed: Observed,
    configured: Endpoint | None,
) -> WireGuardPeer:
    if present is None:
        return peer
    if isinstance(peer.preshared_key, Withheld):
        peer = replace(peer, preshared_key=present.preshared_key)
    if _keeps_live_endpoint(peer, present, observed, configured):
        peer = replace(peer, endpoint=present.endpoint)
    return peer


def _keeps_live_endpoint(
    peer: WireGuardPeer,
    present: WireGuardPeer,
    observed: Observed,
    configured: Endpoint | None,
) -> bool:
    """Keep it, unless it is new configuration that differs, or the device does not answer there."""
    if peer.endpoint is None:
        return True
    stats = observed.stats.get(peer.public_key)
    is_distrusted = stats is not None and stats.endpoint is None
    is_new = configured is not None and configured != peer.endpoint
    if present.endpoint is None or is_distrusted or is_new:
        return False
    return not _is_unanswered(peer.public_key, observed)


def _is_unanswered(key: PublicKey, observed: Observed) -> bool:
    """No session, and since the last pass something was sent and nothing came back.

    An idle device may be silent for hours and must keep its endpoint.
    """
    stats, earlier = observed.stats.get(key), observed.earlier.get(key)
    if stats is None or stats.latest_handshake == 0.0:
        return True
    if observed.now - stats.latest_handshake < SESSION_SECONDS or earlier is None:
        return False
    sent = stats.sent_bytes > earlier.sent_bytes
    return sent and stats.received_bytes == earlier.received_bytes


def distrust_loops(observed: Observed, peers: Iterable[Peer]) -> Observed:
    """Without the live endpoints that lie inside the very tunnel they would be the end of.

    A peer that routes a node's address into the mesh, and then sends its own WireGuard packets
    there, is seen at an address of its own overlay. Answers to that would go round in circles.
    """
    claims = {peer.public_key: peer for peer in peers}
    stats = {
        key: replace(stat, endpoint=None)
        if key in claims and _is_inside(stat.endpoint, claims[key])
        else stat
        for key, stat in observed.stats.items()
    }
    return replace(observed, stats=stats)


def _is_inside(endpoint: Endpoint | None, peer: Peer) -> bool:
    """A peer may well be declared to be found at an address that it is allowed to use."""
    address = endpoint.ip if endpoint is not None else None
    if address is None or endpoint == peer.endpoint:
        return False
    return any(address in network for network in peer.allowed_ips)


def find_live_endpoints(observed: Observed) -> dict[PublicKey, Endpoint]:
    """The endpoints of the devices that have a session with ours."""
    return _find_endpoints(observed, lambda age: age < SESSION_SECONDS)


def find_lost_endpoints(observed: Observed) -> dict[PublicKey, Endpoint]:
    """The endpoints of the devices that had a session, and were last seen there.

    Others may have seen them since: a device that moved behind NAT may no longer get through to
    us, while we hold on to where it was.
    """
    return _find_endpoints(observed, lambda age: age >= SESSION_SECONDS)


def _find_endpoints(
    observed: Observed, matches: Callable[[float], bool]
) -> dict[PublicKey, Endpoint]:
    return {
        key: stat.endpoint
        for key, stat in observed.stats.items()
        if stat.endpoint is not None
        and stat.latest_handshake > 0
        and matches(observed.now - stat.latest_handshake)
    }


def find_discovered_endpoints(
    live: Mapping[PublicKey, Endpoint], nodes: Iterable[Node], peers: Iterable[Peer]
) -> tuple[tuple[PublicKey, Endpoint], ...]:
    """What to tell the others: where the devices behind NAT are seen; sorted by key."""
    behind_nat = {node.public_key for node in nodes if node.spec.persistent_keepalive_seconds} | {
        peer.public_key for peer in peers if peer.persistent_keepalive_seconds
    }
    return tuple(sorted((key, live[key]) for key in live.keys() & behind_nat))


def count_resets(
    before: Mapping[PublicKey, PeerStats], after: Mapping[PublicKey, PeerStats]
) -> int:
    """How many peers that stayed have lost the session they had."""
    return sum(
        1
        for key in before.keys() & after.keys()
        if before[key].latest_handshake > 0 and after[key].latest_handshake == 0
    )
