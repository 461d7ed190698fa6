"""What the kernel refuses is told once, counted each time and tried again; what is a bug ends
the agent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from structlog.testing import capture_logs

from kilo.backends.memory import MemoryBackend
from kilo.dataplane.base import find_refused
from kilo.dataplane.memory import MemoryDataplane, MemoryDrift
from kilo.errors import BackendError, DataplaneError
from kilo.mesh.diff import Change, Changes
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, Snapshot
from kilo.mesh.state import DataplaneState, PeerStats, Route
from tests.builders import make_key
from tests.engine.world import HOST, REMOTE, World, running


async def test_a_refused_step_stops_no_other_and_is_why_the_agent_is_not_ready(
    world: World,
) -> None:
    world.dataplane.refuse("+ route 10.2.3.0/24", reason="File exists")
    async with running(world):
        await world.eventually(lambda: world.status.not_ready.endswith("File exists"))
        await world.next_pass()
        routes = {str(route.destination) for route in (await world.dataplane.read()).routes}

        assert world.status.not_ready.startswith("+ route 10.2.3.0/24 via 10.4.0.2")
        assert world.read("kilo_ready") == 0
        assert routes == {"10.2.2.0/24", "10.5.0.1/32", "192.168.2.11/32"}


async def test_a_refused_step_is_tried_until_it_works(world: World) -> None:
    world.dataplane.refuse("+ route 10.2.3.0/24", reason="File exists")
    async with running(world):
        await world.eventually(lambda: world.read("kilo_errors_total", {"event": "reconcile"}) >= 2)
        world.dataplane.relent()
        await world.eventually(lambda: not world.status.not_ready)

        assert world.read("kilo_ready") == 1
        assert "10.2.3.0/24" in {str(r.destination) for r in (await world.dataplane.read()).routes}


async def test_a_lasting_error_is_logged_once_and_counted_each_time(world: World) -> None:
    world.dataplane.refuse("+ route 10.2.3.0/24", reason="File exists")
    with capture_logs() as logs:
        async with running(world):
            await world.eventually(
                lambda: world.read("kilo_errors_total", {"event": "reconcile"}) >= 3
            )

    assert [log["event"] for log in logs].count("failure") == 1


async def test_a_refused_step_is_no_write(world: World) -> None:
    world.dataplane.refuse("+ route 10.2.3.0/24", reason="File exists")
    async with running(world):
        await world.eventually(lambda: world.read("kilo_errors_total", {"event": "reconcile"}) >= 3)

        assert world.read("kilo_kernel_writes_total", {"kind": "route"}) == 3


def test_a_refused_step_is_told_from_others_though_its_text_holds_a_colon() -> None:
    """A gateway may end with two of them, and the reason may have one as well."""
    refused, carried_out = (
        Change(
            new=Route(
                destination=ip_network(f"2001:db8:{number}::/64"),
                link="eth0",
                gateway=ip_address("fd00::"),
            )
        )
        for number in (1, 2)
    )
    error = DataplaneError(f"{refused}: netlink: File exists")

    assert find_refused(Changes((refused, carried_out)), [error]) == {refused}


async def test_a_foreign_route_in_the_way_is_reported_and_stays(world: World) -> None:
    foreign = Route(destination=ip_network("10.2.3.0/24"), link="eth0")
    world.dataplane.add_foreign_route(foreign, protocol="boot")
    async with running(world):
        await world.eventually(lambda: "File exists" in world.status.not_ready)

        assert foreign in world.dataplane.list_foreign_routes()


async def test_a_kernel_that_cannot_be_read_is_read_again(world: World) -> None:
    world.dataplane.become_unreadable("netlink: no answer in 10 s")
    async with running(world):
        await world.eventually(lambda: world.status.not_ready == "netlink: no answer in 10 s")
        world.dataplane.relent()

        await world.eventually(lambda: world.read("kilo_ready") == 1)


async def test_a_refused_endpoint_is_not_taken_for_one_the_device_has(world: World) -> None:
    async with running(world):
        await world.settled()
        _keep_a_session(world)
        await world.next_pass()
        world.dataplane.refuse(f"~ peer {make_key('c')}")
        moved = replace(REMOTE, endpoint=Endpoint(host="198.51.100.33", port=51820))
        world.backend.put_report(moved, last_seen=world.backend._read().last_seen["c"] + 1)
        await world.eventually(lambda: world.status.not_ready)
        await world.next_pass()
        world.dataplane.relent()
        state = await world.settled()

        (peer,) = (peer for peer in state.peers if peer.public_key == make_key("c"))
        assert str(peer.endpoint) == "198.51.100.33:51820"


def _keep_a_session(world: World) -> None:
    world.dataplane.set_stats(
        make_key("c"),
        PeerStats(
            endpoint=REMOTE.endpoint,
            latest_handshake=time.time(),
            received_bytes=1000,
            sent_bytes=1000,
        ),
    )


class BuggyBackend(MemoryBackend):
    """A store with a programming error in its watch."""

    async def watch(self) -> AsyncIterator[Snapshot | BackendError]:
        async for item in super().watch():
            yield item
            raise RuntimeError("a bug in the watch")


class BuggyDataplane(MemoryDataplane):
    """A kernel whose driver has a programming error."""

    async def apply(self, changes: Changes) -> None:
        assert changes
        raise ExceptionGroup("two", [DataplaneError("refused"), RuntimeError("a bug in apply")])


class DeafDataplane(MemoryDataplane):
    """A kernel whose notifications cannot be subscribed to."""

    def drift(self) -> MemoryDrift:
        raise DataplaneError("netlink: subscribe: No buffer space available")


class SlowDataplane(MemoryDataplane):
    """A kernel that takes its time, and of which nothing can be observed afterwards."""

    def __init__(self) -> None:
        super().__init__(facts=HOST)
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def apply(self, changes: Changes) -> None:
        self.begun.set()
        await self.go_on.wait()
        await super().apply(changes)

    async def observe(self) -> Mapping[PublicKey, PeerStats]:
        if self.go_on.is_set():
            raise DataplaneError("wireguard: the device is busy")
        return {}


async def test_a_bug_in_the_store_ends_the_agent_with_the_bug(world: World) -> None:
    backend = BuggyBackend()
    world.store = backend
    world.start()

    with pytest.raises(RuntimeError, match="a bug in the watch"):
        await world.task


async def test_a_bug_in_the_driver_ends_the_agent_and_leaves_the_network(world: World) -> None:
    async with running(world):
        state = await world.settled()
    buggy = BuggyDataplane(state, facts=HOST)
    buggy.remove(next(iter(state.routes)))
    remaining = await buggy.read()
    world.kernel = buggy
    world.start()

    with pytest.raises(RuntimeError, match="a bug in apply"):
        await world.task
    assert await buggy.read() == remaining


async def test_a_kernel_that_cannot_be_followed_is_still_reconciled(world: World) -> None:
    world.backend.put_settings({"resync_period_seconds": 0.05})
    world.dataplane = DeafDataplane(facts=HOST)
    async with running(world):
        await world.eventually(lambda: world.read("kilo_ready") == 1)
        state = await world.dataplane.read()
        world.dataplane.remove(next(iter(state.routes)))
        writes = world.writes
        await world.eventually(lambda: world.writes > writes)

        assert await world.dataplane.read() == state


async def test_a_pass_that_has_begun_is_finished_at_the_stop(world: World) -> None:
    slow = SlowDataplane()
    world.kernel = slow
    world.start()
    await slow.begun.wait()
    world.stop.set()
    slow.go_on.set()
    await world.end()

    state: DataplaneState = await slow.read()
    assert len(state.routes) == 4
    assert slow.writes == len(list(state.resources()))
