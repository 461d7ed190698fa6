"""The lease that an agent's reports live by: renewed on its own clock, granted anew when lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from kilo.backends.etcd.asks import grant, keep_alive
from kilo.backends.etcd.client import Client
from kilo.backends.etcd.failures import EtcdError
from kilo.errors import BackendError
from kilo.log import get_logger

LEASE_SECONDS = 24 * 3600
"""Much longer than an etcd may be out of reach: reports that go meanwhile would take the network
down at its return. Who is dead is judged by stamps, after a minute; this only sweeps up."""
RENEW_SECONDS, RETRY_SECONDS = 20.0, 2.0
"""Between two renewals; after one that failed. Often, to find a lease lost by a restore."""
_GONE = "lease not found"

log = get_logger("etcd")


class Lease:
    """One lease, for as long as the program lives. For one event loop."""

    def __init__(
        self,
        client: Client,
        *,
        restore: Callable[[], Awaitable[None]],
        seconds: int = LEASE_SECONDS,
        renew_seconds: float = RENEW_SECONDS,
    ) -> None:
        """``restore`` is called when the lease is found lost, and what it held with it.

        Nothing is granted before the first ``get``.
        """
        self._client = client
        self._restore = restore
        self._seconds = seconds
        self._renew_seconds = renew_seconds
        self._number: int | None = None
        self._is_owing = False
        """Whether what a lost lease held is yet to be put back."""
        self._is_stopped = False
        self._granting = asyncio.Lock()  # many may ask at once, and one is enough
        self._renewing: asyncio.Task[None] | None = None

    async def get(self) -> int:
        """The lease in force, granted if there is none. ``BackendError`` if it cannot be."""
        if self._is_stopped:
            raise EtcdError("etcd: closed")
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._run(), name="etcd lease")
        elif self._renewing.done() and not self._renewing.cancelled():
            self._renewing.result()  # it never ends by itself: this raises the bug that ended it
        async with self._granting:
            if self._number is None:
                self._number = int((await self._client.call(grant(self._seconds))).ID)
            return self._number

    def lose(self, number: int) -> None:
        """It is gone: the next ``get`` has another one granted."""
        if self._number == number:
            self._number = None

    async def stop(self) -> None:
        """Renew it no more. It is not given back: who starts again within its time keeps all."""
        self._is_stopped = True
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait({self._renewing})

    async def _run(self) -> None:
        pause = self._renew_seconds
        while True:
            await asyncio.sleep(pause)
            pause = self._renew_seconds
            try:
                await self._renew()
            except BackendError:
                # Whoever publishes, or watches, tells of it: the store is away.
                pause = min(RETRY_SECONDS, self._renew_seconds)

    async def _renew(self) -> None:
        number = self._number
        if number is None:
            self._is_owing = True
        elif not await self._is_alive(number):
            log.info("the lease of the report has run out, another is granted")
            self.lose(number)
            self._is_owing = True
        if self._is_owing:
            # It may have a new lease granted and then fail: that this one lives says nothing.
            await self._restore()
            self._is_owing = False

    async def _is_alive(self, number: int) -> bool:
        async with aclosing(self._client.stream(keep_alive(number))) as answers:
            async for answer in answers:
                return bool(answer.TTL)
        raise EtcdError("etcd: renew the lease: no answer")


def is_lease_lost(error: EtcdError) -> bool:
    """Whether a write was refused because its lease is gone."""
    return _GONE in error.message
