"""The status of a Peer: what the mesh makes of it, and which leader heard of it last; pure.

Two writers share it, and neither touches what is the other's: the agent that speaks for all
writes the condition ``Ready``, each leader ``lastHandshake``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kilo.mesh.remarks import HANDSHAKE_SECONDS, PeerStanding, Reason, Remark

READY = "Ready"
MESSAGE_CHARACTERS = 1024
"""The limit of an Event's message, as ``events.k8s.io`` has it; ample for a condition's."""
SESSION_SECONDS = 180
"""WireGuard's Reject-After-Time: a device last heard of longer ago has no session there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """That a node's device had one with the peer."""

    node: str
    at: int
    """Unix seconds, by that node's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerNews:
    """What one agent would have the status say; None where that is not for it to tell."""

    standing: PeerStanding | None = None
    handshake: Handshake | None = None


def make_status_patch(status: object, news: PeerNews, *, now: int) -> dict[str, Any]:
    """The merge patch that makes ``status`` say the news; empty if it does already.

    ``status`` may be anything at all, ``now`` is in Unix seconds. Others' conditions stay, and
    the time of the last transition stays while nothing has changed but the reason.
    """
    present: dict[str, Any] = status if isinstance(status, dict) else {}
    changes: dict[str, Any] = {}
    if news.standing is not None:
        conditions = _join_conditions(present.get("conditions"), news.standing, now=now)
        if conditions != present.get("conditions"):
            changes["conditions"] = conditions
    last = read_handshake(present.get("lastHandshake"))
    if news.handshake is not None and is_news(news.handshake, last, now=now):
        time = format_time(news.handshake.at)
        changes["lastHandshake"] = {"node": news.handshake.node, "time": time}
    return {"status": changes} if changes else {}


def is_news(ours: Handshake, last: Handshake | None, *, now: int) -> bool:
    """Whether our handshake is to replace the one that the status has.

    A peer that is in use shakes hands with its leader every two minutes, and may have sessions
    with several: the status names one of them, and changes hands only when that one is silent. A
    time that is yet to come is some wrong clock's, and would stand in the way for as long.
    """
    if last is None or last.at > now + SESSION_SECONDS:
        return True
    if last.node == ours.node:
        return abs(ours.at - last.at) >= HANDSHAKE_SECONDS
    return last.at < ours.at - SESSION_SECONDS


def read_handshake(value: object) -> Handshake | None:
    """What ``status.lastHandshake`` says; None if it says nothing that can be understood."""
    if not isinstance(value, dict) or not isinstance(value.get("node"), str):
        return None
    try:
        time = datetime.fromisoformat(value.get("time"))  # type: ignore[arg-type]  # TypeError below
    except (TypeError, ValueError):
        return None
    return None if time.tzinfo is None else Handshake(node=value["node"], at=int(time.timestamp()))


def format_time(unix_seconds: int) -> str:
    """RFC 3339, in UTC, as Kubernetes writes times."""
    return datetime.fromtimestamp(unix_seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def describe_standing(standing: PeerStanding) -> str:
    """The reason code of the condition."""
    is_refused = any(remark.reason is Reason.REFUSED for remark in standing.remarks)
    if standing.ready:
        if not standing.remarks:
            return "Accepted"
        return "PartlyRefused" if is_refused else "PartlyInvalid"
    return "Refused" if is_refused else "Invalid"


def join_messages(remarks: tuple[Remark, ...]) -> str:
    """All that is wrong, as one text."""
    return cut("; ".join(remark.message for remark in remarks))


def cut(text: str) -> str:
    """At most so many characters of it as a message may have."""
    return text if len(text) <= MESSAGE_CHARACTERS else text[: MESSAGE_CHARACTERS - 1] + "…"


def _join_conditions(present: object, standing: PeerStanding, *, now: int) -> list[object]:
    """Ours in its place among the others'; last if it is new."""
    conditions: list[object] = list(present) if isinstance(present, list) else []
    place = next((i for i, one in enumerate(conditions) if _is_ours(one)), len(conditions))
    ours = conditions[place] if place < len(conditions) else {}
    condition = _make_condition(standing, ours if isinstance(ours, dict) else {}, now=now)
    return [*conditions[:place], condition, *conditions[place + 1 :]]


def _is_ours(condition: object) -> bool:
    return isinstance(condition, dict) and condition.get("type") == READY


def _make_condition(
    standing: PeerStanding, present: Mapping[str, object], *, now: int
) -> dict[str, object]:
    status = "True" if standing.ready else "False"
    since = present.get("lastTransitionTime") if present.get("status") == status else None
    return {
        **present,
        "type": READY,
        "status": status,
        "reason": describe_standing(standing),
        "message": join_messages(standing.remarks) or "takes part in the mesh",
        "lastTransitionTime": since or format_time(now),
    }
