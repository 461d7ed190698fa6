"""What operators hear of this node's agent, beside the objects in the store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress

from kilo.backends.base import Backend
from kilo.errors import BackendError
from kilo.mesh.remarks import Remarks
from kilo.notices import Notices
from kilo.retrying import back_off

REPEAT_SECONDS = 700.0
"""How often what has not changed is told again: an object may have been made anew, or a store
restored from a backup, without what was shown beside it."""


class Spokesman:
    """Hands remarks to the store when they change; one that refuses is tried again.

    A task of its own, so that no pass waits for it. An agent with nothing to say asks nothing.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        failed: Callable[[], None],
        repeat_seconds: float = REPEAT_SECONDS,
    ) -> None:
        self._backend = backend
        self._failed = failed
        self._repeat_seconds = repeat_seconds
        self._notices = Notices("spokesman")
        self._remarks = Remarks()
        self._due = asyncio.Event()

    @property
    def handshakes(self) -> Mapping[str, int]:
        """The handshakes that were told last, or are about to be."""
        return self._remarks.handshakes

    def offer(self, remarks: Remarks) -> None:
        """Tell this from now on, soon if it is new."""
        if remarks != self._remarks:
            self._remarks = remarks
            self._due.set()

    async def run(self) -> None:
        """Tell until cancelled."""
        failures = 0
        while True:
            if failures:
                # To its end, though there may be more to tell: the store is not to be pressed.
                await asyncio.sleep(_jitter(back_off(failures)))
            else:
                await self._wait()
            failures = 0 if await self._tell() else failures + 1

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_jitter(self._repeat_seconds)):
                await self._due.wait()

    async def _tell(self) -> bool:
        if not self._due.is_set() and self._remarks == Remarks():
            return True
        self._due.clear()
        try:
            await self._backend.remark(self._remarks)
        except BackendError as error:
            self._failed()
            self._notices.tell("remarks not shown", [str(error)])
            self._due.set()
            return False
        self._notices.tell("remarks not shown", ())
        return True


def _jitter(seconds: float) -> float:
    """Shortened at random, so that a fleet's agents drift apart."""
    return seconds * random.uniform(0.9, 1.0)  # noqa: S311  no secret
