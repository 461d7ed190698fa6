"""What agents have to say about the objects of a store, for operators to read beside them.

One agent speaks for all of what every agent knows (refusals, values that do not parse, what
becomes of peers), so that a thousand agents do not write the same. What only one can know, the
handshakes of its own device, each leader tells itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import groupby
from types import MappingProxyType

from kilo.mesh.conflicts import Refusal
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Node, Problem, Snapshot
from kilo.mesh.state import PeerStats
from kilo.mesh.topology import Topology

HANDSHAKE_SECONDS = 300
"""A newer handshake is worth telling when it is so much newer. A device in use makes one every
two minutes (WireGuard's Rekey-After-Time), and the store is not to hear of each."""
MOST_REMARKS = 20
"""Of one reason on one object: who claims ten thousand addresses is not to drown all others."""


class Reason(StrEnum):
    """Why an object is remarked on: stable codes, which people and scripts filter by."""

    INVALID = "Invalid"
    """A value that does not parse, and so counts as absent."""
    REFUSED = "Refused"
    """A claim on addresses or a key that belong to another object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One thing that is wrong with one object."""

    object: str
    """Kind and name, ``Peer squat``."""
    reason: Reason
    message: str
    """One line that names field and value; no secrets."""
    origin: str = ""
    """The store that the object stands in, where there are several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStanding:
    """What the mesh makes of a peer."""

    ready: bool
    """Whether it takes part."""
    remarks: tuple[Remark, ...] = ()
    """Why not, or what of it is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remarks:
    """All that one agent has to say."""

    node: str = field(default="", compare=False)
    """The node whose agent it is."""
    remarks: tuple[Remark, ...] = ()
    """Sorted, each once; empty on agents that are not the one to speak."""
    peers: Mapping[str, PeerStanding] = field(default_factory=lambda: MappingProxyType({}))
    """By name; empty on agents that are not the one to speak."""
    handshakes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Peer name -> Unix seconds of the last handshake that this node's device had with it."""
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Peer name -> the store it stands in; empty where there is one store."""


def build_remarks(
    snapshot: Snapshot,
    topology: Topology,
    *,
    local: str,
    stats: Mapping[PublicKey, PeerStats],
    told: Mapping[str, int],
) -> Remarks:
    """What the agent of the node ``local`` has to say after a pass.

    ``stats`` is what its own device measured; ``told`` the handshakes that it told last.
    """
    speakers = {origin: find_speaker(topology, origin) for origin in snapshot.parts or ("",)}
    ours = [origin for origin, speaker in speakers.items() if speaker in (local, None)]
    remarks = _gather_remarks(snapshot, topology, ours) if ours else ()
    if None in speakers.values():
        remarks = tuple(one for one in remarks if one.object == f"Node {local}")
    return Remarks(
        node=local,
        remarks=remarks,
        peers=_judge_peers(snapshot, topology, remarks, ours) if local in speakers.values() else {},
        handshakes=_find_handshakes(topology, local, stats, told),
        origins=_find_origins(snapshot, remarks),
    )


def find_speaker(topology: Topology, origin: str = "") -> str | None:
    """The node whose agent speaks for all of a store: the leader of the first segment.

    Leaders that cannot speak are passed over: those without an agent, which an operator declared
    with their keys, and those with Kilo's own. If there is no other, it is the first node that
    can. None: no such agent takes part, and so each speaks of its own node only. Of several stores
    each has a speaker that stands in it, if one does: to another one it may not write.
    """
    leaders = [segment.leader for segment in topology.segments]
    speakers = [node for node in (*leaders, *topology.nodes) if _can_speak(node)]
    at_home = (node.name for node in speakers if node.origin == origin)
    return next(iter((*at_home, *(node.name for node in speakers))), None)


def select_remarks(remarks: Remarks, origin: str) -> Remarks:
    """What of them is about the objects of one store."""
    names = {name for name, place in remarks.origins.items() if place == origin}
    return replace(
        remarks,
        remarks=tuple(one for one in remarks.remarks if one.origin == origin),
        peers={name: one for name, one in remarks.peers.items() if name in names},
        handshakes={name: at for name, at in remarks.handshakes.items() if name in names},
    )


def _can_speak(node: Node) -> bool:
    return node.report is not None and not node.has_foreign_agent


def _gather_remarks(
    snapshot: Snapshot, topology: Topology, origins: Sequence[str]
) -> tuple[Remark, ...]:
    """All there is to say about the objects of these stores."""
    found = {_remark_problem(problem) for problem in snapshot.problems if problem.object}
    declarers = _find_declarers(topology)
    found.update(
        Remark(
            object=claimant,
            reason=Reason.REFUSED,
            message=_describe_refusal(refusal),
            origin=origin,
        )
        for refusal in topology.refusals
        for claimant, origin in _find_claimants(refusal, declarers)
    )
    ordered = sorted(
        (one for one in found if one.origin in origins),
        key=lambda one: (one.origin, one.object, one.reason, one.message),
    )
    groups = groupby(ordered, key=lambda one: (one.origin, one.object, one.reason))
    return tuple(one for _, group in groups for one in _limit_remarks(tuple(group)))


def _limit_remarks(remarks: tuple[Remark, ...]) -> tuple[Remark, ...]:
    """The first of those on one object, and how many more there are."""
    more = len(remarks) - MOST_REMARKS
    if more <= 0:
        return remarks
    rest = replace(remarks[0], message=f"and {more + 1} more of the kind, not shown here")
    return (*remarks[: MOST_REMARKS - 1], rest)


def _remark_problem(problem: Problem) -> Remark:
    """Where it stands and whose it is goes without saying, beside the object."""
    message = str(replace(problem, origin="", source="", object="")).removeprefix(": ")
    return Remark(
        object=problem.object, reason=Reason.INVALID, message=message, origin=problem.origin
    )


def _describe_refusal(refusal: Refusal) -> str:
    return f"{refusal.field} {refusal.value} refused: {refusal.reason}"


def _find_declarers(topology: Topology) -> Mapping[tuple[str, str], Sequence[tuple[str, str]]]:
    """Segment and allowed location IP -> the nodes that were declared with it, and their stores."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for segment in topology.segments:
        for node in segment.nodes:
            for network in node.spec.allowed_location_ips:
                declarers = found.setdefault((segment.name, str(network)), [])
                declarers.append((f"Node {node.name}", node.origin))
    return found


def _find_claimants(
    refusal: Refusal, declarers: Mapping[tuple[str, str], Sequence[tuple[str, str]]]
) -> Sequence[tuple[str, str]]:
    """The objects that an operator would mend, and their stores. A segment is none: what it
    claims, its nodes were declared with.
    """
    kind, _, name = refusal.claimant.partition(" ")
    if kind == "Segment":
        return declarers.get((name, refusal.value), ())
    return () if kind == "Store" else ((refusal.claimant, refusal.origin),)


def _judge_peers(
    snapshot: Snapshot, topology: Topology, remarks: tuple[Remark, ...], origins: Sequence[str]
) -> dict[str, PeerStanding]:
    """Of every peer that is declared in these stores, however badly.

    One that is left out because another store has its name has no standing, only remarks.
    """
    places = {peer.name: peer.origin for peer in snapshot.peers}
    remarked: dict[str, list[Remark]] = {n: [] for n, place in places.items() if place in origins}
    for remark in remarks:
        kind, _, name = remark.object.partition(" ")
        if kind == "Peer" and name and remark.origin == places.get(name, remark.origin):
            remarked.setdefault(name, []).append(remark)
    ready = {peer.name for peer in topology.peers}
    return {
        name: PeerStanding(ready=name in ready, remarks=tuple(ours))
        for name, ours in sorted(remarked.items())
    }


def _find_origins(snapshot: Snapshot, remarks: tuple[Remark, ...]) -> dict[str, str]:
    """The store of every peer that something is said of."""
    if not snapshot.parts:
        return {}
    broken = {
        remark.object.removeprefix("Peer "): remark.origin
        for remark in remarks
        if remark.object.startswith("Peer ")
    }
    return broken | {peer.name: peer.origin for peer in snapshot.peers}


def _find_handshakes(
    topology: Topology,
    local: str,
    stats: Mapping[PublicKey, PeerStats],
    told: Mapping[str, int],
) -> dict[str, int]:
    """Only a leader's device is up; what another one remembers is from another time."""
    segment = topology.find_segment(local)
    if segment is None or segment.leader.name != local:
        return {}
    latest = {
        peer.name: int(stats[peer.public_key].latest_handshake)
        for peer in topology.peers
        if peer.public_key in stats
    }
    handshakes = {name: _choose_time(at, told.get(name, 0)) for name, at in latest.items()}
    return {name: at for name, at in handshakes.items() if at > 0}


def _choose_time(latest: int, told: int) -> int:
    """The time that was told stands unless it is far from the latest, in either direction: a
    clock may have been put right. A device that has started anew knows of no handshake at all.
    """
    return latest if latest > 0 and abs(latest - told) >= HANDSHAKE_SECONDS else told
