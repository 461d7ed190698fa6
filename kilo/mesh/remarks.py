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
    speaker = find_speaker(topology)
    remarks = _gather_remarks(snapshot, topology) if speaker in (local, None) else ()
    if speaker is None:
        remarks = tuple(one for one in remarks if one.object == f"Node {local}")
    return Remarks(
        node=local,
        remarks=remarks,
        peers=_judge_peers(snapshot, topology, remarks) if speaker == local else {},
        handshakes=_find_handshakes(topology, local, stats, told),
    )


def find_speaker(topology: Topology) -> str | None:
    """The node whose agent speaks for all: the leader of the first segment.

    Leaders that cannot speak are passed over: those without an agent, which an operator declared
    with their keys, and those with Kilo's own. If there is no other, it is the first node that
    can. None: no such agent takes part, and so each speaks of its own node only.
    """
    leaders = [segment.leader for segment in topology.segments]
    candidates = (*leaders, *topology.nodes)
    return next((node.name for node in candidates if _can_speak(node)), None)


def _can_speak(node: Node) -> bool:
    return node.report is not None and not node.has_foreign_agent


def _gather_remarks(snapshot: Snapshot, topology: Topology) -> tuple[Remark, ...]:
    found = {_remark_problem(problem) for problem in snapshot.problems if problem.object}
    declarers = _find_declarers(topology)
    found.update(
        Remark(object=claimant, reason=Reason.REFUSED, message=_describe_refusal(refusal))
        for refusal in topology.refusals
        for claimant in _find_claimants(refusal, declarers)
    )
    ordered = sorted(found, key=lambda one: (one.object, one.reason, one.message))
    groups = groupby(ordered, key=lambda one: (one.object, one.reason))
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
    message = str(replace(problem, source="", object="")).removeprefix(": ")
    return Remark(object=problem.object, reason=Reason.INVALID, message=message)


def _describe_refusal(refusal: Refusal) -> str:
    return f"{refusal.field} {refusal.value} refused: {refusal.reason}"


def _find_declarers(topology: Topology) -> Mapping[tuple[str, str], Sequence[str]]:
    """Segment and allowed location IP -> the nodes that were declared with it."""
    found: dict[tuple[str, str], list[str]] = {}
    for segment in topology.segments:
        for node in segment.nodes:
            for network in node.spec.allowed_location_ips:
                found.setdefault((segment.name, str(network)), []).append(f"Node {node.name}")
    return found


def _find_claimants(
    refusal: Refusal, declarers: Mapping[tuple[str, str], Sequence[str]]
) -> Sequence[str]:
    """A segment is no object of a store: what it claims, its nodes were declared with."""
    kind, _, name = refusal.claimant.partition(" ")
    if kind != "Segment":
        return (refusal.claimant,)
    return declarers.get((name, refusal.value), ())


def _judge_peers(
    snapshot: Snapshot, topology: Topology, remarks: tuple[Remark, ...]
) -> dict[str, PeerStanding]:
    """Of every peer that is declared, however badly."""
    remarked: dict[str, list[Remark]] = {peer.name: [] for peer in snapshot.peers}
    for remark in remarks:
        kind, _, name = remark.object.partition(" ")
        if kind == "Peer" and name:
            remarked.setdefault(name, []).append(remark)
    ready = {peer.name for peer in topology.peers}
    return {
        name: PeerStanding(ready=name in ready, remarks=tuple(ours))
        for name, ours in sorted(remarked.items())
    }


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
