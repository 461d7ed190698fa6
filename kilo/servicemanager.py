"""What a service manager is told: ready, alive, stopping (systemd's ``sd_notify`` protocol); and
how it, or a person at a terminal, asks for an end.

Without one, nothing is told. The datagrams are plain text; a manager that does not read them
never holds up the agent.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

READY_SECONDS = 15.0
"""A start counts as done after so long though no pass has succeeded: a store that is away must
not make the service manager end an agent that waits for it."""
LOOK_SECONDS = 0.1
TELL_SECONDS = 10.0
"""How often the status line is told where there is no watchdog."""


class ServiceManager:
    """Who started us, if it wants to be told."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """``environ``: ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC``, as systemd sets them."""
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        microseconds = environ.get("WATCHDOG_USEC", "")
        # Twice within the watchdog's time, as systemd's manual advises.
        self._pause = int(microseconds) / 2e6 if microseconds.isdecimal() else TELL_SECONDS

    async def follow(self, why_not_ready: Callable[[], str], is_stuck: Callable[[], bool]) -> None:
        """Tell of the agent until cancelled.

        ``why_not_ready``: one line, empty once a pass has succeeded. ``is_stuck``: whether a pass
        lasts longer than any should; then the watchdog is left to bite.
        """
        await self._announce(why_not_ready)
        while True:
            status = why_not_ready() or "the network is as it should be"
            watchdog = [] if is_stuck() else ["WATCHDOG=1"]
            self.tell(*watchdog, f"STATUS={status}")
            await asyncio.sleep(self._pause)

    async def _announce(self, why_not_ready: Callable[[], str]) -> None:
        """Wait for the first good pass, for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                while why_not_ready():  # noqa: ASYNC110 - it is written in one place, read here only
                    await asyncio.sleep(LOOK_SECONDS)
        self.tell("READY=1")

    def tell(self, *lines: str) -> None:
        """Send these lines as one datagram."""
        if not self._address:
            return
        text = "\n".join(" ".join(line.split("\n")) for line in lines)
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(0)
            channel.sendto(text.encode(), self._address)


def catch_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; later ones change nothing, so that the clean-up that
    the first one starts is never left half done.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
