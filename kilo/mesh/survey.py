"""The mesh as somebody computes it who is no part of it and reads the store once.

It is what agents compute from the same snapshot, by the same functions. Two things they know
better: whose stamps have changed while they looked, and what their own flags say. The first is
judged as by an agent that starts; the second shows in what they report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median_low
from typing import TypeVar

from kilo.mesh.durations import format_rounded
from kilo.mesh.model import Node, PartialSettings, Settings, Snapshot
from kilo.mesh.readiness import (
    READY_SECONDS,
    Heartbeat,
    find_ready_nodes,
    note_heartbeats,
    tell_time,
)
from kilo.mesh.topology import Topology, build_topology

T = TypeVar("T", bound=Hashable)

NOBODY = ""
"""The name of no node: who looks from outside is none."""
SLOW_SECONDS = 3 * READY_SECONDS
"""A node that is ready wrote its stamp less than a third of this ago, by a right clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What the program that looks was told of the mesh by its flags."""

    settings: PartialSettings
    """Only those that were given; they win over everything."""
    defaults: Settings
    """What holds where nobody says anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The mesh, and what of it is in doubt."""

    snapshot: Snapshot
    topology: Topology
    absent: Mapping[str, str]
    """Nodes that take no part -> why."""
    evident: PartialSettings
    """What agents must have been told by their flags, for they report it, and nobody else says
    so."""
    doubts: tuple[str, ...]
    """What makes agents come to another answer, a line each."""


def make_survey(
    snapshot: Snapshot,
    flags: Flags,
    *,
    wall: float,
    evident: PartialSettings | None = None,
) -> Survey:
    """The mesh at ``wall`` (Unix seconds). ``MeshError`` if the segments do not fit the subnet.

    ``evident`` is that of an earlier survey, where this one is of what might be: agents report
    what was.
    """
    time = tell_time(snapshot.last_seen, wall=wall, local=NOBODY)
    beats = note_heartbeats({}, snapshot.last_seen, now=0.0, wall=time)
    ready = find_ready_nodes(snapshot, beats, now=0.0, local=NOBODY)
    stored = replace(flags.defaults, **snapshot.settings)
    doubts = list(list_clock_doubts(snapshot.last_seen, wall=wall))
    if time < wall - READY_SECONDS:
        doubts.append(
            f"no node was seen in the last {format_rounded(wall - time)}: this is how it was then"
        )
    if evident is None:
        evident = _find_evident_settings(ready, stored, doubts)
    settings = replace(stored, **evident)
    topology = build_topology(ready, snapshot.peers, replace(settings, **flags.settings))
    return Survey(
        snapshot=snapshot,
        topology=topology,
        absent=find_absences(snapshot, topology, beats, now=0.0),
        evident=evident,
        doubts=tuple(doubts),
    )


def list_clock_doubts(
    last_seen: Mapping[str, int],
    *,
    wall: float,
    local: str = NOBODY,
    alive: Iterable[str] = (),
) -> Iterator[str]:
    """Nodes that write of a time that has not come yet, and those of ``alive``, whose stamps have
    changed within a minute before ``wall``, that write of one long past. Where most do, it is the
    clock of who looks that is wrong.
    """
    others = {name: stamp for name, stamp in last_seen.items() if name != local}
    ahead = {name: stamp - wall for name, stamp in others.items() if stamp > wall + READY_SECONDS}
    oldest = wall - SLOW_SECONDS
    late = (name for name in alive if name in others and others[name] < oldest)
    behind = {name: wall - others[name] for name in late}
    for gaps, there, here in ((ahead, "ahead of", "behind"), (behind, "behind", "ahead of")):
        if blames_here(len(gaps), len(others)):
            typical = format_rounded(median_low(gaps.values()))
            yield f"this host's clock is {typical} {here} those of {len(gaps)} nodes"
            continue
        for name, gap in gaps.items():
            yield f"Node {name}: its clock is {format_rounded(gap)} {there} this one"


def blames_here(count: int, of: int) -> bool:
    """Whether this host's clock is the one that is wrong, where those of ``count`` nodes differ
    from it: most must, and two may well be wrong together.
    """
    return count > 2 and 2 * count > of


def _find_evident_settings(
    nodes: Iterable[Node], stored: Settings, doubts: list[str]
) -> PartialSettings:
    """What most agents report, where that is not what the store says."""
    reports = [node.report for node in nodes if node.report is not None]
    granularities = {r.name: r.granularity for r in reports if r.granularity is not None}
    subnets = {r.name: tuple(i.network for i in r.wireguard_ips) for r in reports}
    evident = PartialSettings()
    granularity = _choose("granularity", granularities, doubts)
    if granularity is not None and granularity != stored.granularity:
        evident["granularity"] = granularity
    subnet = _choose("subnet", {name: nets for name, nets in subnets.items() if nets}, doubts)
    if subnet is not None and subnet != stored.subnets:
        evident["subnets"] = subnet
    return evident


def _choose(what: str, said: Mapping[str, T], doubts: list[str]) -> T | None:
    """What most say; None if nobody says anything."""
    votes = Counter(said.values())
    if not votes:
        return None
    chosen, _ = votes.most_common(1)[0]
    for name, value in said.items():
        if value != chosen:
            doubts.append(
                f"Node {name}: its agent goes by {what} {_show(value)}, most by {_show(chosen)}"
            )
    return chosen


def _show(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def find_absences(
    snapshot: Snapshot, topology: Topology, heartbeats: Mapping[str, Heartbeat], *, now: float
) -> dict[str, str]:
    """Nodes of the snapshot that are not in the topology -> why, in a few words."""
    present = {node.name for node in topology.nodes}
    refused = {r.claimant: f"{r.field} {r.value}: {r.reason}" for r in topology.refusals}
    return {
        node.name: refused.get(f"Node {node.name}")
        or refused.get(f"Store {node.origin}")
        or _explain_absence(node, heartbeats.get(node.name), now)
        for node in snapshot.nodes
        if node.name not in present
    }


def _explain_absence(node: Node, heartbeat: Heartbeat | None, now: float) -> str:
    if node.public_key is None:
        return "no agent reports it, and no key is declared"
    if node.endpoint is None:
        return "it has no endpoint"
    if heartbeat is None and node.report is not None:
        return "its report does not say when it was written"
    if heartbeat is not None and now >= heartbeat.seen_at + READY_SECONDS:
        return f"silent for {format_rounded(now - heartbeat.seen_at)}"
    if not node.pod_subnets:
        return "it has no pod subnet, without which Kilo's own agents leave it out"
    return "it has come since"
