"""Blocking calls beside the event loop, which hold up neither it nor the program's end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from functools import partial

import pytest

from kilo.daemonthread import DaemonThread

LIMIT_SECONDS = 60.0


async def test_calls_are_made_one_after_another_and_their_results_handed_back() -> None:
    thread = DaemonThread("test")
    made: list[int] = []

    def call(number: int) -> int:
        made.append(number)
        return number

    results = await asyncio.gather(*(thread.run(partial(call, number)) for number in range(5)))
    thread.end()

    assert results == made == [0, 1, 2, 3, 4]


async def test_an_error_of_the_call_is_raised_where_it_is_awaited() -> None:
    thread = DaemonThread("test")
    with pytest.raises(ValueError, match="invalid literal"):
        await thread.run(lambda: int("none"))
    thread.end()


async def test_a_call_given_up_before_its_turn_is_not_made() -> None:
    thread = DaemonThread("test")
    gate, made = threading.Event(), threading.Event()
    first = thread.run(lambda: gate.wait(LIMIT_SECONDS))
    given_up = thread.run(made.set)
    given_up.cancel()
    gate.set()
    await first
    await thread.run(lambda: None)
    thread.end()

    assert not made.is_set()


def test_a_call_that_hangs_does_not_keep_the_program_from_ending() -> None:
    program = """
import asyncio, threading
from kilo.daemonthread import DaemonThread, run_in_daemon_thread

async def main():
    begun, for_ever = threading.Semaphore(0), threading.Event()
    for run in (DaemonThread("one").run, lambda call: run_in_daemon_thread("two", call)):
        run(lambda: (begun.release(), for_ever.wait()))
    for _ in range(2):
        begun.acquire()

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        timeout=LIMIT_SECONDS,
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stderr == ""
