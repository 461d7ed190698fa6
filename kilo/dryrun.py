"""What the agent would do now, without doing it: the same plan, printed instead of applied."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from kilo.backends.base import Backend
from kilo.daemonthread import run_in_daemon_thread
from kilo.dataplane.base import Dataplane
from kilo.mesh.model import IPAddress, Snapshot
from kilo.mesh.plan import Agent, Knowledge, Plan, make_plan
from kilo.mesh.readiness import note_heartbeats
from kilo.mesh.roaming import Observed
from kilo.resolver import choose_address, look_up

LOOKUP_SECONDS = 5.0


async def plan_once(agent: Agent, backend: Backend, dataplane: Dataplane) -> tuple[Plan, Snapshot]:
    """A pass as it would be made now, and the snapshot it comes from; writes nothing anywhere."""
    snapshot = await backend.snapshot()
    actual = await dataplane.read()
    knowledge = Knowledge(
        snapshot=snapshot,
        facts=await dataplane.facts(),
        heartbeats=note_heartbeats({}, snapshot.last_seen, now=0.0, wall=time.time()),
        observed=Observed(now=time.time(), stats=await dataplane.observe()),
        resolved=await resolve_names(snapshot),
    )
    return make_plan(agent, knowledge, actual), snapshot


async def resolve_names(snapshot: Snapshot) -> Mapping[str, IPAddress]:
    """The addresses of every DNS name in the mesh that resolves in time."""
    endpoints = [node.endpoint for node in snapshot.nodes]
    endpoints += [peer.endpoint for peer in snapshot.peers]
    names = {e.host for e in endpoints if e is not None and e.ip is None}
    answers = await asyncio.gather(*map(_resolve, names))
    return {name: answer for name, answer in zip(names, answers, strict=True) if answer}


async def _resolve(name: str) -> IPAddress | None:
    try:
        async with asyncio.timeout(LOOKUP_SECONDS):
            return choose_address(
                await run_in_daemon_thread("resolver", lambda: look_up(name)), None
            )
    except (OSError, IndexError, UnicodeError, TimeoutError):
        return None
