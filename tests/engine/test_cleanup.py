"""What a stop undoes, and what it leaves."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from structlog.testing import capture_logs

from kilo.dataplane.memory import MemoryDataplane
from kilo.engine import CleanUp
from kilo.mesh.state import DataplaneState, Link, Route, Rule, WireGuardDevice
from tests.builders import make_key
from tests.engine.world import HOST, World, running

FOUND = DataplaneState(
    links=frozenset({Link(name="kilo0", mtu=1400, up=False)}),
    devices=frozenset({WireGuardDevice(link="kilo0", public_key=make_key("a"), listen_port=51820)}),
)


async def work_and_stop(world: World) -> DataplaneState:
    """What is left after an agent has done its work and was told to stop."""
    async with running(world):
        await world.settled()
        await world.eventually(world.find_report)
        await world.end()
    return await world.dataplane.read()


async def test_a_host_without_the_interface_is_left_without_anything_of_ours(
    world: World,
) -> None:
    world.clean_up = CleanUp()

    assert await work_and_stop(world) == DataplaneState()


async def test_an_interface_that_was_found_is_left_as_it_was_found(world: World) -> None:
    world.clean_up = CleanUp()
    world.dataplane = MemoryDataplane(FOUND, facts=HOST)

    assert await work_and_stop(world) == FOUND


async def test_an_interface_that_was_found_is_deleted_if_that_is_asked_for(world: World) -> None:
    world.clean_up = CleanUp(interface=True)
    world.dataplane = MemoryDataplane(FOUND, facts=HOST)

    assert await work_and_stop(world) == DataplaneState()


async def test_an_interface_deleted_meanwhile_is_not_made_again(world: World) -> None:
    world.clean_up = CleanUp()
    world.dataplane = MemoryDataplane(FOUND, facts=HOST)
    async with running(world):
        state = await world.settled()
        world.dataplane.remove(*state.links)
        await world.end()

    assert await world.dataplane.read() == DataplaneState()


async def test_what_others_made_outlives_the_clean_up(world: World) -> None:
    world.clean_up = CleanUp(interface=True)
    route = Route(destination=ip_network("10.9.0.0/16"), link="eth0")
    rule = Rule(destination=ip_network("10.9.0.0/16"), table=100)
    world.dataplane.add_foreign_route(route, protocol="static")
    world.dataplane.add_foreign_rule(rule)
    await work_and_stop(world)

    assert world.dataplane.list_foreign_routes() == {route}
    assert world.dataplane.list_foreign_rules() == {rule}


async def test_the_own_report_is_withdrawn_and_the_operators_words_stay(world: World) -> None:
    world.clean_up = CleanUp()
    await work_and_stop(world)

    snapshot = await world.backend.snapshot()
    assert world.find_report() is None
    assert [node.name for node in snapshot.nodes] == ["a", "b", "c"]


async def test_the_report_is_withdrawn_while_the_network_still_works(world: World) -> None:
    """So that others go by another way before this one ends."""
    world.clean_up = CleanUp()
    async with running(world):
        state = await world.settled()
        await world.eventually(world.find_report)
        world.stop.set()
        await world.eventually(lambda: world.find_report() is None)

        assert await world.dataplane.read() == state
        await world.end()
    assert await world.dataplane.read() == DataplaneState()


async def test_without_clean_up_the_network_and_the_report_stay(world: World) -> None:
    world.clean_up = CleanUp(network=False)
    async with running(world):
        state = await world.settled()
        await world.eventually(world.find_report)
        await world.end()

    assert await world.dataplane.read() == state
    assert world.find_report() is not None


async def test_a_clean_up_step_that_fails_stops_no_other(world: World) -> None:
    world.clean_up = CleanUp()
    world.dataplane = MemoryDataplane(FOUND, facts=HOST)
    async with running(world):
        await world.settled()
        await world.eventually(world.find_report)
        world.dataplane.refuse("- firewall", reason="Device or resource busy")
        with capture_logs() as logs:
            await world.end()
    left = await world.dataplane.read()

    assert replace(left, firewall=None) == FOUND
    assert left.firewall is not None
    assert world.find_report() is None
    (said,) = [log for log in logs if log["event"] == "clean-up incomplete"]
    assert said["error"].endswith("Device or resource busy")


async def test_a_store_that_is_away_does_not_keep_the_network_from_being_restored(
    world: World,
) -> None:
    world.clean_up = CleanUp()
    async with running(world):
        await world.settled()
        world.backend.go_away("the disk is gone")
        await world.eventually(lambda: world.status.store_error)
        with capture_logs() as logs:
            await world.end()

    assert await world.dataplane.read() == DataplaneState()
    assert "memory: the disk is gone" in [log.get("error") for log in logs]


async def test_a_second_stop_changes_nothing(world: World) -> None:
    world.clean_up = CleanUp()
    async with running(world):
        await world.settled()
        world.stop.set()
        world.stop.set()
        await world.end()
        writes = world.writes
        world.stop.set()

        assert world.writes == writes
    assert await world.dataplane.read() == DataplaneState()


async def test_a_stop_before_the_first_pass_touches_nothing(world: World) -> None:
    world.clean_up = CleanUp()
    world.backend.go_away("the disk is gone")
    async with running(world):
        await world.eventually(lambda: world.status.store_error)
        await world.end()

    assert world.writes == 0


async def test_an_agent_that_was_killed_leaves_a_network_that_the_next_one_adopts(
    world: World,
) -> None:
    async with running(world):
        state = await world.settled()
        await world.kill()
    writes = world.writes
    async with running(world):
        assert await world.settled() == state

    assert world.writes == writes
