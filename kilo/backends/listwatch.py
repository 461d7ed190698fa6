"""List, watch, resume, back off: how a copy of a store's objects is kept, written once.

A ``Collection`` keeps the copy, from a ``Source``, and says when it cannot. Why it does what it
does: docs/adr/0013.

One collection of a store is its *pulse*: its objects change every few seconds while all is well,
so its silence is looked into. The others follow it: while the pulse cannot be heard they do not
knock either. Times are seconds on the event loop's clock.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from kilo.backends.source import (
    Bookmark,
    BusyError,
    Delete,
    Event,
    ExpiredError,
    Item,
    Opened,
    Probe,
    Put,
    Source,
    V,
    is_older,
)
from kilo.errors import BackendError

V_contra = TypeVar("V_contra", contravariant=True)

FIRST_SECONDS, LONGEST_SECONDS = 0.5, 5.0
"""Bounds of the back-off; with the longest we are back within 10 s of a store's return."""
STEADY_SECONDS = 5.0
"""A stream that lasted so long, or that said something, was no failure to begin with."""
GRACE_SECONDS = 1.0
"""How far a stream may lag behind what a read of the store shows."""
VERIFY_SECONDS, LONGEST_VERIFY_SECONDS = 0.3, 300.0
"""For every object held: over how long agents spread their lists after an outage."""
RENEW_SECONDS, LONGEST_RENEW_SECONDS = 0.03, 30.0
"""The same where a list cannot wait, for what is held is known to be outdated."""
MAX_BREAKS = 3
"""So many streams in a row may break at once before the pauses between them grow."""
MAX_REFUSALS = 3
"""So often in a row is a revision refused by a store that answers before all is listed anew."""


class _BrokenError(BackendError):
    """A stream that had been opened broke; whether the store is away the next attempt shows."""


class Listener(Protocol[V_contra]):
    """Who is to know what becomes of a collection. Called in the event loop; must not block."""

    def note_change(self, old: V_contra | None, new: V_contra | None) -> None:
        """An object came, went, or has another value."""
        ...

    def note_state(self) -> None:
        """``is_listed`` or ``error`` may have changed."""
        ...

    def note_put_back(self) -> None:
        """The store was put back to an older state."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How patient a collection is."""

    probe_seconds: float = math.inf
    """The store is asked for a proof of life when no object has changed for so long."""
    resume_seconds: float = 90.0
    """A stream that has been silent for so long is opened anew."""
    patience_seconds: float = 6.0
    """Failures are told when they have lasted for so long."""


PULSE = Pace(probe_seconds=10.0, resume_seconds=35.0, patience_seconds=0.0)
"""Agents check in every 30 s, and so does whoever reads this: 35 s of silence are too long."""
FOLLOWER = Pace()
"""An API server's bookmarks come about once a minute."""


class Collection(Generic[V]):
    """A copy of all objects of one kind."""

    def __init__(
        self,
        source: Source[V],
        listener: Listener[V],
        *,
        pace: Pace,
        pulse: asyncio.Event | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """``pulse``: the ``heard`` of the collection to follow. ``draw``: a number from 0 to 1."""
        self.items: dict[str, Item[V]] = {}
        self.is_listed = False
        """Whether ``items`` has ever been complete."""
        self.error: BackendError | None = None
        """Why the store cannot be heard; None while it can, or nobody knows better yet."""
        self.heard = asyncio.Event()
        """Set while there is no such error."""
        self.heard.set()
        self._source = source
        self._listener = listener
        self._pace = pace
        self._pulse = pulse or self.heard
        self._draw = draw
        self._revision = ""
        """Where the watch resumes; empty: list first."""
        self._highest = ""
        self._spoke_at = 0.0
        self._renewal = asyncio.Event()
        self._is_suspect = False
        """Something broke since the last list: a store put back would not have told."""
        self._verify_at: float | None = None
        """When to list for that reason; None while it is not drawn."""
        self._failures = 0
        """Attempts in a row that came to nothing."""
        self._breaks = 0
        """Streams in a row that broke soon after they had been opened."""
        self._refusals = 0
        """Attempts in a row that failed although the store had just answered."""
        self._failing_since: float | None = None

    def renew(self) -> None:
        """List anew soon: the store was put back to an older state."""
        self._highest = ""
        self._renewal.set()

    async def run(self) -> None:
        """Keep the copy until cancelled."""
        while True:
            began_at = _now()
            try:
                await self._listen()
            except BackendError as error:
                if _now() - began_at >= STEADY_SECONDS:
                    self._breaks = 0
                self._fail(error)
                await self._back_off(at_least=_read_pause(error))

    async def _listen(self) -> None:
        """Once through: prove, list if need be, and follow until something else is due."""
        if self._renewal.is_set():
            await asyncio.sleep(self._draw_renewal())  # all agents hear of it in the same moment
        if self._renewal.is_set() or self._refusals == MAX_REFUSALS:
            self._revision = ""
        if self._revision and (self._failures or self._breaks) and self._is_pulse:
            await self._ask()
        if not self._revision:
            await self._list()
        self._spoke_at = _now()
        await _race(self._read(), self._watch_silence(), self._wait_for_renewal())

    @property
    def _is_pulse(self) -> bool:
        return self._pulse is self.heard

    # What is heard.

    async def _list(self) -> None:
        self._renewal.clear()
        listing = await self._source.list(self.items)
        was_put_back = is_older(listing.revision, self._highest)
        self._replace(listing.items)
        self._revision = self._highest = listing.revision
        self._is_suspect, self._verify_at = False, None
        self.is_listed = True
        self._listener.note_state()
        if was_put_back:
            self._listener.note_put_back()

    def _replace(self, items: Mapping[str, Item[V]]) -> None:
        before, self.items = self.items, dict(items)
        for key in before.keys() | items.keys():
            self._compare(before.get(key), items.get(key))

    async def _read(self) -> None:
        """Follow the stream to its agreed end."""
        is_open = False
        try:
            async with aclosing(self._source.watch(self._revision, self.items)) as events:
                async for event in events:
                    self._take(event)
                    is_open = True
        except ExpiredError:
            raise
        except BackendError as error:
            if is_open:
                raise _BrokenError(str(error)) from error
            self._refusals += 1
            raise

    def _take(self, event: Event[V]) -> None:
        match event:
            case Put(key, item):
                old = self.items.get(key)
                self.items[key] = item
                self._advance(item.revision, is_proof=True)
                self._compare(old, item)
            case Delete(key, revision):
                self._advance(revision, is_proof=True)
                self._compare(self.items.pop(key, None), None)
            case Bookmark(revision):
                # Of the pulse it proves nothing: a cache sends it though the store is gone.
                self._advance(revision, is_proof=not self._is_pulse)
            case Opened():
                self._recover()

    def _advance(self, revision: str, *, is_proof: bool) -> None:
        self._revision = revision
        self._highest = self._highest if is_older(revision, self._highest) else revision
        self._breaks = 0
        if is_proof:
            self._spoke_at = _now()

    def _compare(self, old: Item[V] | None, new: Item[V] | None) -> None:
        before, after = old.value if old else None, new.value if new else None
        if before != after:
            self._listener.note_change(before, after)

    # What is not.

    async def _watch_silence(self) -> None:
        """Until the stream has been silent for so long that it is to be opened anew."""
        asked_at = -math.inf
        while True:
            resume_at = self._spoke_at + self._pace.resume_seconds
            ask_at = max(self._spoke_at, asked_at) + self._pace.probe_seconds
            if _now() >= resume_at:
                return
            if _now() < ask_at:
                await asyncio.sleep(min(resume_at, ask_at) - _now())
                continue
            probe = await self._ask()
            asked_at = _now()
            if not self._revision or await self._is_deaf(probe):
                return

    async def _ask(self) -> Probe:
        """Have the store prove that it answers; lists anew if it is in an older state than we."""
        highest, held = self._highest, {key: item.revision for key, item in self.items.items()}
        probe = await self._source.probe()
        if is_older(probe.revision, highest) or any(
            is_older(revision, held.get(key, "")) for key, revision in probe.revisions.items()
        ):
            self._revision = self._highest = ""
            self._listener.note_put_back()
            await asyncio.sleep(self._draw_renewal())
        return probe

    async def _is_deaf(self, probe: Probe) -> bool:
        """Whether there is something new of which the stream does not tell."""
        if not self._lags_behind(probe):
            return False
        await asyncio.sleep(GRACE_SECONDS)
        if not self._lags_behind(probe):
            return False
        self._is_suspect = True
        return True

    def _lags_behind(self, probe: Probe) -> bool:
        held = ((self.items.get(key), revision) for key, revision in probe.revisions.items())
        return any(item is None or is_older(item.revision, revision) for item, revision in held)

    async def _wait_for_renewal(self) -> None:
        """Until all is to be listed anew."""
        if self._is_suspect and self._verify_at is None:
            self._verify_at = _now() + self._draw_verification()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._verify_at):
                await self._renewal.wait()
        self._revision = ""

    def _fail(self, error: BackendError) -> None:
        if isinstance(error, ExpiredError):
            self._breaks += 1
            self._revision = ""
            return
        self._is_suspect = True
        if isinstance(error, _BrokenError):
            self._breaks += 1
            return
        self._failures += 1
        self._verify_at = None  # to be counted from the store's return
        self._failing_since = _now() if self._failing_since is None else self._failing_since
        if _now() - self._failing_since >= self._pace.patience_seconds:
            self.error = error
            self.heard.clear()
            self._listener.note_state()

    def _recover(self) -> None:
        """The store is heard: what is held is whole, or will be by what the stream tells."""
        self._failures = self._refusals = 0
        self._failing_since = None
        self.error = None
        self.heard.set()
        self._listener.note_state()

    # When to try again.

    async def _back_off(self, *, at_least: float) -> None:
        """Full jitter: agents that failed together must not come back together."""
        if self._pulse.is_set() or self._is_pulse:
            # What broke after it had been opened may be tried at once, unless it goes on breaking.
            doublings = max(self._failures - 1, self._breaks - MAX_BREAKS, 0)
            longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(doublings, 10))
        else:
            await self._pulse.wait()
            self._failing_since = None
            longest = FIRST_SECONDS
        pause = self._draw() * longest
        await asyncio.sleep(at_least + max(pause, 0.0 if self._revision else self._draw_renewal()))

    def _draw_verification(self) -> float:
        return self._draw() * min(LONGEST_VERIFY_SECONDS, VERIFY_SECONDS * len(self.items))

    def _draw_renewal(self) -> float:
        return self._draw() * min(LONGEST_RENEW_SECONDS, RENEW_SECONDS * len(self.items))


def _read_pause(error: BackendError) -> float:
    return min(error.seconds, LONGEST_SECONDS) if isinstance(error, BusyError) else 0.0


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _race(*runs: Coroutine[Any, Any, None]) -> None:
    """Until the first ends or fails; the others are cancelled."""
    tasks = [asyncio.ensure_future(run) for run in runs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if task in done:
            await task
