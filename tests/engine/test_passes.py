"""From what the store says to what the kernel is, and nothing more often than needed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from ipaddress import ip_interface, ip_network

import pytest
from structlog.testing import capture_logs

from kilo.engine import SESSIONS_SECONDS
from kilo.errors import ConfigError
from kilo.mesh.diff import Change
from kilo.mesh.model import Encapsulation, Endpoint, Granularity
from kilo.mesh.state import DataplaneState, Firewall, Link, Resource, Route, Rule
from tests.builders import make_key, make_peer, make_report, make_spec, networks
from tests.engine.world import (
    NEIGHBOUR,
    REMOTE,
    World,
    hold_addresses,
    let_everything_run,
    running,
)


def find_one(state: DataplaneState, text: str) -> Resource:
    """The one resource whose line begins so."""
    (found,) = [one for one in state.resources() if str(one).startswith(text)]
    return found


async def test_the_first_pass_makes_an_empty_kernel_what_the_mesh_wants(world: World) -> None:
    async with running(world):
        state = await world.settled()

    known = "10.2.1.0/24,10.2.2.0/23,10.4.0.1/32,10.4.0.2/32,10.5.0.1/32"
    known += ",192.168.1.11/32,192.168.1.12/32,192.168.2.11/32"
    remote = "10.2.3.0/24,10.4.0.2/32,192.168.2.11/32"
    assert sorted(map(str, state.resources())) == [
        "address 10.4.0.1/16 dev kilo0",
        "barrier 10.2.2.0/24",
        "barrier 10.2.3.0/24",
        "barrier 10.4.0.0/16",
        f"firewall known {known} masquerade-sources 10.5.0.1/32 clamp-links kilo0",
        "link kilo0 mtu 1420 up",
        f"peer {make_key('c')} dev kilo0 endpoint 198.51.100.3:51820 allowed-ips {remote}",
        f"peer {make_key('phone')} dev kilo0 allowed-ips 10.5.0.1/32",
        "route 10.2.2.0/24 via 192.168.1.12 dev eth0 onlink",
        "route 10.2.3.0/24 via 10.4.0.2 dev kilo0 src 192.168.1.11 onlink",
        "route 10.5.0.1/32 dev kilo0",
        "route 192.168.2.11/32 via 10.4.0.2 dev kilo0 src 192.168.1.11 onlink",
        f"wireguard kilo0 public-key {make_key('a')} listen-port 51820",
    ]
    assert world.read("kilo_ready") == world.read("kilo_leader") == 1
    assert (world.read("kilo_nodes"), world.read("kilo_peers")) == (3, 1)


async def test_a_pass_with_nothing_new_writes_nothing(world: World) -> None:
    async with running(world):
        await world.settled()
        writes = world.writes
        await world.next_pass()
        await world.next_pass()

        assert world.writes == writes
        counted = sum(
            world.read("kilo_kernel_writes_total", {"kind": kind})
            for kind in (
                "barrier",
                *("link", "address", "device", "peer", "firewall", "route", "rule"),
            )
        )
        assert counted == writes


async def test_heartbeats_of_others_cause_no_pass(world: World) -> None:
    async with running(world):
        await world.settled()
        passes = world.passes
        stamp = int(time.time())
        for later in range(1, 101):
            world.backend.put_report(NEIGHBOUR, last_seen=stamp + later)
            world.backend.put_report(REMOTE, last_seen=stamp + later)
            await let_everything_run()
        heard = world.engine._heard
        await world.eventually(lambda: heard.heartbeats["c"].stamp == stamp + 100)

        assert world.passes == passes


async def test_resyncs_with_nothing_new_write_nothing(world: World) -> None:
    world.backend.put_settings({"resync_period_seconds": 0.05})
    async with running(world):
        await world.settled()
        writes, passes = world.writes, world.passes
        await world.eventually(lambda: world.passes >= passes + 4)

        assert world.writes == writes


async def test_a_burst_of_changes_takes_few_passes_and_ends_in_the_last_state(
    world: World,
) -> None:
    async with running(world):
        await world.settled()
        passes = world.passes
        for number in range(200):
            await world.backend.put_peer(make_peer("laptop", f"10.5.1.{number}/32"))
            if number % 10 == 0:
                await asyncio.sleep(0)
        await world.eventually(lambda: world.read("kilo_peers") == 2)
        state = await world.settled()

        assert find_one(state, f"peer {make_key('laptop')}") in state.peers
        assert "10.5.1.199/32" in str(find_one(state, f"peer {make_key('laptop')}"))
        assert "10.5.1.198/32" not in str(list(map(str, state.routes)))
        assert world.passes - passes < 50


@pytest.mark.parametrize(
    "kind", ["route 10.2.3.0/24", "route 10.2.2.0/24", "firewall", "peer", "address"]
)
async def test_what_is_deleted_by_hand_is_back(world: World, kind: str) -> None:
    async with running(world):
        state = await world.settled()
        lost = next(one for one in state.resources() if str(one).startswith(kind))
        passes = world.passes
        world.dataplane.remove(lost)
        await world.eventually(lambda: world.passes > passes)

        assert await world.settled() == state


async def test_what_is_changed_by_hand_is_put_right(world: World) -> None:
    async with running(world):
        state = await world.settled()
        link = next(iter(state.links))
        passes = world.passes
        world.dataplane.interfere(
            Change(old=state.firewall, new=Firewall(known=frozenset(networks("10.0.0.0/8")))),
            Change(old=link, new=replace(link, mtu=1280)),
        )
        await world.eventually(lambda: world.passes > passes)

        assert await world.settled() == state


async def test_a_link_that_was_set_down_is_up_again_with_all_its_routes(world: World) -> None:
    async with running(world):
        state = await world.settled()
        (link,) = state.links
        passes = world.passes
        world.dataplane.interfere(Change(old=link, new=replace(link, up=False)))
        await world.eventually(lambda: world.passes > passes)

        assert await world.settled() == state


async def test_a_link_that_was_deleted_is_made_again(world: World) -> None:
    async with running(world):
        state = await world.settled()
        (link,) = state.links
        passes = world.passes
        world.dataplane.remove(link)
        await world.eventually(lambda: world.passes > passes)

        assert await world.settled() == state


async def test_a_rule_with_our_mark_that_nothing_asks_for_is_removed(world: World) -> None:
    async with running(world):
        state = await world.settled()
        passes = world.passes
        stray = Rule(destination=ip_network("192.168.1.12/32"), table=1107)
        world.dataplane.interfere(Change(new=stray))
        await world.eventually(lambda: world.passes > passes)

        assert await world.settled() == state


async def test_what_others_have_made_is_never_touched(world: World) -> None:
    route = Route(destination=ip_network("10.9.0.0/16"), link="eth0")
    rule = Rule(destination=ip_network("10.9.0.0/16"), table=100)
    world.dataplane.add_foreign_route(route, protocol="static")
    world.dataplane.add_foreign_rule(rule)
    async with running(world):
        await world.settled()

    assert world.dataplane.list_foreign_routes() == {route}
    assert world.dataplane.list_foreign_rules() == {rule}


async def test_changed_settings_take_effect_without_a_restart(world: World) -> None:
    async with running(world):
        await world.settled()
        world.backend.put_settings({"granularity": Granularity.FULL, "port": 4500, "mtu": 1300})
        await world.eventually(lambda: world.read("kilo_nodes") and len(_segments(world)) == 3)
        state = await world.settled()

        assert str(find_one(state, "link")) == "link kilo0 mtu 1300 up"
        assert str(find_one(state, "wireguard")).endswith("listen-port 4500")
        report = world.find_report()
        assert report is not None
        assert report.granularity is Granularity.FULL
        assert report.endpoint == Endpoint(host="198.51.100.1", port=4500)


def _segments(world: World) -> tuple[object, ...]:
    topology = world.status.topology
    return topology.segments if topology else ()


async def test_a_shorter_resync_period_takes_effect_at_once(world: World) -> None:
    world.backend.put_settings({"resync_period_seconds": 3600.0})
    async with running(world):
        await world.settled()
        world.backend.put_settings({"resync_period_seconds": 0.05})
        passes = world.passes

        await world.eventually(lambda: world.passes > passes + 5)


async def test_a_flag_wins_over_the_settings(world: World) -> None:
    world.flags = {"mtu": 1280}
    world.backend.put_settings({"mtu": 1300, "port": 4500})
    async with running(world):
        state = await world.settled()

    assert str(find_one(state, "link")) == "link kilo0 mtu 1280 up"
    assert str(find_one(state, "wireguard")).endswith("listen-port 4500")


async def test_settings_that_cannot_be_followed_leave_the_network_as_it_is(world: World) -> None:
    async with running(world):
        state = await world.settled()
        world.backend.put_node("d", make_spec(location="east"))
        world.backend.put_report(make_report("d"), last_seen=int(time.time()))
        world.backend.put_settings({"subnets": networks("10.4.0.0/31")})
        await world.eventually(lambda: "segment" in world.status.not_ready)

        assert await world.dataplane.read() == state
        assert world.read("kilo_ready") == 0
        world.backend.delete_settings()
        await world.eventually(lambda: not world.status.not_ready)


async def test_a_mesh_that_cannot_be_built_is_tried_with_back_off(world: World) -> None:
    world.backend.put_settings({"subnets": networks("10.4.0.0/32")})
    async with running(world):
        await world.eventually(lambda: "segment" in world.status.not_ready)
        started, passes = time.monotonic(), world.passes
        await world.eventually(lambda: time.monotonic() > started + 3.5)

        assert world.passes - passes <= 2


async def test_a_declared_key_that_is_not_the_hosts_leaves_the_network_as_it_is(
    world: World,
) -> None:
    async with running(world):
        state = await world.settled()
        spec = make_spec(location="north", public_key=make_key("somebody else"))
        world.backend.put_node("a", spec)
        await world.eventually(lambda: "is not this host's key" in world.status.not_ready)

        assert await world.dataplane.read() == state


async def test_a_host_without_addresses_ends_with_an_error_and_touches_nothing(
    world: World,
) -> None:
    world.dataplane.set_facts(hold_addresses())
    world.start()

    with pytest.raises(ConfigError, match="no address to take part with"):
        await world.task
    assert world.writes == 0


async def test_a_host_that_loses_its_addresses_later_keeps_its_report(world: World) -> None:
    async with running(world):
        await world.settled()
        report = world.find_report()
        passes = world.passes
        world.dataplane.set_facts(hold_addresses())
        await world.eventually(lambda: world.passes > passes)
        await world.next_pass()

        assert report is not None
        assert world.find_report() == report


async def test_changed_addresses_are_published(world: World) -> None:
    async with running(world):
        await world.settled()
        world.dataplane.set_facts(hold_addresses("198.51.100.77/24", "192.168.1.77/24"))
        await world.eventually(lambda: "198.51.100.77" in str(world.find_report()))

        report = world.find_report()
        assert report is not None
        assert report.internal_ips == (ip_interface("192.168.1.77/24"),)


async def test_a_node_that_falls_silent_leaves_and_returns_when_it_is_heard_again(
    world: World,
) -> None:
    world.backend.put_report(REMOTE, last_seen=int(time.time()) - 54)
    async with running(world):
        await world.eventually(lambda: world.names == {"a", "b", "c"})
        await world.eventually(lambda: world.names == {"a", "b"})
        state = await world.settled()
        assert "198.51.100.3" not in str(list(map(str, state.resources())))

        world.backend.put_report(REMOTE, last_seen=int(time.time()))
        await world.eventually(lambda: world.names == {"a", "b", "c"})


async def test_two_nodes_with_one_key_cause_one_refusal_and_no_endless_passes(
    world: World,
) -> None:
    twin = replace(make_report("d"), public_key=make_key("c"))
    world.backend.put_report(twin, last_seen=int(time.time()))
    async with running(world):
        with capture_logs() as logs:
            await world.settled()
            started, passes = time.monotonic(), world.passes
            await world.eventually(lambda: time.monotonic() > started + 3 * SESSIONS_SECONDS)

        assert world.passes <= passes + 1, "the look at what sessions there are, and no other"
        assert world.read("kilo_refused_claims") == 1
        assert [log["event"] for log in logs].count("refusal") == 1


async def test_the_leader_whose_neighbour_volunteers_hands_over_and_takes_back(
    world: World,
) -> None:
    async with running(world):
        led = await world.settled()
        world.backend.put_node(
            "b", make_spec(location="north", leader=True, pod_subnets=networks("10.2.2.0/24"))
        )
        await world.eventually(lambda: world.read("kilo_leader") == 0)
        followed = await world.settled()
        assert followed.links == {Link(name="kilo0", mtu=1420, up=False)}
        assert not followed.addresses

        world.backend.put_node(
            "b", make_spec(location="north", pod_subnets=networks("10.2.2.0/24"))
        )
        await world.eventually(lambda: world.read("kilo_leader") == 1)
        assert await world.settled() == led


async def test_encapsulation_comes_and_goes_with_the_setting(world: World) -> None:
    async with running(world):
        state = await world.settled()
        world.backend.put_settings({"encapsulation": Encapsulation.ALWAYS})
        await world.eventually(lambda: bool(world.status.state and world.status.state.tunnels))
        assert str(find_one(await world.settled(), "tunnel")) == (
            "tunnel tunl0 mtu 1480 up address 10.2.1.1/32"
        )
        world.backend.delete_settings()
        await world.eventually(lambda: world.status.state == state)
        assert await world.dataplane.read() == state
