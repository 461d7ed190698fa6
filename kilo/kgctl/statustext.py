"""The mesh and how it fares, for people: a line a segment, a line a peer, and what is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

from kilo.kgctl.printing import describe_age, draw_table
from kilo.mesh.overview import (
    AbsentView,
    AgentView,
    Overview,
    PeerView,
    SegmentView,
    TunnelView,
)
from kilo.mesh.roaming import SESSION_SECONDS

SEGMENT_HEADINGS = (
    "SEGMENT",
    "LEADER",
    "ADDRESS",
    "ENDPOINT",
    "HANDSHAKE",
    "RECEIVED",
    "SENT",
    "SEEN",
    "LEADS FOR",
    "NODES",
)
PEER_HEADINGS = ("PEER", "STATE", "ALLOWED IPS", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT")
LEFT_SECONDS = 86400.0
"""A node that was silent for so long will hardly come back."""
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Colour(StrEnum):
    """How a line is to be taken."""

    GOOD = "\x1b[32m"
    IDLE = "\x1b[33m"
    BAD = "\x1b[31m"
    PLAIN = "\x1b[0m"


Paint = Callable[[str, Colour], str]


def paint(line: str, colour: Colour) -> str:
    """The line in a colour, for a terminal."""
    return line if colour is Colour.PLAIN else f"{colour}{line}{Colour.PLAIN}"


def leave_plain(line: str, _colour: Colour) -> str:
    """For what is no terminal."""
    return line


def choose_paint() -> Paint:
    """Colours where a terminal is written to that may have them, <https://no-color.org>."""
    return paint if sys.stdout.isatty() and "NO_COLOR" not in os.environ else leave_plain


def list_lines(view: Overview, paint_line: Paint) -> Iterator[str]:
    """All of it."""
    yield from _list_heading(view, paint_line)
    yield ""
    yield from _list_segments(view, paint_line)
    if view["peers"]:
        yield ""
        yield from _list_peers(view, paint_line)
    complaints = [
        *(_describe_absence(one, view["at"]) for one in view["absent"]),
        *(f"refused: {text}" for text in view["refusals"]),
        *(f"left out: {text}" for text in view["problems"]),
        *(f"in doubt: {text}" for text in view["doubts"]),
        *(_list_complaints(view["agent"], view["at"]) if view["agent"] else ()),
    ]
    if complaints:
        yield ""
        yield from (paint_line(text, Colour.BAD) for text in complaints)


def _describe_absence(node: AbsentView, at: float) -> str:
    if node["lastSeen"] and at - node["lastSeen"] >= LEFT_SECONDS:
        age = describe_age(at - node["lastSeen"])
        hint = f"if it is gone for good: kgctl delete node {node['name']}"
        return f"left over: node {node['name']}: last seen {age} ago; {hint}"
    return f"not in the mesh: node {node['name']}: {node['reason']}"


def _list_complaints(agent: AgentView, at: float) -> Iterator[str]:
    """Of one agent. Those of older releases tell of warnings only."""
    yield from (f"warning: {text}" for text in agent["warnings"])
    told = set(agent["reasons"])
    yield from (f"failed: {text}" for text in agent.get("failures", ()) if text not in told)
    for repair in agent.get("repairs", ()):
        age = describe_age(at - repair["at"])
        yield f"put back {age} ago, for somebody had undone it: {repair['change']}"


def _list_heading(view: Overview, paint_line: Paint) -> Iterator[str]:
    agent, mesh = view["agent"], view["mesh"]
    if agent is None:
        yield "as the store tells; no agent was asked"
    elif agent["ready"]:
        link = f"; {agent['interface']} mtu {agent['mtu']}" if agent.get("mtu") else ""
        since = _describe_since(agent, view["at"])
        yield paint_line(f"agent of node {agent['node']}: ready{since}{link}", Colour.GOOD)
    else:
        since = _describe_since(agent, view["at"])
        for reason in agent["reasons"]:
            line = f"agent of node {agent['node']}: not ready{since}: {reason}"
            yield paint_line(line, Colour.BAD)
    nodes = sum(len(one["nodes"]) for one in view["segments"])
    ready = sum(1 for one in view["peers"] if one["ready"])
    yield (
        f"mesh: {mesh['granularity']}, {', '.join(mesh['subnets'])};"
        f" {_count(len(view['segments']), 'segment')}, {_count(nodes, 'node')},"
        f" {_count(ready, 'peer')}"
    )


def _describe_since(agent: AgentView, at: float) -> str:
    """Those of older releases do not tell."""
    return f" for {describe_age(at - agent['since'])}" if "since" in agent else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _list_segments(view: Overview, paint_line: Paint) -> Iterator[str]:
    rows = [_describe_segment(one, view) for one in view["segments"]]
    own = view["agent"]["node"] if view["agent"] else ""
    colours = [
        Colour.PLAIN if one["leader"] == own else _judge(one["tunnel"], view["at"])
        for one in view["segments"]
    ]
    return _paint_table(SEGMENT_HEADINGS, rows, colours, paint_line)


def _list_peers(view: Overview, paint_line: Paint) -> Iterator[str]:
    rows = [_describe_peer(one, view) for one in view["peers"]]
    colours = [
        _judge(one["tunnel"], view["at"]) if one["ready"] and not one["remarks"] else Colour.BAD
        for one in view["peers"]
    ]
    return _paint_table(PEER_HEADINGS, rows, colours, paint_line)


def _paint_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    colours: Sequence[Colour],
    paint_line: Paint,
) -> Iterator[str]:
    heading, *lines = draw_table(headings, rows).splitlines()
    yield heading
    yield from (paint_line(*pair) for pair in zip(lines, colours, strict=True))


def _judge(tunnel: TunnelView | None, at: float) -> Colour:
    """A tunnel that nobody uses has no fresh handshake, and nothing is wrong with it."""
    if tunnel is None:
        return Colour.PLAIN
    if tunnel["latestHandshake"] == 0:
        return Colour.BAD
    return Colour.GOOD if at - tunnel["latestHandshake"] < SESSION_SECONDS else Colour.IDLE


def _describe_segment(segment: SegmentView, view: Overview) -> tuple[str, ...]:
    leader = next(node for node in segment["nodes"] if node["name"] == segment["leader"])
    tunnel, since = segment["tunnel"], segment.get("leaderSince", 0.0)
    return (
        segment["name"],
        segment["leader"],
        ",".join(segment["wireguardIPs"]),
        tunnel["endpoint"] if tunnel and tunnel["endpoint"] else leader["endpoint"],
        *_describe_traffic(tunnel, view),
        _describe_time(leader["lastSeen"], view["at"]),
        describe_age(view["at"] - since) if since else "-",
        ",".join(node["name"] for node in segment["nodes"]),
    )


def _describe_peer(peer: PeerView, view: Overview) -> tuple[str, ...]:
    tunnel = peer["tunnel"]
    state = "ready" if peer["ready"] else "left out"
    return (
        peer["name"],
        f"{state}, partly refused" if peer["ready"] and peer["remarks"] else state,
        ",".join(peer["allowedIPs"]),
        tunnel["endpoint"] if tunnel and tunnel["endpoint"] else peer["endpoint"],
        *_describe_traffic(tunnel, view),
    )


def _describe_traffic(tunnel: TunnelView | None, view: Overview) -> tuple[str, str, str]:
    """Dashes where the one who tells has no tunnel."""
    if tunnel is None:
        return ("-", "-", "-")
    return (
        _describe_time(tunnel["latestHandshake"], view["at"]),
        show_bytes(tunnel["receivedBytes"]),
        show_bytes(tunnel["sentBytes"]),
    )


def _describe_time(when: float, at: float) -> str:
    return f"{describe_age(at - when)} ago" if when else "never"


def show_bytes(number: int) -> str:
    """As people read it, ``1.5 MiB``."""
    size, unit = float(number), 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{number} B" if unit == 0 else f"{size:.1f} {UNITS[unit]}"
