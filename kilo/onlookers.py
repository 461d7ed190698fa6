"""Handshakes and bytes for whoever looks at an agent just now.

Passes measure the device, and while nothing changes there is one in half a minute. Somebody who
watches the page is told every second; while nobody watches, nothing is measured for nobody.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from kilo.dataplane.base import Dataplane
from kilo.errors import DataplaneError
from kilo.status import Status
from kilo.statusdocument import StatusDocument

MEASURE_SECONDS = 1.0
WATCHING_SECONDS = 5.0
"""Who has asked so lately may well ask again; the page does every second."""


async def measure_for_onlookers(
    document: StatusDocument, dataplane: Dataplane, status: Status
) -> None:
    """Keep ``status.stats`` fresh while ``document`` is asked for, until cancelled."""
    while True:
        await asyncio.sleep(MEASURE_SECONDS)
        if is_watched(document.asked_at, now=time.monotonic()):
            # A kernel that does not answer is for the passes to tell.
            with suppress(DataplaneError):
                stats = await dataplane.observe()
                if stats != status.stats:
                    status.stats = stats


def is_watched(asked_at: float | None, *, now: float) -> bool:
    """Whether somebody looks, who asked last at ``asked_at``; both in monotonic seconds."""
    return asked_at is not None and now - asked_at < WATCHING_SECONDS
