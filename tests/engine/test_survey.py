"""Who looks at the store from outside sees the mesh that its agents have made of it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from kilo.mesh.model import Granularity, Node, NodeReport, NodeSpec, PartialSettings, Settings
from kilo.mesh.survey import Flags, Survey, make_survey
from kilo.mesh.topology import Topology
from tests.builders import make_key, make_report, make_spec, networks
from tests.engine.world import NEIGHBOUR, REMOTE, Clock, World, make_backend, running

UNTOLD = Flags(settings=PartialSettings(), defaults=Settings())


async def look(world: World) -> Survey:
    """What ``kgctl`` computes once the agent has settled."""
    await world.settled()
    return make_survey(await world.backend.snapshot(), UNTOLD, wall=time.time())


def essence(topology: Topology | None) -> tuple[object, ...]:
    """All that a node's state is made from; an agent's view of itself lacks what it writes last."""
    assert topology is not None
    segments = [
        (
            replace(segment, nodes=(), leader=Node(name=segment.leader.name)),
            [(n.name, n.public_key, n.endpoint, n.internal_ips, n.spec) for n in segment.nodes],
        )
        for segment in topology.segments
    ]
    return segments, topology.peers, topology.refusals, topology.discovered_endpoints


def report_granularity(world: World, granularity: Granularity) -> None:
    """The agents of the other nodes go by it."""
    for report in (NEIGHBOUR, REMOTE):
        told = replace(report, granularity=granularity)
        world.backend.put_report(told, last_seen=int(time.time()))


async def test_the_mesh_is_that_of_the_agents(tmp_path: Path) -> None:
    async with running(World(path=tmp_path)) as world:
        seen = await look(world)
        assert essence(seen.topology) == essence(world.status.topology)
        assert [segment.leader.name for segment in seen.topology.segments] == ["a", "c"]
        assert (dict(seen.absent), seen.doubts, seen.evident) == ({}, (), {})


@pytest.mark.parametrize("granularity", [Granularity.FULL, Granularity.CROSS])
async def test_what_the_agents_were_told_by_their_flags_is_seen_in_their_reports(
    tmp_path: Path, granularity: Granularity
) -> None:
    flags = PartialSettings(granularity=granularity, subnets=networks("10.4.64.0/20"))
    world = World(path=tmp_path, flags=flags)
    report_granularity(world, granularity)
    async with running(world):
        seen = await look(world)
        assert seen.evident == flags
        assert essence(seen.topology) == essence(world.status.topology)


async def test_what_settings_of_the_store_say_is_not_taken_for_flags(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    world.backend.put_settings(PartialSettings(granularity=Granularity.FULL))
    report_granularity(world, Granularity.FULL)
    async with running(world):
        seen = await look(world)
        assert seen.evident == {}
        assert seen.topology.settings.granularity is Granularity.FULL
        assert essence(seen.topology) == essence(world.status.topology)


async def test_a_node_without_pods_is_left_out_where_kilos_own_agents_are(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    world.backend.put_node("c", make_spec(location="south"))
    world.backend.put_report(replace(NEIGHBOUR, agent=""), last_seen=int(time.time()))
    async with running(world):
        seen = await look(world)
        assert essence(seen.topology) == essence(world.status.topology)
        assert "without which Kilo's own agents leave it out" in seen.absent["c"]


async def test_a_silent_node_is_out_for_both(tmp_path: Path) -> None:
    clock = Clock()
    world = World(path=tmp_path, backend=make_backend(clock))
    clock.ahead = -105.0
    world.backend.put_report(REMOTE, last_seen=int(clock()))
    clock.ahead = 0.0
    async with running(world):
        seen = await look(world)
        assert world.names == {"a", "b"}
        assert essence(seen.topology) == essence(world.status.topology)
        assert seen.absent["c"].startswith("silent for 10")


@pytest.mark.parametrize(
    ("node", "report", "reason"),
    [
        (make_spec(), None, "no agent reports it, and no key is declared"),
        (make_spec(public_key=make_key("d")), None, "it has no endpoint"),
        (make_spec(), make_report("d", endpoint=None), "it has no endpoint"),
        (make_spec(), make_report("d"), "its report does not say when it was written"),
    ],
)
async def test_who_takes_no_part_is_told_why(
    tmp_path: Path, node: NodeSpec, report: NodeReport | None, reason: str
) -> None:
    world = World(path=tmp_path)
    world.backend.put_node("d", node)
    if report is not None:
        world.backend.put_report(report, last_seen=None)
    async with running(world):
        assert (await look(world)).absent == {"d": reason}


async def test_of_two_nodes_with_one_key_the_later_one_is_told_whose_it_is(tmp_path: Path) -> None:
    world = World(path=tmp_path)
    world.backend.put_report(replace(REMOTE, public_key=make_key("b")), last_seen=int(time.time()))
    async with running(world):
        seen = await look(world)
        assert seen.absent == {"c": f"publicKey {make_key('b')}: it is the key of node b"}
