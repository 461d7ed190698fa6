"""How much work is done for what: calls, passes, writes and comparisons, counted and never timed.

``bench/`` measures seconds, on a machine of its own; what makes them few is kept here.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from kilo.backends.memory import MemoryBackend
from kilo.engine import SESSIONS_SECONDS
from kilo.mesh.diff import diff
from kilo.mesh.model import Node, NodeReport, NodeSpec, Snapshot
from kilo.mesh.plan import Agent, Knowledge, Plan, make_plan
from kilo.mesh.readiness import Heartbeat
from kilo.mesh.render import Rendering
from kilo.mesh.roaming import Observed
from kilo.mesh.state import DataplaneState
from kilo.mesh.topology import build_topology
from tests.builders import make_key, make_peer, make_report, make_spec, networks
from tests.engine.world import HOST, World, let_everything_run, make_backend, running

NODES = 100
"""Beside the three of the world, in ten more locations."""
IDENTIFY = "_identify"
"""By which those resources are compared that differ."""


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Calls of Python functions in this thread meanwhile, by their names."""
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls[frame.f_code.co_qualname] += 1

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def name_of(function: Callable[..., object]) -> str:
    return function.__qualname__


def make_member(number: int) -> tuple[str, NodeSpec, NodeReport]:
    """The name, declaration and report of a node far away."""
    name = f"n{number:04}"
    spec = make_spec(
        location=f"far{number % 10}",
        pod_subnets=networks(f"10.2.{16 + number // 4}.{number % 4 * 64}/26"),
    )
    address = f"192.168.{16 + number // 200}.{number % 200 + 1}"
    return (
        name,
        spec,
        make_report(name, endpoint=f"{address}:51820", internal_ips=(f"{address}/16",)),
    )


def add_member(backend: MemoryBackend, number: int) -> None:
    name, spec, report = make_member(number)
    backend.put_report(report, last_seen=int(time.time()))
    backend.put_node(name, spec)


@pytest.fixture
def large_world(world: World) -> World:
    backend = make_backend()
    for number in range(NODES):
        add_member(backend, number)
    return World(path=world.path, backend=backend)


async def test_no_heartbeat_makes_a_pass_and_a_pass_without_news_computes_no_mesh(
    large_world: World,
) -> None:
    world = large_world
    async with running(world):
        with counting() as first:
            await world.settled()
        passes, writes = world.passes, world.writes
        for number in range(NODES):
            report = make_member(number)[2]
            world.backend.put_report(report, last_seen=int(time.time()) + 1)
        await let_everything_run()
        assert (world.passes, world.writes) == (passes, writes)
        await world.backend.put_peer(make_peer("phone", "10.5.0.3/32"))
        await let_everything_run()
        assert world.passes == passes + 1, "no less time than heartbeats had"
        assert world.writes > writes

        await world.settled()
        passes, writes = world.passes, world.writes
        with counting() as calls:
            await world.next_pass()
        assert (world.passes, world.writes) == (passes + 1, writes)

    assert calls[name_of(make_plan)] == calls[name_of(diff)] == 1
    for name in (name_of(build_topology), name_of(Rendering.render), IDENTIFY):
        assert first[name], "counted where there is something to compute"
        assert not calls[name]


async def test_a_newcomer_costs_one_mesh_and_as_many_writes_as_there_are_differences(
    large_world: World,
) -> None:
    world = large_world
    async with running(world):
        before = await world.settled()
        writes = world.writes
        with counting() as calls:
            add_member(world.backend, NODES)
            await world.eventually(lambda: f"n{NODES:04}" in world.names)
            await let_everything_run()
        after = await world.settled()

    assert world.writes - writes == len(diff(before, after)) == 5
    # One for the newcomer, at most one more for its report coming before its declaration.
    assert 1 <= calls[name_of(build_topology)] <= 2


async def test_a_peer_more_costs_three_writes(large_world: World) -> None:
    world = large_world
    async with running(world):
        await world.settled()
        writes = world.writes
        await world.backend.put_peer(make_peer("laptop", "10.5.0.2/32"))
        await world.settled()

    assert world.writes - writes == 3  # the peer, the firewall, the route


async def test_what_sessions_a_new_peer_has_is_looked_at_once_and_nothing_else(
    world: World,
) -> None:
    async with running(world):
        await world.settled()
        passes, writes = world.passes, world.writes
        await world.backend.put_peer(make_peer("laptop", "10.5.0.2/32"))
        await world.eventually(lambda: world.passes == passes + 1)
        world.dataplane.interfere()  # as somebody does just then
        await world.eventually(lambda: world.passes == passes + 3)
        await asyncio.sleep(2 * SESSIONS_SECONDS)

    assert world.passes == passes + 3
    assert world.writes == writes + 3


def plan_fleet(nodes: int, earlier: Plan | None = None) -> Plan:
    """The plan of the first of that many nodes; what it wants is there already, if anything was."""
    members = tuple(
        Node(name=name, spec=spec, report=report)
        for name, spec, report in map(make_member, range(nodes))
    )
    own = members[0]
    knowledge = Knowledge(
        snapshot=Snapshot(nodes=members, peers=(make_peer("phone"),)),
        facts=HOST,
        heartbeats={node.name: Heartbeat(stamp=1, seen_at=0.0) for node in members},
        observed=Observed(now=0.0),
    )
    agent = Agent(name=own.name, public_key=make_key(own.name))
    actual = earlier.desired if earlier else DataplaneState()
    return make_plan(agent, knowledge, actual, earlier=earlier.basis if earlier else None)


def count_calls(nodes: int) -> int:
    with counting() as calls:
        plan_fleet(nodes)
    return calls.total()


def test_the_work_of_a_plan_grows_with_the_mesh_and_no_faster() -> None:
    plan_fleet(200)  # what is remembered of each address is remembered now
    assert count_calls(200) < 2.2 * count_calls(100)


def test_a_plan_is_the_same_with_the_pass_before_and_without() -> None:
    first = plan_fleet(50)
    again = plan_fleet(50, first)
    assert not again.changes
    assert (again.desired, again.topology) == (first.desired, first.topology)

    grown = plan_fleet(60, first)
    fresh = plan_fleet(60)
    assert (grown.desired, grown.topology, grown.report) == (
        fresh.desired,
        fresh.topology,
        fresh.report,
    )
