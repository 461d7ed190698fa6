"""DNS names of endpoints, looked up beside the passes: a resolver that hangs delays nothing.

The last good answer of a name stays in use until another one comes, and an address in use
stays while it is among the answers: a name with several addresses must not make the mesh flap.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from ipaddress import ip_address

from kilo.daemonthread import run_in_daemon_thread
from kilo.log import get_logger
from kilo.mesh.model import IPAddress
from kilo.retrying import back_off

LOOKUP_SECONDS = 10.0
REFRESH_SECONDS = 60.0

Lookup = Callable[[str], list[IPAddress]]


def look_up(name: str) -> list[IPAddress]:
    """The addresses of a name; blocks; ``OSError`` if there are none."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    return [ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found]


def sort_addresses(answers: Iterable[IPAddress]) -> list[IPAddress]:
    """Each once, IPv4 before IPv6: name servers like to turn their answers round."""
    return sorted(set(answers), key=lambda address: (address.version, int(address)))


def choose_address(answers: Iterable[IPAddress], current: IPAddress | None) -> IPAddress:
    """The address to use: the current one while it is offered, else the first, IPv4 before IPv6."""
    offered = sort_addresses(answers)
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
            await asyncio.sleep(back_off(failures) if failures else self._refresh_seconds)

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
            self._lookups[name] = run_in_daemon_thread("resolver", partial(self._look_up, name))
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
