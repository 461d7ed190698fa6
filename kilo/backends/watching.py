"""One watch of a whole store: its collections, told as one stream of snapshots.

A change is told at once, save that a burst of changes is told as one. Heartbeats come by the
dozen a second in a big mesh and are told once a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import replace

from kilo.backends.entries import Entry, join_entries, read_stamps
from kilo.backends.listwatch import FOLLOWER, PULSE, Collection
from kilo.backends.news import News
from kilo.backends.source import Source
from kilo.errors import BackendError
from kilo.mesh.model import Snapshot

DEBOUNCE_SECONDS, MAX_DEBOUNCE_SECONDS = 0.02, 0.25
"""A burst of changes has ended when no more came for so long; the most that anything is held."""
FIRST_SECONDS = 0.005
"""The same where nothing had changed for a while: for what is written in one go."""
HEARTBEATS_SECONDS = 1.0


class StoreWatch:
    """Follows a store until stopped. Made for one use."""

    def __init__(self, sources: Mapping[str, Source[Entry]]) -> None:
        """``sources``: by the names of their collections, the pulse first."""
        # The pulse first: where it fails, that is what to tell.
        self._collections: dict[str, Collection[Entry]] = {}
        pulse: asyncio.Event | None = None
        for name, source in sources.items():
            pace = PULSE if pulse is None else FOLLOWER
            collection = Collection(source, _Listener(self, name), pace=pace, pulse=pulse)
            self._collections[name] = collection
            pulse = pulse or collection.heard
        self._snapshot: Snapshot | None = None
        """The last one joined."""
        self._is_joined = False
        """Whether nothing but stamps has changed since."""
        self._wake = asyncio.Event()
        self._has_news = False
        self._has_stamps = False
        self._told_at = self._joined_at = 0.0
        self._is_ended = False
        self._runner: asyncio.Task[None] | None = None

    async def follow(self) -> AsyncGenerator[Snapshot | BackendError, None]:
        """Snapshots and errors, as ``Backend.watch`` promises."""
        if self._is_ended:
            return
        news = News()
        self._runner = runner = asyncio.create_task(self._run(), name="store watch")
        runner.add_done_callback(lambda _: self._wake.set())
        try:
            while True:
                await self._wait_for_news(runner)
                if runner.done():
                    break
                outcome = self._tell()
                if outcome is not None and news.notice(outcome):
                    yield outcome
        finally:
            await self.stop()
        if not runner.cancelled():
            runner.result()  # it never ends by itself: this raises the bug that ended it

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
            for one in self._collections.values():
                group.create_task(one.run())

    # Told by the collections.

    def note_change(self, old: Entry | None, new: Entry | None) -> None:
        """A heartbeat leaves the part the very same."""
        if old is None or new is None or old.part is not new.part:
            self._is_joined = False
            self.note_state()
        elif not self._has_stamps:
            self._has_stamps = True
            self._wake.set()

    def note_state(self) -> None:
        """Something is to be told."""
        self._has_news = True
        self._wake.set()

    def note_put_back(self, name: str) -> None:
        """What one collection found holds for the others."""
        for other, collection in self._collections.items():
            if other != name:
                collection.renew()

    # What is told.

    async def _wait_for_news(self, runner: asyncio.Task[None]) -> None:
        """Until there is something to tell, or the runner has ended."""
        while not self._has_news and not runner.done():
            self._wake.clear()
            pause = self._told_at + HEARTBEATS_SECONDS - _now() if self._has_stamps else None
            if pause is not None and pause <= 0:
                return
            await self._wait(pause)
        is_first = _now() >= self._joined_at + MAX_DEBOUNCE_SECONDS
        pause = FIRST_SECONDS if is_first else DEBOUNCE_SECONDS
        limit = _now() + MAX_DEBOUNCE_SECONDS
        while not runner.done() and _now() < limit:
            self._wake.clear()
            if not await self._wait(pause):
                break
        self._has_news = False

    async def _wait(self, seconds: float | None) -> bool:
        """Whether something came within that time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._wake.wait()
        return False

    def _tell(self) -> Snapshot | BackendError | None:
        """None while there is nothing whole to tell yet."""
        # Also when that, or the error, comes out: stamps would otherwise be news at once again.
        self._told_at = _now()
        collections = self._collections.values()
        error = next((one.error for one in collections if one.error), None)
        if error is not None:
            return error
        return self._join() if all(one.is_listed for one in collections) else None

    def _join(self) -> Snapshot:
        held = [one.items for one in self._collections.values()]
        if self._snapshot is None or not self._is_joined:
            self._snapshot, self._is_joined = join_entries(held, self._snapshot), True
            self._joined_at = _now()
        elif self._has_stamps:
            self._snapshot = replace(self._snapshot, last_seen=read_stamps(held))
        self._has_stamps = False
        return self._snapshot


class _Listener:
    """Of one collection."""

    def __init__(self, watch: StoreWatch, name: str) -> None:
        self._watch = watch
        self._name = name

    def note_change(self, old: Entry | None, new: Entry | None) -> None:
        self._watch.note_change(old, new)

    def note_state(self) -> None:
        self._watch.note_state()

    def note_put_back(self) -> None:
        self._watch.note_put_back(self._name)


def _now() -> float:
    return asyncio.get_running_loop().time()
