"""The loop: follow the backend, follow the kernel, reconcile.

One task makes passes, one after the other; the others only say that one is due. Nothing is
remembered of the kernel: every pass reads it, so that start, crash, drift and change are one
path. What goes wrong is told once, counted each time, and tried again with back-off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from kilo.backends.base import Backend
from kilo.dataplane.base import Dataplane
from kilo.errors import BackendError, ConfigError, DataplaneError, KiloError, MeshError
from kilo.log import get_logger
from kilo.mesh.diff import Changes, diff
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, Settings, Snapshot
from kilo.mesh.plan import (
    Agent,
    Knowledge,
    Plan,
    find_endpoint_names,
    join_report,
    make_plan,
)
from kilo.mesh.readiness import (
    Heartbeat,
    find_next_expiry,
    find_ready_nodes,
    note_heartbeats,
)
from kilo.mesh.roaming import Observed
from kilo.mesh.state import DataplaneState, PeerStats, Resource
from kilo.notices import Notices
from kilo.publisher import RETRY_SECONDS, Publisher
from kilo.resolver import Resolver
from kilo.status import Status
from kilo.storeclock import StoreClock

FIRST_ANSWER_SECONDS = 5.0
"""How long a start waits for a silent store before it takes the snapshot on disk."""
CLEAN_UP_SECONDS = 20.0


class LastGood(Protocol):
    """Keeps the last good snapshot for a start without the store."""

    def load(self) -> Snapshot | None: ...
    def save(self, snapshot: Snapshot) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanUp:
    """What a shutdown undoes; the flags of the same names."""

    network: bool = True
    interface: bool = False


class Engine:
    """One agent at work."""

    def __init__(
        self,
        agent: Agent,
        backend: Backend,
        dataplane: Dataplane,
        status: Status,
        last_good: LastGood,
        *,
        clean_up: CleanUp = CleanUp(),
    ) -> None:
        self._agent = agent
        self._backend = backend
        self._dataplane = dataplane
        self._status = status
        self._last_good = last_good
        self._clean_up = clean_up
        self._log = get_logger("engine")
        self._notices = Notices("engine")
        self._publisher = Publisher(backend, failed=lambda: self._count_error("publish"))
        self._resolver = Resolver(changed=self._note_change)
        self._clock = StoreClock()
        self._pass_due = asyncio.Event()
        self._heard = asyncio.Event()
        self._changed_at: float | None = None
        self._snapshot: Snapshot | None = None
        self._saved: Snapshot | None = None
        self._heartbeats: dict[str, Heartbeat] = {}
        self._ready: frozenset[str] = frozenset()
        self._plan: Plan | None = None
        self._stats: Mapping[PublicKey, PeerStats] = {}
        self._configured: Mapping[PublicKey, Endpoint] = {}
        self._initial: DataplaneState | None = None
        self._resync_seconds = Settings().resync_period_seconds
        self._failures = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then undo what the flags say.

        ``ConfigError`` if the host cannot take part at all.
        """
        try:
            await self._work(stop)
        finally:
            await self._shut_down()

    async def _work(self, stop: asyncio.Event) -> None:
        tasks = (
            self._follow_backend(),
            self._fall_back_to_disk(),
            self._follow_kernel(),
            self._follow_readiness(),
            self._resync(),
            self._publisher.run(),
            self._resolver.run(),
            self._reconcile(),
        )
        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(task) for task in tasks]
                await stop.wait()
                for task in running:
                    task.cancel()
        except ExceptionGroup as errors:
            raise _find_cause(errors) from errors

    # What makes a pass due.

    def _note_change(self) -> None:
        if self._changed_at is None:
            self._changed_at = time.monotonic()
        self._pass_due.set()

    async def _follow_backend(self) -> None:
        async for item in self._backend.watch():
            if isinstance(item, BackendError):
                self._lose_store(item)
            else:
                self._hear(item)

    def _lose_store(self, error: BackendError) -> None:
        self._clock.stop()
        self._status.store_error = str(error)
        self._status.store_up.set(0)
        self._count_error("store")
        self._log.error("store cannot be heard: the network stays as it is", error=str(error))
        self._load_last_good()

    def _hear(self, snapshot: Snapshot) -> None:
        if self._clock.stopped:
            self._log.info("store is heard again")
            self._publisher.hurry()
        self._clock.start()
        self._status.store_error = ""
        self._status.store_up.set(1)
        self._heartbeats = note_heartbeats(
            self._heartbeats, snapshot.last_seen, now=self._clock.now(), wall=time.time()
        )
        if self._publisher.report is not None:
            snapshot = join_report(snapshot, self._publisher.report)
        changed = snapshot != self._snapshot or not self._heard.is_set()
        self._snapshot = snapshot
        self._heard.set()
        if changed or self._find_ready() != self._ready:
            self._note_change()

    def _find_ready(self) -> frozenset[str]:
        if self._snapshot is None:
            return frozenset()
        nodes = find_ready_nodes(
            self._snapshot, self._heartbeats, now=self._clock.now(), local=self._agent.name
        )
        return frozenset(node.name for node in nodes)

    async def _fall_back_to_disk(self) -> None:
        """A store that says nothing at all is as good as away."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ANSWER_SECONDS):
                await self._heard.wait()
                return
        self._clock.stop()
        self._load_last_good()

    def _load_last_good(self) -> None:
        """Take the snapshot on disk if nothing was ever heard; its nodes count as live."""
        if self._snapshot is not None:
            return
        snapshot = self._last_good.load()
        if snapshot is None:
            return
        now = self._clock.now()
        self._heartbeats = {
            name: Heartbeat(stamp=stamp, seen_at=now) for name, stamp in snapshot.last_seen.items()
        }
        self._snapshot = self._saved = snapshot
        self._log.warning("starting from the last good snapshot", nodes=len(snapshot.nodes))
        self._note_change()

    async def _follow_kernel(self) -> None:
        async for _ in self._dataplane.drift():
            self._pass_due.set()

    async def _follow_readiness(self) -> None:
        """Wake when the next node has been silent for too long."""
        while True:
            now = self._clock.now()
            expiry = None if self._clock.stopped else find_next_expiry(self._heartbeats, now=now)
            await asyncio.sleep(1.0 if expiry is None else min(1.0, expiry - now) + 0.01)
            if self._heard.is_set() and self._find_ready() != self._ready:
                self._note_change()

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self._resync_seconds)
            self._pass_due.set()

    # A pass.

    async def _reconcile(self) -> None:
        while True:
            await self._wait_until_due()
            if self._snapshot is None:
                continue
            changed_at, self._changed_at = self._changed_at, None
            try:
                await self._make_pass(self._snapshot)
            except (MeshError, DataplaneError) as error:
                self._fail([error])
            except ExceptionGroup as errors:
                self._fail(_flatten(errors))
            else:
                self._succeed(changed_at)

    async def _wait_until_due(self) -> None:
        """Until something asks for a pass or, after a failed one, the back-off is over."""
        index = min(self._failures, len(RETRY_SECONDS)) - 1
        pause = RETRY_SECONDS[index] if self._failures else None
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._pass_due.wait()
        self._pass_due.clear()

    async def _make_pass(self, snapshot: Snapshot) -> None:
        self._status.reconciles.inc()
        plan = await self._make_plan(snapshot)
        self._adopt(plan)
        for change in plan.changes:
            self._log.info("change", change=str(change))
        if plan.changes:
            await self._apply(plan.changes)
        self._status.state = plan.desired
        self._save(plan)

    async def _make_plan(self, snapshot: Snapshot) -> Plan:
        facts = await self._dataplane.facts()
        actual = await self._dataplane.read()
        if self._initial is None:
            self._initial = actual
        earlier, self._stats = self._stats, await self._dataplane.observe()
        knowledge = Knowledge(
            snapshot=snapshot,
            facts=facts,
            heartbeats=self._heartbeats,
            now=self._clock.now(),
            observed=Observed(now=time.time(), stats=self._stats, earlier=earlier),
            resolved=self._resolver.answers,
            configured=self._configured,
            report=self._publisher.report,
        )
        return make_plan(self._agent, knowledge, actual)

    def _adopt(self, plan: Plan) -> None:
        """Take the plan for what is so, and show it."""
        self._publisher.offer(plan.report)
        if self._snapshot is not None:
            self._snapshot = join_report(self._snapshot, plan.report)
        self._plan = plan
        self._configured = plan.configured
        self._ready = frozenset(node.name for node in plan.topology.nodes)
        self._resync_seconds = plan.settings.resync_period_seconds
        self._resolver.want(find_endpoint_names(plan.topology))
        self._notices.tell("problem", map(str, self._snapshot.problems if self._snapshot else ()))
        self._notices.tell("refusal", map(str, plan.topology.refusals))
        self._notices.tell("warning", plan.warnings)
        self._show(plan)

    def _show(self, plan: Plan) -> None:
        status, topology = self._status, plan.topology
        status.topology = topology
        status.stats = self._stats
        if self._snapshot is not None:
            status.snapshot = self._snapshot
        status.nodes.set(len(self._ready))
        status.peers.set(len(topology.peers))
        status.leader.set(any(s.leader.name == self._agent.name for s in topology.segments))
        status.invalid.set(len(status.snapshot.problems))
        status.refused.set(len(topology.refusals))

    async def _apply(self, changes: Changes) -> None:
        for change in changes:
            self._status.writes.labels(_name_kind(change.resource)).inc()
        try:
            await self._dataplane.apply(changes)
        finally:
            after = await self._dataplane.observe()
            self._status.session_resets.inc(count_resets(self._stats, after))
            self._stats = self._status.stats = after

    def _save(self, plan: Plan) -> None:
        """Keep what just worked, for a start without the store; nothing if it is kept already."""
        if self._snapshot is None or self._clock.stopped:
            return
        ready = {node.name for node in plan.topology.nodes}
        stamps = {n: beat.stamp for n, beat in self._heartbeats.items() if n in ready}
        snapshot = replace(self._snapshot, last_seen=stamps, problems=())
        same_ready = self._saved is not None and self._saved.last_seen.keys() == stamps.keys()
        if snapshot == self._saved and same_ready:
            return
        try:
            self._last_good.save(snapshot)
        except KiloError as error:
            self._notices.tell("snapshot not kept", [str(error)])
        else:
            self._saved = snapshot

    def _succeed(self, changed_at: float | None) -> None:
        self._failures = 0
        self._status.not_ready = ""
        self._status.ready.set(1)
        self._notices.tell("failure", ())
        if changed_at is not None:
            self._status.change_seconds.observe(time.monotonic() - changed_at)

    def _fail(self, errors: Iterable[BaseException]) -> None:
        lines = [str(error) for error in errors]
        self._failures += 1
        self._status.not_ready = lines[0]
        self._status.ready.set(0)
        for _ in lines:
            self._count_error("reconcile")
        self._notices.tell("failure", lines)

    def _count_error(self, event: str) -> None:
        self._status.errors.labels(event).inc()

    # The end.

    async def _shut_down(self) -> None:
        """Undo what the flags say; each part is tried though another fails."""
        if not self._clean_up.network:
            return
        for undo in (self._restore_network, self._publisher.withdraw):
            try:
                async with asyncio.timeout(CLEAN_UP_SECONDS):
                    await undo()
            except (KiloError, TimeoutError, ExceptionGroup) as error:
                for cause in _flatten(error):
                    text = str(cause) or type(cause).__name__
                    self._log.error("clean-up incomplete", error=text)

    async def _restore_network(self) -> None:
        """Back to what was there before the first pass; an interface found is an interface left."""
        if self._initial is None:
            return
        actual = await self._dataplane.read()
        links = frozenset() if self._clean_up.interface else self._initial.links
        kept = DataplaneState(links=links, devices=actual.devices if links else frozenset())
        changes = diff(actual, kept)
        await self._dataplane.apply(changes)
        self._log.info("network restored", changes=len(changes))


def count_resets(
    before: Mapping[PublicKey, PeerStats], after: Mapping[PublicKey, PeerStats]
) -> int:
    """How many peers that stayed have lost the session they had."""
    return sum(
        1
        for key in before.keys() & after.keys()
        if before[key].latest_handshake > 0 and after[key].latest_handshake == 0
    )


def _name_kind(resource: Resource) -> str:
    """The label of a write: ``link``, ``address``, ``device``, ``peer``, ``route`` ..."""
    return type(resource).__name__.removeprefix("WireGuard").lower()


def _flatten(error: BaseException) -> list[BaseException]:
    """The leaves of an exception group, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _flatten(inner)]
    return [error]


def _find_cause(errors: ExceptionGroup[Exception]) -> BaseException:
    """What the program ends with: the configuration error if that is why, else everything."""
    causes = [leaf for leaf in _flatten(errors) if isinstance(leaf, ConfigError)]
    return causes[0] if causes else errors
