"""Whoever watches an agent sees handshakes as they happen, not as of the last pass."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from kilo.http import StatusServer
from kilo.mesh.state import PeerStats
from kilo.onlookers import measure_for_onlookers
from kilo.statusdocument import FRESH_SECONDS, WATCHING_SECONDS, StatusDocument, is_recent
from tests.builders import make_key
from tests.engine.world import World, running

LIMIT_SECONDS = 60.0


def find_handshake(server: StatusServer) -> float:
    """Of the tunnel to ``south``, asked over HTTP."""
    with urlopen(f"http://127.0.0.1:{server.port}/status", timeout=LIMIT_SECONDS) as reply:
        segments = json.load(reply)["segments"]
    (south,) = [one for one in segments if one["name"] == "location:south"]
    handshake: float = south["tunnel"]["latestHandshake"]
    return handshake


async def test_a_handshake_is_seen_without_a_pass(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    async with running(world):
        await world.settled()
    # From here on there are no passes: what the device measured is found without.
    with StatusServer("127.0.0.1:0", world.status) as server:
        measuring = asyncio.create_task(
            measure_for_onlookers(server.document, world.dataplane, world.status)
        )
        assert await asyncio.to_thread(find_handshake, server) == 0.0
        stats = PeerStats(endpoint=None, latest_handshake=7.0, received_bytes=1, sent_bytes=1)
        world.dataplane.set_stats(make_key("c"), stats)
        async with asyncio.timeout(LIMIT_SECONDS):
            while await asyncio.to_thread(find_handshake, server) != 7.0:
                pass
        measuring.cancel()


async def test_who_asks_first_is_told_what_is_so_then(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    async with running(world):
        await world.settled()
    with StatusServer("127.0.0.1:0", world.status) as server:
        # Measured when asked, not by its own clock, and once more if that was not in time.
        for handshake in (7.0, 8.0, 9.0):
            measuring = asyncio.create_task(
                measure_for_onlookers(server.document, world.dataplane, world.status)
            )
            await asyncio.sleep(0)
            stats = PeerStats(
                endpoint=None, latest_handshake=handshake, received_bytes=1, sent_bytes=1
            )
            world.dataplane.set_stats(make_key("c"), stats)
            found = await asyncio.to_thread(find_handshake, server)
            measuring.cancel()
            if found == handshake:
                break
            await asyncio.sleep(WATCHING_SECONDS)
        assert found == handshake


async def test_nobody_waits_for_long_for_a_device_that_does_not_answer(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    async with running(world):
        await world.settled()
    document = StatusDocument(world.status)
    called: list[float] = []
    document.call = lambda: called.append(time.monotonic())
    document.write()
    waited = time.monotonic() - called[0]
    document.write()
    assert len(called) == 1, "only who asks first"
    assert waited >= FRESH_SECONDS


@pytest.mark.parametrize(
    ("asked_at", "watched"),
    [
        (None, False),
        (100.0, True),
        (100.1 - WATCHING_SECONDS, True),
        (100.0 - WATCHING_SECONDS, False),
    ],
)
def test_only_who_asked_lately_is_measured_for(asked_at: float | None, *, watched: bool) -> None:
    assert is_recent(asked_at, now=100.0) == watched
