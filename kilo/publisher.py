"""What the others hear of this node: its report when that changes, and that it is alive."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from kilo.backends.base import Backend
from kilo.errors import BackendError
from kilo.mesh.model import NodeReport
from kilo.notices import Notices
from kilo.retrying import back_off

CHECK_IN_SECONDS = 30.0
"""How often a node says that it is alive (spec section 3)."""


class Publisher:
    """Keeps the local node's report in the store; a store that refuses is tried again."""

    def __init__(self, backend: Backend, *, failed: Callable[[], None]) -> None:
        self._backend = backend
        self._failed = failed
        self._notices = Notices("publisher")
        self._report: NodeReport | None = None
        self._due = asyncio.Event()

    @property
    def report(self) -> NodeReport | None:
        """What the node is to be known by; None before the first pass."""
        return self._report

    def offer(self, report: NodeReport) -> None:
        """Publish this from now on, at once if it is new."""
        if report != self._report:
            self._report = report
            self._due.set()

    def hurry(self) -> None:
        """Check in now: the store was away and may not know that this node lives."""
        self._due.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        failures = 0
        while True:
            await self._wait(back_off(failures) if failures else CHECK_IN_SECONDS)
            if self._report is not None:
                failures = 0 if await self._publish(self._report) else failures + 1

    async def _wait(self, seconds: float) -> None:
        """Jittered, so that the agents of a fleet that started together drift apart."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds * random.uniform(0.9, 1.0)):  # noqa: S311  no secret
                await self._due.wait()
        self._due.clear()

    async def _publish(self, report: NodeReport) -> bool:
        try:
            await self._backend.publish(report)
        except BackendError as error:
            self._failed()
            self._notices.tell("report not published", [str(error)])
            return False
        self._notices.tell("report not published", ())
        return True

    async def withdraw(self) -> None:
        """Take the report back, if there ever was one."""
        if self._report is not None:
            await self._backend.withdraw(self._report.name)
