"""DNS names of endpoints, looked up beside the passes: a resolver that hangs delays nothing.

The last good answer of a name stays in use until another one comes, and an address in use
stays while it is among the answers: a name with several addresses must not make the mesh flap.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address

from kilo.log import get_logger
from kilo.mesh.model import IPAddress

LOOKUP_SECONDS = 10.0
REFRESH_SECONDS = 60.0
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)

Lookup = Callable[[str], list[IPAddress]]


def look_up(name: str) -> list[IPAddress]:
    """The addresses of a name; blocks; ``OSError`` if there are none."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    return [ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found]


def choose_address(answers: Iterable[IPAddress], current: IPAddress | None) -> IPAddress:
    """The address to use: the current one while it is offered, else the first, IPv4 before IPv6."""
    offered = sorted(set(answers), key=lambda address: (address.version, int(address)))
    return current if current in offered else offered[0]


class Resolver:
    """Keeps the answers for the names that are wanted, and says when one changes."""

    def __init__(
        self,
        *,
        changed: Callable[[], None],
        look_up: Lookup = look_up,
        refresh_seconds: float = REFRESH_SECONDS,
        patience_seconds: float = LOOKUP_SECONDS,
    ) -> None:
        self._changed = changed
        self._look_up = look_up
        self._refresh_seconds = refresh_seconds
        self._patience_seconds = patience_seconds
        self._log = get_logger("resolver")
        self._answers: dict[str, IPAddress] = {}
        self._lookups: dict[str, asyncio.Future[list[IPAddress]]] = {}
        self._wanted: dict[str, str] = {}
        self._wanted_changed = asyncio.Event()

    @property
    def answers(self) -> Mapping[str, IPAddress]:
        """Name -> address, for the names that have been resolved."""
        return dict(self._answers)

    def want(self, owners: Mapping[str, str]) -> None:
        """Follow exactly these names; each with the object it belongs to, for messages."""
        if owners != self._wanted:
            self._wanted = dict(owners)
            self._wanted_changed.set()

    async def run(self) -> None:
        """Follow the wanted names until cancelled."""
        tasks: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                for name in tasks.keys() - self._wanted.keys():
                    tasks.pop(name).cancel()
                    self._answers.pop(name, None)
                for name in self._wanted.keys() - tasks.keys():
                    tasks[name] = group.create_task(self._follow(name))
                await self._wanted_changed.wait()
                self._wanted_changed.clear()

    async def _follow(self, name: str) -> None:
        failures = 0
        while True:
            failures = 0 if await self._refresh(name, first_failure=not failures) else failures + 1
            retry = RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1]
            await asyncio.sleep(retry if failures else self._refresh_seconds)

    async def _refresh(self, name: str, *, first_failure: bool) -> bool:
        """Ask once; True if there was an answer. A failure is logged when it is the first."""
        try:
            async with asyncio.timeout(self._patience_seconds):
                answers = await asyncio.shield(self._begin_lookup(name))
            address = choose_address(answers, self._answers.get(name))
        except (OSError, IndexError, UnicodeError, TimeoutError) as error:
            if first_failure:
                self._complain(name, error)
            return False
        if address != self._answers.get(name):
            self._answers[name] = address
            self._changed()
        return True

    def _begin_lookup(self, name: str) -> asyncio.Future[list[IPAddress]]:
        """The lookup of the name. One that still hangs is not begun again beside itself: each
        holds a thread for as long as the C library likes.
        """
        self._lookups = {n: lookup for n, lookup in self._lookups.items() if not lookup.done()}
        if name not in self._lookups:
            self._lookups[name] = run_in_daemon_thread(lambda: self._look_up(name))
        return self._lookups[name]

    def _complain(self, name: str, error: Exception) -> None:
        kept = self._answers.get(name)
        self._log.warning(
            "endpoint does not resolve",
            object=self._wanted.get(name, ""),
            host=name,
            error=str(error) or type(error).__name__,
            kept=str(kept) if kept else "",
        )


def run_in_daemon_thread(
    blocking: Callable[[], list[IPAddress]],
) -> asyncio.Future[list[IPAddress]]:
    """The result of a blocking call, in a thread that the program's end does not wait for.

    A lookup may hang for as long as the C library likes; the loop's own executor would be
    joined at exit.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[IPAddress]] = loop.create_future()
    # Retrieves the error of a lookup that nobody waits for any more: asyncio would log it.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def settle(result: list[IPAddress], error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result: list[IPAddress] = []
        failure = None
        try:
            result = blocking()
        except Exception as error:  # noqa: BLE001  handed to the waiting task whole
            failure = error
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name="resolver", daemon=True).start()
    return future
