"""Names are looked up beside the passes, and their answers are followed calmly."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address

import pytest
from structlog.testing import capture_logs

from kilo.resolver import Resolver, choose_address
from tests.engine.test_endpoints import Names

LIMIT_SECONDS = 20.0


class Changes:
    """Counts what the resolver says, and wakes who waits for it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@asynccontextmanager
async def following(
    names: Names, *wanted: str, patience_seconds: float = 10.0
) -> AsyncIterator[tuple[Resolver, Changes]]:
    """A resolver at work that asks again all the time."""
    changes = Changes()
    resolver = Resolver(
        changed=changes,
        look_up=names,
        refresh_seconds=0.01,
        patience_seconds=patience_seconds,
    )
    resolver.want(dict.fromkeys(wanted, "Peer phone"))
    task = asyncio.create_task(resolver.run())
    try:
        yield resolver, changes
    finally:
        names.free.set()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_a_change_of_the_answer_is_followed() -> None:
    names = Names("203.0.113.1")
    async with following(names, "host.example.com") as (resolver, changes):
        await eventually(lambda: resolver.answers)
        names.answers = ["203.0.113.2"]
        await eventually(lambda: changes.count == 2)

        assert resolver.answers == {"host.example.com": ip_address("203.0.113.2")}


async def test_an_address_stays_while_it_is_among_the_answers() -> None:
    names = Names("203.0.113.5")
    async with following(names, "host.example.com") as (resolver, changes):
        await eventually(lambda: resolver.answers)
        names.answers = ["203.0.113.1", "2001:db8::1", "203.0.113.5"]
        asked = names.asked
        await eventually(lambda: names.asked > asked + 3)

        assert changes.count == 1
        assert resolver.answers == {"host.example.com": ip_address("203.0.113.5")}


async def test_the_last_good_answer_outlives_a_resolver_that_fails() -> None:
    names = Names("203.0.113.5")
    async with following(names, "host.example.com") as (resolver, _):
        await eventually(lambda: resolver.answers)
        with capture_logs() as logs:
            names.answers = []
            asked = names.asked
            await eventually(lambda: names.asked > asked + 2)

        assert resolver.answers == {"host.example.com": ip_address("203.0.113.5")}
        assert len(logs) == 1
        assert logs[0]["kept"] == "203.0.113.5"


async def test_a_lookup_that_hangs_is_not_begun_again_beside_itself() -> None:
    names = Names("203.0.113.5")
    names.free.clear()
    before = threading.active_count()
    async with following(names, "host.example.com", patience_seconds=0.01) as (resolver, _):
        with capture_logs() as logs:
            await eventually(lambda: logs)
            started = time.monotonic()
            await eventually(lambda: time.monotonic() > started + 1.5)

        assert names.asked == 1
        assert threading.active_count() <= before + 1
        names.free.set()
        await eventually(lambda: resolver.answers)


async def test_a_name_that_is_no_longer_wanted_is_forgotten() -> None:
    names = Names("203.0.113.5")
    async with following(names, "host.example.com") as (resolver, _):
        await eventually(lambda: resolver.answers)
        resolver.want({})

        await eventually(lambda: not resolver.answers)


@pytest.mark.parametrize(
    ("answers", "current", "chosen"),
    [
        (("203.0.113.9", "203.0.113.10"), None, "203.0.113.9"),
        (("2001:db8::1", "203.0.113.9"), None, "203.0.113.9"),
        (("203.0.113.9", "203.0.113.10"), "203.0.113.10", "203.0.113.10"),
        (("203.0.113.9",), "203.0.113.10", "203.0.113.9"),
    ],
)
def test_the_address_in_use_wins_then_the_lowest_ipv4(
    answers: tuple[str, ...], current: str | None, chosen: str
) -> None:
    found = choose_address(map(ip_address, answers), ip_address(current) if current else None)

    assert found == ip_address(chosen)
