"""``/status``: what an agent knows of the mesh, of itself and of its tunnels, as JSON."""

from __future__ import annotations

import json
import time

from kilo import __version__
from kilo.mesh.model import Settings
from kilo.mesh.overview import AgentView, Overview, Told, describe_mesh
from kilo.mesh.readiness import note_heartbeats, tell_time
from kilo.mesh.survey import find_absences, list_clock_doubts
from kilo.mesh.topology import Topology
from kilo.status import Status

NOTHING = Topology(settings=Settings(), segments=(), peers=(), refusals=())
"""Before the first pass."""


def write_status(status: Status) -> bytes:
    """The document; may be called from any thread."""
    return json.dumps(describe_status(status, wall=time.time()), indent=2).encode() + b"\n"


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
        Told(at=wall, agent=_describe_agent(status), stats=stats if leads else {}),
        absent=find_absences(snapshot, topology, beats, now=0.0),
        doubts=list_clock_doubts(seen, wall=wall),
    )


def _describe_agent(status: Status) -> AgentView:
    reasons = list_reasons(status)
    return AgentView(
        node=status.name,
        interface=status.interface,
        version=f"kg {__version__}",
        ready=not reasons,
        reasons=reasons,
        warnings=list(status.warnings),
    )


def list_reasons(status: Status) -> list[str]:
    """Why the agent is not ready: the last pass failed, or a store cannot be heard."""
    store = status.store_error and f"store: {status.store_error}"
    away = [f"store {kind}: {reason}" for kind, reason in status.away.items()]
    return [reason for reason in (status.not_ready, store, *away) if reason]
