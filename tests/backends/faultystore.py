"""A store of strings in memory that can be listed and watched, with the faults of real ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping

from kilo.backends.source import (
    Bookmark,
    BusyError,
    Delete,
    Event,
    ExpiredError,
    Item,
    Listing,
    Opened,
    Probe,
    Put,
)
from kilo.errors import BackendError
from tests.backends.virtualtime import now

ANSWER_SECONDS = 5.0
"""After which a client gives up on a store that is frozen."""
FEW = 10


class FaultyStore:
    """Implements ``Source``; revisions are numbers, one a change."""

    def __init__(self, *keys: str, watch_seconds: float = 400.0) -> None:
        self.items: dict[str, Item[str]] = {}
        self.lists: list[float] = []
        """When each was asked for; the same for the next two."""
        self.watches: list[float] = []
        self.probes: list[float] = []
        self.trouble: BackendError | None = None
        """What every request is answered with."""
        self.refusal: BackendError | None = None
        """What every watch is answered with."""
        self.is_frozen = False
        self.is_uncached = False
        """Whoever answers lists has lost the store; watches go on."""
        self._watch_seconds = watch_seconds
        self._revision = 1
        self._log: list[tuple[int, Event[str]]] = []
        self._compacted = 0
        self._generation = 0
        self._deaf_since: int | None = None
        self._changed = asyncio.Event()
        for key in keys:
            self.put(key, "here")

    # What happens to it.

    def put(self, key: str, value: str) -> None:
        self._revision += 1
        item = Item(value=value, revision=str(self._revision))
        self.items[key] = item
        self._note(Put(key, item))

    def delete(self, key: str) -> None:
        self._revision += 1
        if self.items.pop(key, None):
            self._note(Delete(key, str(self._revision)))

    def pass_by(self) -> None:
        """Other objects than ours change; a bookmark says how far that went."""
        self._revision += 100
        self._note(Bookmark(str(self._revision)))

    def bookmark(self) -> None:
        self._note(Bookmark(str(self._revision)))

    def cut(self) -> None:
        """Break every stream."""
        self._generation += 1
        self._notify()

    def compact(self) -> None:
        """Forget all history."""
        self._compacted = self._revision

    def deafen(self) -> None:
        """Streams that are open will be told nothing any more."""
        self._deaf_since = self._generation

    def save(self) -> tuple[dict[str, Item[str]], int]:
        return dict(self.items), self._revision

    def restore(self, saved: tuple[dict[str, Item[str]], int]) -> None:
        """Put that state back; nobody who is watching is told."""
        self.items, self._revision = dict(saved[0]), saved[1]
        self._log = [one for one in self._log if one[0] <= self._revision]

    def _note(self, event: Event[str]) -> None:
        self._log.append((self._revision, event))
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # What it offers.

    async def list(self, held: Mapping[str, Item[str]]) -> Listing[str]:  # noqa: ARG002 - nothing to decode
        self.lists.append(now())
        await self._answer(is_cached=False)
        return Listing(items=dict(self.items), revision=str(self._revision))

    async def probe(self) -> Probe:
        self.probes.append(now())
        await self._answer(is_cached=False)
        few = sorted(self.items.items())[:FEW]
        return Probe(
            revision=str(self._revision), revisions={key: item.revision for key, item in few}
        )

    async def watch(
        self,
        revision: str,
        held: Mapping[str, Item[str]],  # noqa: ARG002 - nothing to decode
    ) -> AsyncGenerator[Event[str], None]:
        self.watches.append(now())
        await self._answer(is_cached=True)
        if self.refusal:
            raise self.refusal
        if int(revision) < self._compacted:
            raise ExpiredError("too old")
        generation, end = self._generation, now() + self._watch_seconds
        told = sum(number <= int(revision) for number, _ in self._log)
        yield Opened()
        while now() < end:
            changed = self._changed
            while told < len(self._log) and not self._is_deaf(generation):
                told += 1
                yield self._log[told - 1][1]
            try:
                async with asyncio.timeout(end - now()):
                    await changed.wait()
            except TimeoutError:
                return
            if self._generation != generation:
                raise BackendError("cut")

    def _is_deaf(self, generation: int) -> bool:
        return self.is_frozen or self._deaf_since == generation

    async def _answer(self, *, is_cached: bool) -> None:
        await asyncio.sleep(0.001)
        if self.is_frozen or (self.is_uncached and not is_cached):
            await asyncio.sleep(ANSWER_SECONDS)
            raise BackendError(f"no answer in {ANSWER_SECONDS:g} s")
        if self.trouble:
            raise self.trouble


AWAY = BackendError("refused")
BUSY = BusyError("too many requests", seconds=3.0)
