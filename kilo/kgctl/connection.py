"""A guest at work: follow the store, follow the kernel, make passes; at the end undo them.

The engine's loop for somebody who is no node: he reports nothing, configures no pods, and leaves
nothing behind. As there, one task makes passes, nothing is remembered of the kernel, and a store
that is away changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from kilo.backends.base import Backend
from kilo.dataplane.base import ConsequenceError, Dataplane, find_refused
from kilo.errors import BackendError, DataplaneError, MeshError, flatten_errors
from kilo.heard import Heard
from kilo.kgctl.connectpeer import FindFlags
from kilo.kgctl.connectplan import Connection, Guest, Seen, plan_connection
from kilo.log import get_logger
from kilo.mesh.diff import diff
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, Settings, Snapshot
from kilo.mesh.plan import find_endpoint_names
from kilo.mesh.readiness import find_ready_nodes
from kilo.mesh.roaming import Observed
from kilo.mesh.state import DataplaneState, PeerStats, WireGuardPeer
from kilo.mesh.survey import NOBODY, Survey, make_survey
from kilo.mesh.topology import build_topology
from kilo.resolver import Lookup, Resolver, look_up
from kilo.retrying import back_off

FOLLOW_AGAIN_SECONDS = 1.0
LOOK_AGAIN_SECONDS = 5.0
"""Until a leader that is to carry something has been heard of: WireGuard tells nobody when a
handshake is done, and tries one every five seconds."""
LAST_PASS_SECONDS = 20.0
"""How long an end lets a pass that has begun come to its own."""

Tell = Callable[[str], None]


class Forgetful:
    """Keeps no snapshot: a guest that starts without its store does not start."""

    def load(self) -> Snapshot | None:
        """None, ever."""
        return None

    def save(self, snapshot: Snapshot) -> None:
        """Not asked for."""


class News:
    """Tells what is new of what holds now, and not again what was told before."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._told: dict[str, frozenset[str]] = {}

    def tell(self, kind: str, lines: Iterable[str]) -> None:
        """These are all the lines of a kind that hold now."""
        told, now = self._told.get(kind, frozenset()), frozenset(lines)
        for line in sorted(now - told):
            self._tell(line)
        self._told[kind] = now


def survey_heard(heard: Heard, snapshot: Snapshot, flags: FindFlags) -> Survey:
    """The mesh, of those nodes whose stamps were heard to change."""
    survey = make_survey(snapshot, flags(snapshot), wall=time.time())
    ready = find_ready_nodes(snapshot, heard.heartbeats, now=heard.now, local=NOBODY)
    topology = build_topology(ready, snapshot.peers, survey.topology.settings)
    return replace(survey, topology=topology)


class GuestLoop:
    """One guest at work."""

    def __init__(
        self,
        guest: Guest,
        backend: Backend,
        dataplane: Dataplane,
        *,
        flags: FindFlags,
        tell: Tell,
        look_up: Lookup = look_up,
    ) -> None:
        self._guest = guest
        self._backend = backend
        self._dataplane = dataplane
        self._flags = flags
        self._heard = Heard(NOBODY, Forgetful())
        self._news = News(tell)
        self._log = get_logger("connect")
        self._resolver = Resolver(changed=self._note, look_up=look_up)
        self._pass_due = asyncio.Event()
        self._stats: Mapping[PublicKey, PeerStats] = {}
        self._configured: Mapping[PublicKey, Endpoint] = {}
        self._pause_seconds = Settings().resync_period_seconds
        self._failures = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set; nothing is undone yet."""
        followers = (
            self._follow_store(),
            self._follow_kernel(),
            self._follow_readiness(),
            self._resolver.run(),
        )
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(follower) for follower in followers]
            passes = group.create_task(self._reconcile(stop))
            await stop.wait()
            for task in running:
                task.cancel()
            self._pass_due.set()
            # Not cancelled: its threads would go on, and make what is being undone.
            await asyncio.wait({passes}, timeout=LAST_PASS_SECONDS)
            passes.cancel()

    async def undo(self) -> None:
        """Remove all that passes have made. Raises as ``Dataplane.apply`` does."""
        changes = diff(await self._dataplane.read(), DataplaneState())
        for change in changes:
            self._log.info("change", change=str(change))
        await self._dataplane.apply(changes)

    # What makes a pass due.

    def _note(self) -> None:
        self._pass_due.set()

    async def _follow_store(self) -> None:
        while True:
            try:
                async for item in self._backend.watch():
                    self._hear(item)
            except BackendError as error:
                self._lose_store(error)
            await asyncio.sleep(FOLLOW_AGAIN_SECONDS)

    def _hear(self, item: Snapshot | BackendError) -> None:
        believed = item if isinstance(item, BackendError) else self._heard.weigh(item)
        if isinstance(believed, BackendError):
            self._lose_store(believed)
            return
        self._news.tell("store", believed.away.values())
        if self._heard.hear(believed, None):
            self._note()

    def _lose_store(self, error: BackendError) -> None:
        self._heard.lose()
        self._news.tell("store", [f"store cannot be heard, the network stays as it is: {error}"])

    async def _follow_kernel(self) -> None:
        while True:
            try:
                drift = self._dataplane.drift()
                self._note()  # for what was touched while nobody listened
                async for _ in drift:
                    self._note()
            except DataplaneError as error:
                self._news.tell("kernel", [f"kernel not followed, only resyncs repair it: {error}"])
            await asyncio.sleep(FOLLOW_AGAIN_SECONDS)

    async def _follow_readiness(self) -> None:
        """Notice when a node has been silent for too long."""
        while True:
            await self._heard.wait_for_silence()
            if self._heard.first_answer.is_set() and self._heard.has_new_readiness():
                self._note()

    # A pass.

    async def _reconcile(self, stop: asyncio.Event) -> None:
        while True:
            await self._wait_until_due()
            if stop.is_set():
                return
            snapshot = self._heard.snapshot
            if snapshot is None:
                continue
            self._heard.note_readiness()
            try:
                await self._make_pass(snapshot)
            except* (MeshError, DataplaneError) as errors:
                self._fail(flatten_errors(errors))

    async def _wait_until_due(self) -> None:
        pause = self._pause_seconds
        if self._failures:
            pause = min(pause, back_off(self._failures))
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._pass_due.wait()
        self._pass_due.clear()

    async def _make_pass(self, snapshot: Snapshot) -> None:
        self._news.tell("problem", map(str, snapshot.problems))
        survey = survey_heard(self._heard, snapshot, self._flags)
        self._resolver.want(find_endpoint_names(survey.topology))
        plan = plan_connection(self._guest, survey, await self._look())
        resync = survey.topology.settings.resync_period_seconds
        self._pause_seconds = min(resync, LOOK_AGAIN_SECONDS) if plan.is_tentative else resync
        for change in plan.changes:
            self._log.info("change", change=str(change))
        await self._apply(plan)
        self._succeed(survey, plan)

    async def _look(self) -> Seen:
        facts, actual = await self._dataplane.facts(), await self._dataplane.read()
        earlier, self._stats = self._stats, await self._dataplane.observe()
        return Seen(
            facts=facts,
            actual=actual,
            observed=Observed(now=time.time(), stats=self._stats, earlier=earlier),
            resolved=self._resolver.answers,
            configured=self._configured,
        )

    async def _apply(self, plan: Connection) -> None:
        """An endpoint that was refused is as new at the next pass."""
        try:
            if plan.changes:
                await self._dataplane.apply(plan.changes)
        except ExceptionGroup as errors:
            refused = {
                change.resource.public_key
                for change in find_refused(plan.changes, flatten_errors(errors))
                if isinstance(change.resource, WireGuardPeer)
            }
            kept = {key: self._configured[key] for key in refused & self._configured.keys()}
            self._configured = {**plan.configured, **kept}
            raise
        self._configured = plan.configured

    def _succeed(self, survey: Survey, plan: Connection) -> None:
        self._failures = 0
        self._news.tell("failure", ())
        self._news.tell("warning", plan.warnings)
        if plan.carrier:
            networks = ", ".join(map(str, self._guest.more))
            self._news.tell("carrier", [f"{networks}: reached through {plan.carrier}"])
        leaders = [segment.leader.name for segment in survey.topology.segments]
        where = f"peer {self._guest.name} by {self._guest.interface}"
        through = f"through {', '.join(leaders)}" if leaders else "but no node is ready"
        self._news.tell("connected", [f"connected as {where}, {through}"])

    def _fail(self, errors: Iterable[BaseException]) -> None:
        self._failures += 1
        lines = (str(error) for error in errors if not isinstance(error, ConsequenceError))
        self._news.tell("failure", lines)
