"""Waiting for what a watch says, with a generous limit and never by sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from kilo.backends.base import Backend
from kilo.errors import BackendError
from kilo.mesh.model import Peer, Snapshot

LIMIT_SECONDS = 90.0


class Follower:
    """Follows one backend and keeps everything it said."""

    def __init__(self, backend: Backend) -> None:
        self.said: list[Snapshot | BackendError] = []
        self._watch = backend.watch()

    async def next(self) -> Snapshot | BackendError:
        """What is said next."""
        async with asyncio.timeout(LIMIT_SECONDS):
            outcome = await anext(self._watch)
        self.said.append(outcome)
        return outcome

    async def until(self, holds: Callable[[Snapshot], bool]) -> Snapshot:
        """The first snapshot for which that holds; errors are passed over."""
        while True:
            outcome = await self.next()
            if isinstance(outcome, Snapshot) and holds(outcome):
                return outcome

    async def until_snapshot(self) -> Snapshot:
        """The first snapshot."""
        return await self.until(lambda _: True)

    async def until_error(self) -> BackendError:
        """The first error."""
        while True:
            outcome = await self.next()
            if isinstance(outcome, BackendError):
                return outcome

    async def ends(self) -> None:
        """Returns once the watch has ended; whatever it says before is kept."""
        async with asyncio.timeout(LIMIT_SECONDS):
            async for outcome in self._watch:
                self.said.append(outcome)


def texts(snapshot: Snapshot) -> list[str]:
    """Of its problems."""
    return list(map(str, snapshot.problems))


def names(snapshot: Snapshot) -> list[str]:
    """Of its peers."""
    return [peer.name for peer in snapshot.peers]


def unmarked(snapshot: Snapshot) -> tuple[Peer, ...]:
    """Its peers, wherever they stand."""
    return tuple(replace(peer, origin="") for peer in snapshot.peers)
