"""Devices that move, hide behind NAT, or have a name instead of an address."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from ipaddress import ip_address

from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, IPAddress
from kilo.mesh.state import PeerStats, WireGuardPeer
from tests.builders import make_key, make_peer, make_spec
from tests.engine.world import REMOTE, World, running

ELSEWHERE = Endpoint(host="203.0.113.9", port=4711)


def measure(endpoint: Endpoint | None, *, handshake: float | None = None) -> PeerStats:
    """What a device with a live session measures."""
    at = time.time() if handshake is None else handshake
    return PeerStats(endpoint=endpoint, latest_handshake=at, received_bytes=1, sent_bytes=1)


async def find_peer(world: World, key: PublicKey) -> WireGuardPeer:
    """The peer as the kernel has it after the agent has settled."""
    state = await world.settled()
    return next(peer for peer in state.peers if peer.public_key == key)


async def test_a_device_that_roams_keeps_its_live_endpoint(world: World) -> None:
    async with running(world):
        await world.settled()
        writes = world.writes
        world.dataplane.set_stats(make_key("c"), measure(ELSEWHERE))

        assert (await find_peer(world, make_key("c"))).endpoint == ELSEWHERE
        assert world.writes == writes


async def test_a_new_configured_endpoint_is_set_though_the_device_has_roamed(
    world: World,
) -> None:
    async with running(world):
        await world.settled()
        world.dataplane.set_stats(make_key("c"), measure(ELSEWHERE))
        await world.next_pass()
        moved = replace(REMOTE, endpoint=Endpoint(host="198.51.100.33", port=51820))
        passes = world.passes
        world.backend.put_report(moved, last_seen=int(time.time()))
        await world.eventually(lambda: world.passes > passes)

        assert (await find_peer(world, make_key("c"))).endpoint == moved.endpoint


async def test_where_a_device_behind_nat_is_seen_is_told_to_the_others(world: World) -> None:
    await world.backend.put_peer(
        replace(make_peer("phone", "10.5.0.1/32"), persistent_keepalive_seconds=25)
    )
    async with running(world):
        await world.settled()
        world.dataplane.set_stats(make_key("phone"), measure(ELSEWHERE))
        await world.next_pass()
        await world.eventually(lambda: "203.0.113.9" in str(world.find_report()))

        report = world.find_report()
        assert report is not None
        assert report.discovered_endpoints == ((make_key("phone"), ELSEWHERE),)


async def test_a_device_behind_nat_is_sought_where_another_node_saw_it(world: World) -> None:
    world.backend.put_node("c", make_spec(location="south", persistent_keepalive_seconds=25))
    seen = replace(
        REMOTE, name="d", public_key=make_key("d"), internal_ips=(), discovered_endpoints=()
    )
    seen = replace(seen, discovered_endpoints=((make_key("c"), ELSEWHERE),))
    world.backend.put_report(seen, last_seen=int(time.time()))
    async with running(world):
        assert (await find_peer(world, make_key("c"))).endpoint == ELSEWHERE


async def test_a_session_that_a_change_ended_is_counted(world: World) -> None:
    async with running(world):
        await world.settled()
        world.dataplane.set_stats(make_key("c"), measure(REMOTE.endpoint))
        await world.next_pass()
        assert world.read("kilo_wireguard_session_resets_total") == 0

        world.dataplane.set_stats(make_key("c"), measure(REMOTE.endpoint, handshake=0.0))
        await world.next_pass()
        await world.next_pass()
        assert world.read("kilo_wireguard_session_resets_total") == 1


class Names:
    """A resolver whose answers a test changes, and which may hang."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.free = threading.Event()
        self.free.set()

    def __call__(self, name: str) -> list[IPAddress]:
        self.asked += 1
        self.free.wait(60)
        if not self.answers:
            raise OSError(f"{name}: Name or service not known")
        return [ip_address(answer) for answer in self.answers]


def name_remote(world: World) -> None:
    endpoint = Endpoint(host="south.example.com", port=51820)
    world.backend.put_node("c", make_spec(location="south", endpoint=endpoint))


async def test_an_endpoint_with_a_name_is_set_once_the_name_is_resolved(world: World) -> None:
    name_remote(world)
    names = Names("203.0.113.1")
    world.look_up = names
    names.free.clear()
    async with running(world):
        await world.eventually(lambda: names.asked)
        assert (await find_peer(world, make_key("c"))).endpoint is None
        names.free.set()
        await world.eventually(lambda: world.engine._resolver.answers)

        peer = await find_peer(world, make_key("c"))
        assert str(peer.endpoint) == "203.0.113.1:51820"


async def test_a_name_that_does_not_resolve_delays_nothing_else(world: World) -> None:
    name_remote(world)
    async with running(world):
        peer = await find_peer(world, make_key("c"))

        assert peer.endpoint is None
        assert world.read("kilo_ready") == 1
        assert len((await world.dataplane.read()).routes) == 3
