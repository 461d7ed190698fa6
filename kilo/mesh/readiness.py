"""Who takes part, given the time.

Nobody's wall clocks are compared, with one exception: a stamp that is already old when it is
first seen counts as old. From then on a node is live if its stamp *changed* lately, on a
monotonic clock that the caller stops while the store cannot be heard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kilo.mesh.model import Node, Snapshot

READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """A node's last stamp (Unix seconds by its own clock), and when we saw it change."""

    stamp: int
    seen_at: float
    """Seconds on the caller's monotonic clock."""


def note_heartbeats(
    known: Mapping[str, Heartbeat], last_seen: Mapping[str, int], *, now: float, wall: float
) -> dict[str, Heartbeat]:
    """Bring what is known up to the stamps just heard.

    ``now`` is the caller's monotonic clock, ``wall`` Unix seconds, both in seconds.
    """
    return {
        name: _note(known.get(name), stamp, now=now, wall=wall) for name, stamp in last_seen.items()
    }


def _note(known: Heartbeat | None, stamp: int, *, now: float, wall: float) -> Heartbeat:
    if known is None:
        return Heartbeat(stamp=stamp, seen_at=now - max(0.0, wall - stamp))
    return known if known.stamp == stamp else Heartbeat(stamp=stamp, seen_at=now)


def tell_time(last_seen: Mapping[str, int], *, wall: float, local: str) -> float:
    """Unix seconds, to judge the stamps of nodes first seen now: the own clock ``wall``, unless it
    is ahead of everybody else's. By a wrong clock of its own a host that starts would take all
    others for dead.
    """
    others = (stamp for name, stamp in last_seen.items() if name != local)
    return min(wall, max(others, default=float("inf")))


def find_ready_nodes(
    snapshot: Snapshot, heartbeats: Mapping[str, Heartbeat], *, now: float, local: str
) -> tuple[Node, ...]:
    """The nodes that have a key, an endpoint and a fresh heartbeat, in the snapshot's order.

    The local node is always live to itself; a node with a declared key that never reported
    needs no heartbeat. Kilo's own agents leave out a node without a pod subnet; where there are
    any, so do we, since all must come to the same answer.
    """
    ready = tuple(
        node
        for node in snapshot.nodes
        if node.public_key is not None
        and node.endpoint is not None
        and (node.name == local or _is_live(node, heartbeats.get(node.name), now))
    )
    if any(node.has_foreign_agent and node.name != local for node in ready):
        return tuple(node for node in ready if node.pod_subnets)
    return ready


def _is_live(node: Node, heartbeat: Heartbeat | None, now: float) -> bool:
    if heartbeat is None:
        return node.spec.public_key is not None and node.report is None
    return now < heartbeat.seen_at + READY_SECONDS


def find_next_expiry(heartbeats: Mapping[str, Heartbeat], *, now: float) -> float | None:
    """When, on the caller's clock, the next live node will have been silent for too long."""
    expiries = (beat.seen_at + READY_SECONDS for beat in heartbeats.values())
    return min((expiry for expiry in expiries if expiry > now), default=None)
