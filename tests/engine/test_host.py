"""What an agent makes of its host: the kernel's settings, a link that is not there, the MTU."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from structlog.testing import capture_logs

from kilo.dataplane.memory import MemoryDataplane
from kilo.engine import CleanUp
from kilo.mesh.host import HostFacts
from kilo.mesh.state import DataplaneState, Sysctl
from tests.builders import make_spec, networks
from tests.engine.world import HOST, World, running

FORWARD = Sysctl(name="net.ipv4.ip_forward", value="1")


def make_host(*fixed: str) -> HostFacts:
    """The own host, which does not forward IPv4 yet."""
    sysctls = MappingProxyType({**HOST.sysctls, FORWARD.name: "0"})
    return replace(HOST, sysctls=sysctls, fixed_sysctls=frozenset(fixed))


async def test_a_leader_switches_forwarding_on_and_a_stop_switches_it_off(world: World) -> None:
    world.dataplane = MemoryDataplane(facts=make_host())
    world.clean_up = CleanUp()
    async with running(world):
        assert (await world.settled()).sysctls == {FORWARD}
        assert world.read("kilo_kernel_writes_total", {"kind": "sysctl"}) == 1
        await world.end()

    assert world.dataplane.read_sysctl(FORWARD.name) == "0"
    assert await world.dataplane.read() == DataplaneState()


async def test_what_others_switched_on_is_neither_written_nor_switched_off(world: World) -> None:
    world.clean_up = CleanUp()
    async with running(world):
        assert (await world.settled()).sysctls == frozenset()
        await world.end()

    assert world.dataplane.read_sysctl(FORWARD.name) == "1"


async def test_what_somebody_sets_back_is_put_right_by_a_resync(world: World) -> None:
    world.dataplane = MemoryDataplane(facts=make_host())
    world.flags = {"resync_period_seconds": 0.1}
    async with running(world):
        await world.settled()
        world.dataplane.set_sysctl(FORWARD.name, "0")
        await world.eventually(lambda: world.dataplane.read_sysctl(FORWARD.name) == "1")


async def test_a_setting_outlives_a_kill_and_the_leadership_but_not_the_clean_up(
    world: World,
) -> None:
    world.dataplane = MemoryDataplane(facts=make_host())
    async with running(world):
        await world.settled()
        await world.kill()
    leader = make_spec(location="north", leader=True, pod_subnets=networks("10.2.2.0/24"))
    world.backend.put_node("b", leader)
    world.backend.put_node("a", make_spec(location="north"))
    world.clean_up = CleanUp()
    async with running(world):
        state = await world.settled()
        assert not any(link.up for link in state.links)
        assert state.sysctls == {FORWARD}
        await world.end()

    assert world.dataplane.read_sysctl(FORWARD.name) == "0"


async def test_where_settings_are_fixed_the_agent_is_ready_and_says_what_to_set(
    world: World,
) -> None:
    world.dataplane = MemoryDataplane(facts=make_host(FORWARD.name))
    with capture_logs() as logs:
        async with running(world):
            await world.settled()
            assert world.read("kilo_ready") == 1

    (warning,) = [log["detail"] for log in logs if log["event"] == "warning"]
    assert warning.endswith("cannot be reached through it; set net.ipv4.ip_forward=1")


async def test_an_interface_that_is_missing_is_said_once_with_nothing_that_follows_from_it(
    world: World,
) -> None:
    """With --create-interface=false it may come at any time."""
    reason = "interface kilo0 does not exist and --create-interface=false"
    world.dataplane.refuse("+ link kilo0", reason=reason)
    with capture_logs() as logs:
        async with running(world):
            await world.eventually(
                lambda: world.read("kilo_errors_total", {"event": "reconcile"}) >= 3
            )
            assert world.status.not_ready == f"+ link kilo0 mtu 1420 up: {reason}"
            assert world.read("kilo_ready") == 0
            world.dataplane.relent()
            world.dataplane.interfere()
            await world.eventually(lambda: not world.status.not_ready)

    assert [log["detail"] for log in logs if log["event"] == "failure"] == [
        f"+ link kilo0 mtu 1420 up: {reason}"
    ]


async def test_the_mtu_follows_the_underlay(world: World) -> None:
    async with running(world):
        (link,) = (await world.settled()).links
        assert link.mtu == 1420
        world.dataplane.set_facts(replace(HOST, mtus={"eth0": 1400}))
        await world.eventually(lambda: world.read("kilo_kernel_writes_total", {"kind": "link"}) > 1)
        (link,) = (await world.settled()).links
        assert link.mtu == 1320
