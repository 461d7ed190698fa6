"""Killed between any two steps, the next agent goes on where the last one was."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kilo.dataplane.memory import MemoryDataplane
from kilo.mesh.diff import Change, Changes, diff
from kilo.mesh.state import DataplaneState
from tests.builders import make_spec, networks
from tests.engine.world import HOST, World, running

PODS = networks("10.2.2.0/24")


def make_world(path: Path, *, leads: bool, state: DataplaneState | None = None) -> World:
    """The mesh, led by the own host or by its neighbour."""
    world = World(path=path, dataplane=MemoryDataplane(state, facts=HOST))
    if not leads:
        world.backend.put_node("b", make_spec(location="north", leader=True, pod_subnets=PODS))
    return world


async def reach(world: World) -> DataplaneState:
    """What the agent makes of its kernel."""
    async with running(world):
        return await world.settled()


def describe(steps: list[Change]) -> Counter[str]:
    """What was done to what; a device that came with its link is changed, not added."""
    return Counter(str(step).lstrip("+~ ") for step in steps)


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, True), (None, False), (True, False), (False, True)],
    ids=["empty to leader", "empty to follower", "leader to follower", "follower to leader"],
)
async def test_every_interruption_ends_in_the_same_state_and_repeats_no_step(
    tmp_path: Path, *, before: bool | None, after: bool
) -> None:
    start = DataplaneState()
    if before is not None:
        start = await reach(make_world(tmp_path, leads=before))
    end = await reach(make_world(tmp_path, leads=after, state=start))
    steps = list(diff(start, end))

    assert len(steps) > 2
    for done in range(len(steps) + 1):
        world = make_world(tmp_path, leads=after, state=start)
        await world.dataplane.apply(Changes(tuple(steps[:done])))
        assert await reach(world) == end
        assert describe(world.dataplane.applied) == describe(steps), f"killed after {done}"
