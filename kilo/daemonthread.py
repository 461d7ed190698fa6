"""Blocking calls that the program's end does not wait for.

A name lookup or a network file system may hang for as long as the C library or the kernel
likes; the threads of ``asyncio`` and ``concurrent.futures`` would be joined at exit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


class DaemonThread:
    """A thread for calls that must come one after another. For one event loop.

    A call whose future is cancelled before its turn is not made.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        Thread(target=self._work, name=name, daemon=True).start()

    def run(self, blocking: Callable[[], Result]) -> asyncio.Future[Result]:
        """What the call returns, or raises, when its turn has come."""
        future, call = _prepare(blocking)
        self._calls.put(call)
        return future

    def end(self) -> None:
        """No calls any more; those that were asked for are still made."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def run_in_daemon_thread(name: str, blocking: Callable[[], Result]) -> asyncio.Future[Result]:
    """What the call returns, or raises, in a thread of its own."""
    future, call = _prepare(blocking)
    Thread(target=call, name=name, daemon=True).start()
    return future


def _prepare(
    blocking: Callable[[], Result],
) -> tuple[asyncio.Future[Result], Callable[[], None]]:
    """A future of the running loop, and what a thread must call to settle it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()
    # Retrieves the error of a call that nobody waits for any more: asyncio would log it.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def settle(settle_future: Callable[[], None]) -> None:
        if not future.done():
            settle_future()

    def call() -> None:
        if future.cancelled():
            return
        try:
            result = blocking()
        except Exception as error:  # noqa: BLE001  handed to the waiting task whole
            outcome = partial(future.set_exception, error)
        else:
            outcome = partial(future.set_result, result)
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            loop.call_soon_threadsafe(settle, outcome)

    return future, call
