"""Handshakes and bytes for whoever looks at an agent just now.

Passes measure the device, and while nothing changes there is one in half a minute. Somebody who
watches the page is told every second, and who asks once is told what is so then; while nobody
watches, nothing is measured for nobody.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from kilo.dataplane.base import Dataplane
from kilo.errors import DataplaneError
from kilo.status import Status
from kilo.statusdocument import StatusDocument

MEASURE_SECONDS = 1.0


async def measure_for_onlookers(
    document: StatusDocument, dataplane: Dataplane, status: Status
) -> None:
    """Keep ``status.stats`` fresh while ``document`` is asked for, until cancelled."""
    called, loop = asyncio.Event(), asyncio.get_running_loop()

    def call() -> None:
        with suppress(RuntimeError):  # the loop has ended, and who asks is told what was known
            loop.call_soon_threadsafe(called.set)

    document.call = call
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(MEASURE_SECONDS):
                await called.wait()
        called.clear()
        if document.is_watched:
            # A kernel that does not answer is for the passes to tell.
            with suppress(DataplaneError):
                stats = await dataplane.observe()
                if stats != status.stats:
                    status.stats = stats
        document.measured.set()
