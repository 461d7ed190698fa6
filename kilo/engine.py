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
from dataclasses import dataclass

from kilo.backends.base import Backend
from kilo.dataplane.base import ConsequenceError, Dataplane, find_refused
from kilo.errors import (
    BackendError,
    ConfigError,
    DataplaneError,
    KiloError,
    MeshError,
    flatten_errors,
)
from kilo.heard import Heard, LastGood
from kilo.log import get_logger
from kilo.mesh.diff import Change, diff
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, Settings, Snapshot
from kilo.mesh.plan import (
    Agent,
    Basis,
    Knowledge,
    Plan,
    find_endpoint_names,
    join_report,
    make_plan,
)
from kilo.mesh.remarks import build_remarks
from kilo.mesh.roaming import Observed, count_resets
from kilo.mesh.state import DataplaneState, PeerStats, Resource, WireGuardPeer
from kilo.notices import Notices
from kilo.pods import PodConfiguration, Pods
from kilo.publisher import Publisher
from kilo.resolver import Lookup, Resolver, look_up
from kilo.retrying import back_off
from kilo.spokesman import Spokesman
from kilo.status import Status
from kilo.storenews import StoreNews

FIRST_ANSWER_SECONDS = 5.0
"""How long a start waits for a silent store before it takes the snapshot on disk."""
FOLLOW_AGAIN_SECONDS = 1.0
SESSIONS_SECONDS = 1.0
"""When to look what sessions new peers have: others are to know where one behind NAT is found."""
LAST_PASS_SECONDS = 20.0
"""How long a shutdown lets a pass that has begun come to its end."""
CLEAN_UP_SECONDS = 20.0
HAND_OVER_SECONDS = 3.0
"""How long a leader that leaves goes on working: others hear of it within one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanUp:
    """What a shutdown undoes; the flags of the same names."""

    network: bool = True
    interface: bool = False


class Engine:
    """One agent at work."""

    def __init__(  # noqa: PLR0913  the parts of an agent, handed in by the program
        self,
        agent: Agent,
        backend: Backend,
        dataplane: Dataplane,
        status: Status,
        last_good: LastGood,
        *,
        pods: PodConfiguration | None = None,
        clean_up: CleanUp = CleanUp(),
        look_up: Lookup = look_up,
    ) -> None:
        self._agent = agent
        self._backend = backend
        self._dataplane = dataplane
        self._status = status
        self._heard = Heard(agent.name, last_good)
        self._pods = Pods(pods)
        self._clean_up = clean_up
        self._log = get_logger("engine")
        self._notices = Notices("engine")
        self._publisher = Publisher(backend, failed=lambda: self._count_error("publish"))
        self._spokesman = Spokesman(backend, failed=lambda: self._count_error("remark"))
        self._store_news = StoreNews(status)
        self._resolver = Resolver(changed=self._note_change, look_up=look_up)
        self._pass_due = asyncio.Event()
        self._changed_at: float | None = None
        self._stats: Mapping[PublicKey, PeerStats] = {}
        self._configured: Mapping[PublicKey, Endpoint] = {}
        self._initial: DataplaneState | None = None
        self._basis: Basis | None = None
        self._resync_seconds = Settings().resync_period_seconds
        self._failures = 0
        self._sessions_at = float("inf")

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then undo what the flags say.

        ``ConfigError`` if the host cannot take part at all. After that, or any other exception,
        which is a bug, nothing is undone: a mesh that works goes on without its agent.
        """
        await self._work(stop)
        await self._shut_down()

    async def _work(self, stop: asyncio.Event) -> None:
        followers = (
            self._follow_backend(),
            self._fall_back_to_disk(),
            self._follow_kernel(),
            self._follow_readiness(),
            self._publisher.run(),
            self._spokesman.run(),
            self._resolver.run(),
        )
        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(follower) for follower in followers]
                passes = group.create_task(self._reconcile(stop))
                await stop.wait()
                for task in running:
                    task.cancel()
                self._pass_due.set()
                # Not cancelled: half a pass would be half a network, and its threads would go on.
                await asyncio.wait({passes}, timeout=LAST_PASS_SECONDS)
                passes.cancel()
        except ExceptionGroup as errors:
            raise _find_cause(errors) from None

    # What makes a pass due.

    def _note_change(self) -> None:
        if self._changed_at is None:
            self._changed_at = time.monotonic()
        self._pass_due.set()

    async def _follow_backend(self) -> None:
        while True:
            try:
                async for item in self._backend.watch():
                    if isinstance(item, BackendError):
                        self._lose_store(item)
                    else:
                        self._hear(item)
            except BackendError as error:
                self._lose_store(error)
            await asyncio.sleep(FOLLOW_AGAIN_SECONDS)

    def _lose_store(self, error: BackendError) -> None:
        self._store_news.tell_lost(error, self._heard.snapshot)
        if self._heard.lose():
            self._note_change()

    def _hear(self, snapshot: Snapshot) -> None:
        believed = self._heard.weigh(snapshot)
        if isinstance(believed, BackendError):
            if self._status.store_error != str(believed):
                self._lose_store(believed)
            return
        if self._store_news.tell_heard(believed):
            self._publisher.hurry()
        if self._heard.hear(believed, self._publisher.report):
            self._note_change()

    async def _fall_back_to_disk(self) -> None:
        """A store that says nothing at all is as good as away."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ANSWER_SECONDS):
                await self._heard.first_answer.wait()
                return
        if not self._heard.is_away:
            self._lose_store(BackendError(f"store: no answer for {FIRST_ANSWER_SECONDS:.0f} s"))

    async def _follow_kernel(self) -> None:
        while True:
            try:
                drift = self._dataplane.drift()
                self._pass_due.set()  # for what was touched while nobody listened
                async for _ in drift:
                    self._pass_due.set()
            except DataplaneError as error:
                self._notices.tell("kernel not followed, only resyncs repair it", [str(error)])
            await asyncio.sleep(FOLLOW_AGAIN_SECONDS)

    async def _follow_readiness(self) -> None:
        """Notice when a node has been silent for too long."""
        while True:
            await self._heard.wait_for_silence()
            if self._heard.first_answer.is_set() and self._heard.has_new_readiness():
                self._note_change()

    # A pass.

    async def _reconcile(self, stop: asyncio.Event) -> None:
        while True:
            await self._wait_until_due()
            if stop.is_set():
                return
            snapshot = self._heard.snapshot
            if snapshot is None:
                continue
            changed_at, self._changed_at = self._changed_at, None
            self._heard.note_readiness()
            self._status.pass_began_at = time.monotonic()
            try:
                await self._make_pass(snapshot, changed_at)
            except* (MeshError, DataplaneError) as errors:
                self._changed_at = changed_at or self._changed_at
                self._fail(flatten_errors(errors))
            self._status.pass_began_at = None

    async def _wait_until_due(self) -> None:
        """Until something asks for a pass, or it is time for a resync or for another try."""
        pause = self._resync_seconds
        if self._failures:
            pause = min(pause, back_off(self._failures))
        pause = min(pause, max(0.0, self._sessions_at - time.monotonic()))
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._pass_due.wait()
        self._pass_due.clear()
        if time.monotonic() >= self._sessions_at:
            self._sessions_at = float("inf")

    async def _make_pass(self, snapshot: Snapshot, changed_at: float | None) -> None:
        self._status.reconciles.inc()
        self._notices.tell("problem", map(str, snapshot.problems))
        plan = await self._make_plan(snapshot)
        self._adopt(plan, snapshot)
        await self._pods.configure(plan.pods)
        for change in plan.changes:
            self._log.info("change", change=str(change))
        await self._apply(plan)
        if any(isinstance(change.new, WireGuardPeer) for change in plan.changes):
            self._sessions_at = time.monotonic() + SESSIONS_SECONDS
        self._status.note_applied(plan.changes, plan.desired)
        self._succeed(changed_at)
        await self._heard.keep(join_report(snapshot, plan.report))

    async def _make_plan(self, snapshot: Snapshot) -> Plan:
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self._dataplane.facts())
            reading = group.create_task(self._dataplane.read())
            stats = await self._dataplane.observe()
        facts, actual = asking.result(), reading.result()
        earlier, self._stats = self._stats, stats
        if self._initial is None:
            self._initial = actual
        self._status.session_resets.inc(count_resets(earlier, self._stats))
        knowledge = Knowledge(
            snapshot=snapshot,
            facts=facts,
            heartbeats=self._heard.heartbeats,
            now=self._heard.now,
            observed=Observed(now=time.time(), stats=self._stats, earlier=earlier),
            resolved=self._resolver.answers,
            configured=self._configured,
            report=self._publisher.report,
        )
        plan = make_plan(self._agent, knowledge, actual, earlier=self._basis)
        self._basis = plan.basis
        return plan

    def _adopt(self, plan: Plan, snapshot: Snapshot) -> None:
        """Take the plan for what is so, and show it."""
        self._publisher.offer(plan.report)
        self._heard.report(plan.report)
        self._heard.note_readiness()
        self._resync_seconds = plan.settings.resync_period_seconds
        self._resolver.want(find_endpoint_names(plan.topology))
        self._notices.tell("refusal", map(str, plan.topology.refusals))
        self._notices.tell("warning", plan.warnings)
        self._remark(plan, snapshot)
        self._show(plan, snapshot)

    def _remark(self, plan: Plan, snapshot: Snapshot) -> None:
        """Not from a snapshot on the disk: who speaks, and of what, cannot be told by it."""
        if not self._heard.is_away:
            remarks = build_remarks(
                snapshot,
                plan.topology,
                local=self._agent.name,
                stats=self._stats,
                told=self._spokesman.handshakes,
            )
            self._spokesman.offer(remarks)

    def _show(self, plan: Plan, snapshot: Snapshot) -> None:
        status, topology = self._status, plan.topology
        status.topology = topology
        status.stats = self._stats
        status.warnings = plan.warnings
        status.snapshot = join_report(snapshot, plan.report)
        status.nodes.set(len(list(topology.nodes)))
        status.peers.set(len(topology.peers))
        status.leader.set(any(s.leader.name == self._agent.name for s in topology.segments))
        status.invalid.set(len(snapshot.problems))
        status.refused.set(len(topology.refusals))

    async def _apply(self, plan: Plan) -> None:
        try:
            if plan.changes:
                await self._dataplane.apply(plan.changes)
        except ExceptionGroup as errors:
            self._note_applied(plan, refused=find_refused(plan.changes, flatten_errors(errors)))
            raise
        self._note_applied(plan, refused=frozenset())

    def _note_applied(self, plan: Plan, *, refused: frozenset[Change]) -> None:
        """Count what was written. An endpoint that was refused is as new at the next pass."""
        configured = dict(plan.configured)
        for change in plan.changes:
            resource = change.resource
            if change not in refused:
                self._status.writes.labels(_name_kind(resource)).inc()
            elif isinstance(resource, WireGuardPeer) and resource.public_key in self._configured:
                configured[resource.public_key] = self._configured[resource.public_key]
        self._configured = configured

    def _succeed(self, changed_at: float | None) -> None:
        self._failures = 0
        self._status.not_ready, self._status.failures = "", ()
        self._status.ready.set(1)
        self._notices.tell("failure", ())
        if changed_at is not None:
            self._status.change_seconds.observe(time.monotonic() - changed_at)

    def _fail(self, errors: Iterable[BaseException]) -> None:
        lines = [str(error) for error in errors if not isinstance(error, ConsequenceError)]
        self._failures += 1
        self._status.not_ready, self._status.failures = lines[0], tuple(lines)
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
        for undo in (self._hand_over, self._restore_network):
            try:
                async with asyncio.timeout(CLEAN_UP_SECONDS):
                    await undo()
            except* (KiloError, TimeoutError) as errors:
                for cause in flatten_errors(errors):
                    text = str(cause) or type(cause).__name__
                    self._log.error("clean-up incomplete", error=text)

    async def _hand_over(self) -> None:
        """Take the report back; whoever sends through this node finds another way meanwhile. What
        would come later would be sent on by the host's own routes, in clear.
        """
        await self._publisher.withdraw()
        topology = self._status.topology
        segment = topology.find_segment(self._agent.name) if topology else None
        if segment and segment.leader.name == self._agent.name and len(segment.nodes) > 1:
            await asyncio.sleep(HAND_OVER_SECONDS)

    async def _restore_network(self) -> None:
        """Back to what was there before the first pass; an interface found is an interface left."""
        if self._initial is None:
            return
        actual = await self._dataplane.read()
        keeps = actual.links and not self._clean_up.interface
        links = self._initial.links if keeps else frozenset()
        kept = DataplaneState(links=links, devices=actual.devices if links else frozenset())
        changes = diff(actual, kept)
        await self._dataplane.apply(changes)
        self._log.info("network restored", changes=len(changes))


def _name_kind(resource: Resource) -> str:
    """The label of a write: ``link``, ``address``, ``device``, ``peer``, ``route`` ..."""
    return type(resource).__name__.removeprefix("WireGuard").lower()


def _find_cause(errors: ExceptionGroup[Exception]) -> BaseException:
    """What the program ends with: the configuration error if that is why, or the one bug."""
    causes = flatten_errors(errors)
    told = [cause for cause in causes if isinstance(cause, ConfigError)]
    return told[0] if told else causes[0] if len(causes) == 1 else errors
