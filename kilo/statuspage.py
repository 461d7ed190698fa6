"""``/status``: what an agent knows of the mesh, of itself and of its tunnels, as JSON."""

from __future__ import annotations

from collections.abc import Iterable

from kilo import __version__
from kilo.mesh.model import Settings
from kilo.mesh.overview import AgentView, Overview, RepairView, Told, describe_mesh
from kilo.mesh.readiness import note_heartbeats, tell_time
from kilo.mesh.survey import find_absences, list_clock_doubts
from kilo.mesh.topology import Topology
from kilo.status import Status

NOTHING = Topology(settings=Settings(), segments=(), peers=(), refusals=())
"""Before the first pass."""


def describe_status(status: Status, *, wall: float) -> Overview:
    """The mesh at ``wall`` (Unix seconds), as the agent saw it in its last pass."""
    # Each attribute once: the engine replaces them meanwhile.
    snapshot, topology, stats = status.snapshot, status.topology or NOTHING, status.stats
    seen = snapshot.last_seen
    beats = note_heartbeats({}, seen, now=0.0, wall=tell_time(seen, wall=wall, local=status.name))
    segment = topology.find_segment(status.name)
    leads = segment is not None and segment.leader.name == status.name
    return describe_mesh(
        snapshot,
        topology,
        # What the device of a node that does not lead remembers is from another time.
        Told(
            at=wall,
            agent=_describe_agent(status),
            leader_since=status.leader_since,
            stats=stats if leads else {},
        ),
        absent=find_absences(snapshot, topology, beats, now=0.0),
        doubts=_list_clock_doubts(status, topology),
    )


def _list_clock_doubts(status: Status, topology: Topology) -> Iterable[str]:
    """As of the last pass, for stamps are as of then. While the store is away they only age."""
    is_heard = not (status.store_error or status.away)
    return list_clock_doubts(
        status.snapshot.last_seen,
        wall=status.planned_at,
        local=status.name,
        alive=[node.name for node in topology.nodes] if is_heard else (),
    )


def _describe_agent(status: Status) -> AgentView:
    reasons = list_reasons(status)
    changed_at = [at for name, at in status.since.items() if getattr(status, name) or not reasons]
    return AgentView(
        node=status.name,
        interface=status.interface,
        version=f"kg {__version__}",
        ready=not reasons,
        reasons=reasons,
        warnings=list(status.warnings),
        # The engine, in another thread, may have taken the last reason back meanwhile.
        since=max(changed_at) if not reasons else min(changed_at, default=status.planned_at),
        failures=list(status.failures),
        repairs=[RepairView(at=one.at, change=one.change) for one in status.repairs],
        mtu=next((link.mtu for link in status.state.links), 0),
    )


def list_reasons(status: Status) -> list[str]:
    """Why the agent is not ready: the last pass failed, or a store cannot be heard."""
    store = status.store_error and f"store: {status.store_error}"
    away = [f"store {kind}: {reason}" for kind, reason in status.away.items()]
    return [reason for reason in (status.not_ready, store, *away) if reason]
