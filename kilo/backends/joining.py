"""Several stores as one mesh: an agent publishes to the first and reads all.

Nothing is copied from one into another. So there is nothing that could go in circles, grow stale
or die in between, and nobody who needs to write to two stores.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TypeVar

from kilo.backends.base import Backend
from kilo.backends.news import News
from kilo.backends.parts import ORDER, join_parts, mark_part
from kilo.errors import BackendError
from kilo.mesh.model import NodeReport, NodeSpec, PartialSettings, Peer, Snapshot
from kilo.mesh.remarks import Remarks, select_remarks

FIRST_ANSWERS_SECONDS = 4.0
"""How long a watch waits for stores that say nothing before it tells what the others say: less
than an agent waits before it goes by what is on its disk."""
FOLLOW_AGAIN_SECONDS = 1.0

T = TypeVar("T")

Holds = Callable[[Snapshot], bool]


class JoinedBackend:
    """Several stores, read together. Implements ``Backend``; for one event loop.

    What exists in no store yet is made in the first; what exists is changed and deleted where it
    stands.
    """

    def __init__(
        self,
        stores: Mapping[str, Backend],
        *,
        first_answers_seconds: float = FIRST_ANSWERS_SECONDS,
    ) -> None:
        """``stores`` by kind (``parts.ORDER``), the one to publish to first; closed with this."""
        self._stores = dict(stores)
        self._home, self._first = next(iter(self._stores.items()))
        self._first_answers_seconds = first_answers_seconds
        self._watches: weakref.WeakSet[_JoinedWatch] = weakref.WeakSet()
        self._is_closed = False

    def watch(self) -> AsyncGenerator[Snapshot | BackendError, None]:
        """The snapshot of all, now and after every change; see the contract."""
        watch = _JoinedWatch(self._stores, self._home, self._first_answers_seconds)
        self._watches.add(watch)
        if self._is_closed:
            watch.end()
        return watch.follow()

    async def snapshot(self) -> Snapshot:
        """What all of them hold now; ``BackendError`` if one cannot be read, for half a mesh is
        another mesh.
        """
        parts, errors = await self._read_parts()
        _raise_all(errors)
        return join_parts(parts, home=self._home)

    async def publish(self, report: NodeReport) -> None:
        """To the first."""
        await self._first.publish(report)

    async def withdraw(self, name: str) -> None:
        """From the first."""
        await self._first.withdraw(name)

    async def put_peer(self, peer: Peer) -> None:
        """Into the first, unless it stands in another: there it is to be changed."""
        await self._check_place("Peer", peer.name, lambda part: _has_peer(part, peer.name))
        await self._first.put_peer(peer)

    async def delete_peer(self, name: str) -> None:
        """Wherever it stands."""
        await self._change_where(
            lambda part: _has_peer(part, name), lambda store: store.delete_peer(name)
        )

    async def declare_node(self, name: str, spec: NodeSpec) -> None:
        """In the first, unless it stands in another: there it is to be changed."""
        await self._check_place("Node", name, lambda part: _has_node(part, name))
        await self._first.declare_node(name, spec)

    async def forget_node(self, name: str) -> None:
        """Wherever it stands."""
        await self._change_where(
            lambda part: _has_node(part, name), lambda store: store.forget_node(name)
        )

    async def declare_settings(self, settings: PartialSettings) -> None:
        """In the first."""
        await self._first.declare_settings(settings)

    async def forget_settings(self) -> None:
        """Wherever there are any."""
        await self._change_where(_has_settings, lambda store: store.forget_settings())

    async def remark(self, remarks: Remarks) -> None:
        """To each what is said of its own objects."""
        stores = self._stores.items()
        await _do_all({kind: store.remark(select_remarks(remarks, kind)) for kind, store in stores})

    async def close(self) -> None:
        """Close them all."""
        self._is_closed = True
        for watch in tuple(self._watches):
            await watch.stop()
        await _do_all({kind: store.close() for kind, store in self._stores.items()})

    async def _read_parts(self) -> tuple[dict[str, Snapshot], dict[str, BackendError]]:
        """What each says, marked, or why it says nothing."""
        outcomes = await _gather({k: store.snapshot() for k, store in self._stores.items()})
        parts, errors = {}, {}
        for kind, outcome in outcomes.items():
            if isinstance(outcome, BackendError):
                errors[kind] = outcome
            else:
                parts[kind] = mark_part(outcome, kind)
        return parts, errors

    async def _check_place(self, kind: str, name: str, holds: Holds) -> None:
        """``BackendError`` where the object of that name is another store's.

        Beside it a second one would stand, of which one is left out.
        """
        parts, errors = await self._read_parts()
        if self._home in parts and holds(parts[self._home]):
            return
        for place, part in parts.items():
            if place != self._home and holds(part):
                raise BackendError(
                    f"{kind} {name}: stands in {place}, not in {self._home}: write it there"
                    f" (--backend={place})"
                )
        _raise_all(errors)

    async def _change_where(
        self, holds: Holds, change: Callable[[Backend], Awaitable[None]]
    ) -> None:
        """What can be done is done, though one store is away. Where none has it, ask the first: it
        may know of more than can be read.
        """
        parts, errors = await self._read_parts()
        places = [kind for kind, part in parts.items() if holds(part)]
        if not places and self._home in parts:
            places = [self._home]
        await _do_all({kind: change(self._stores[kind]) for kind in places}, errors)


def _has_peer(part: Snapshot, name: str) -> bool:
    return any(peer.name == name for peer in part.peers) or _has_bad(part, f"Peer {name}")


def _has_node(part: Snapshot, name: str) -> bool:
    return any(node.name == name for node in part.nodes) or _has_bad(part, f"Node {name}")


def _has_settings(part: Snapshot) -> bool:
    return bool(part.settings) or any(one.object.startswith("Settings ") for one in part.problems)


def _has_bad(part: Snapshot, name: str) -> bool:
    """Whether it stands there, though it cannot be read."""
    return any(problem.object == name for problem in part.problems)


class _JoinedWatch:
    """Follows several stores until stopped. Made for one use."""

    def __init__(
        self, stores: Mapping[str, Backend], home: str, first_answers_seconds: float
    ) -> None:
        self._stores = stores
        self._home = home
        self._first_answers_seconds = first_answers_seconds
        self._parts: dict[str, Snapshot] = {}
        """As each was last heard, marked."""
        self._away: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._is_ended = False
        self._runner: asyncio.Task[None] | None = None

    async def follow(self) -> AsyncGenerator[Snapshot | BackendError, None]:
        """Snapshots and errors, as ``Backend.watch`` promises."""
        if self._is_ended:
            return
        news = News()
        self._runner = runner = asyncio.create_task(self._run(), name="joined watch")
        runner.add_done_callback(lambda _: self._wake.set())
        try:
            await self._wait_for_first_answers(runner)
            while not runner.done():
                self._wake.clear()
                outcome = self._tell()
                if news.notice(outcome):
                    yield outcome
                else:
                    await self._wake.wait()
        finally:
            await self.stop()
        if not runner.cancelled():
            runner.result()  # raises the bug that ended it, if one did

    def end(self) -> None:
        """Begin to end it; ``follow`` ends with it, or at once if it is yet to begin."""
        self._is_ended = True
        if self._runner is not None:
            self._runner.cancel()

    async def stop(self) -> None:
        """End it, and wait until it has ended. May be called twice."""
        self.end()
        if self._runner is not None:
            await asyncio.wait({self._runner})

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for kind, store in self._stores.items():
                group.create_task(self._follow(kind, store))

    async def _follow(self, kind: str, store: Backend) -> None:
        while True:
            try:
                async for outcome in store.watch():
                    self._note(kind, outcome)
            except BackendError as error:
                self._note(kind, error)
            else:
                return
            await asyncio.sleep(FOLLOW_AGAIN_SECONDS)

    def _note(self, kind: str, outcome: Snapshot | BackendError) -> None:
        if isinstance(outcome, BackendError):
            self._away[kind] = str(outcome)
        else:
            self._away.pop(kind, None)
            self._parts[kind] = mark_part(outcome, kind)
        self._wake.set()

    async def _wait_for_first_answers(self, runner: asyncio.Task[None]) -> None:
        """Until each store has said something, or has been silent for too long."""
        seconds = self._first_answers_seconds
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not runner.done() and self._find_silent():
                    self._wake.clear()
                    await self._wake.wait()
        for kind in self._find_silent():
            self._away[kind] = f"{kind}: no answer for {seconds:g} s"

    def _find_silent(self) -> list[str]:
        return [k for k in self._stores if k not in self._parts and k not in self._away]

    def _tell(self) -> Snapshot | BackendError:
        away = {kind: self._away[kind] for kind in ORDER if kind in self._away}
        if len(away) == len(self._stores):
            return BackendError("; ".join(away.values()))
        return join_parts(self._parts, home=self._home, away=away)


async def _gather(calls: Mapping[str, Awaitable[T]]) -> dict[str, T | BackendError]:
    """What each comes to, all asked at once."""
    async with asyncio.TaskGroup() as group:
        tasks = {kind: group.create_task(_try(call)) for kind, call in calls.items()}
    return {kind: task.result() for kind, task in tasks.items()}


async def _try(call: Awaitable[T]) -> T | BackendError:
    try:
        return await call
    except BackendError as error:
        return error


async def _do_all(
    calls: Mapping[str, Awaitable[None]], errors: Mapping[str, BackendError] = MappingProxyType({})
) -> None:
    """Each is tried; ``BackendError`` with what failed, be it one of these ``errors`` before."""
    outcomes = await _gather(calls)
    failed = {kind: one for kind, one in outcomes.items() if isinstance(one, BackendError)}
    _raise_all({**errors, **failed})


def _raise_all(errors: Mapping[str, BackendError]) -> None:
    if errors:
        texts = [str(errors[kind]) for kind in ORDER if kind in errors]
        raise BackendError("; ".join(texts)) from next(iter(errors.values()))
