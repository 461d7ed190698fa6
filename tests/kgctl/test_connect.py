"""``kgctl connect`` between a store and a kernel that are both made of dicts.

``a1`` leads the location ``north``, ``a2`` is its neighbour there, ``b1`` is the location
``south``; the own host is no node, and wants to be the peer ``laptop``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from kilo.backends.memory import MemoryBackend
from kilo.dataplane.memory import MemoryDataplane
from kilo.errors import ConfigError, KiloError, MeshError
from kilo.kgctl.connect import USAGE, Visit, stay_connected
from kilo.kgctl.connectpeer import OwnPeer, Receipt
from kilo.kgctl.connectplan import Guest
from kilo.kgctl.storing import UsageError, find_store
from kilo.mesh.diff import Change
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, Peer, Settings
from kilo.mesh.state import (
    DataplaneState,
    Link,
    PeerStats,
    Route,
    Rule,
    WireGuardDevice,
    WireGuardPeer,
)
from kilo.mesh.survey import Flags
from tests.builders import make_key, make_peer, make_report, make_spec, networks
from tests.kgctl.site import Site
from tests.mesh.fleets import make_facts

LIMIT_SECONDS = 20.0
OWN = networks("10.5.0.9/32")
SERVICES = networks("10.43.0.0/16")
HOST = make_facts(eth0="203.0.113.50/24")
SPECS = {
    "a1": make_spec(location="north", pod_subnets=networks("10.2.1.0/24")),
    "a2": make_spec(location="north", pod_subnets=networks("10.2.2.0/24")),
    "b1": make_spec(location="south", pod_subnets=networks("10.2.3.0/24")),
}
REPORTS = (
    make_report("a1", endpoint="198.51.100.11:51820", internal_ips=("192.168.1.11/24",)),
    make_report("a2", endpoint="198.51.100.12:51820", internal_ips=("192.168.1.12/24",)),
    make_report("b1", endpoint="198.51.100.21:51820", internal_ips=("192.168.2.11/24",)),
)


def make_store() -> MemoryBackend:
    backend = MemoryBackend()
    for name, spec in SPECS.items():
        backend.put_node(name, spec)
    for report in REPORTS:
        backend.put_report(report, last_seen=int(time.time()))
    return backend


class WatchedDataplane(MemoryDataplane):
    """Counts how often it is read: once a pass, when that begins."""

    reads = 0

    async def read(self) -> DataplaneState:
        self.reads += 1
        return await super().read()


@dataclass(kw_only=True)
class Desk:
    """A guest with everything around it."""

    path: Path
    backend: MemoryBackend = field(default_factory=make_store)
    dataplane: WatchedDataplane = field(default_factory=lambda: WatchedDataplane(facts=HOST))
    key: PublicKey = field(default_factory=lambda: make_key("laptop"))
    allowed_ips: tuple[object, ...] = OWN
    more: tuple[object, ...] = ()
    clean_up: bool = True
    said: list[str] = field(default_factory=list)
    stop: asyncio.Event = field(init=False)
    task: asyncio.Task[int] = field(init=False)

    def start(self) -> None:
        """A guest, from now on at work."""
        guest = Guest(
            name="laptop",
            public_key=self.key,
            interface="kilo0",
            keepalive_seconds=10,
            more=self.more,  # type: ignore[arg-type]  # networks, as builders make them
        )
        own = OwnPeer(
            backend=self.backend,
            guest=guest,
            receipt=Receipt(path=self.path / "state" / "peer", store="memory", peer="laptop"),
            flags=lambda _: Flags(settings={}, defaults=Settings()),
        )
        visit = Visit(
            own=own, dataplane=self.dataplane, clean_up=self.clean_up, tell=self.said.append
        )
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(visit.last(self.allowed_ips, self.stop))  # type: ignore[arg-type]  # as above

    async def end(self) -> int:
        """What a signal does; the exit status."""
        self.stop.set()
        async with asyncio.timeout(LIMIT_SECONDS):
            return await self.task

    async def eventually(self, holds: Callable[[], object]) -> None:
        """Returns when it holds; fails if it does not in time, or if the guest has ended."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not holds():
            if self.task.done():
                await self.task
                raise AssertionError("the guest has ended")
            assert time.monotonic() < deadline, f"not in time: {self.said}"
            await asyncio.sleep(0.005)

    async def has_said(self, words: str) -> None:
        await self.eventually(lambda: any(words in line for line in self.said))

    async def next_pass(self) -> None:
        """A whole pass from now on: when the one after it begins."""
        for _ in range(2):
            reads = self.dataplane.reads
            self.dataplane.interfere()
            await self.eventually(lambda: self.dataplane.reads > reads)  # noqa: B023 - called before the next one

    async def find(self, node: str) -> WireGuardPeer | None:
        state = await self.dataplane.read()
        return next((peer for peer in state.peers if peer.public_key == make_key(node)), None)

    def hear_from(self, node: str, *, endpoint: str) -> None:
        """The device has just had a handshake with a node."""
        stats = PeerStats(
            endpoint=Endpoint.parse(endpoint),
            latest_handshake=time.time(),
            received_bytes=1,
            sent_bytes=1,
        )
        self.dataplane.set_stats(make_key(node), stats)

    async def peers(self) -> tuple[Peer, ...]:
        return (await self.backend.snapshot()).peers


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(path=tmp_path)


@asynccontextmanager
async def connected(desk: Desk) -> AsyncIterator[Desk]:
    """At work, its first pass made; ended as by Ctrl-C."""
    desk.start()
    try:
        await desk.has_said("connected as")
        yield desk
        if not desk.task.done():
            assert await desk.end() == 0
    finally:
        desk.task.cancel()
        await asyncio.wait({desk.task})


async def test_a_guest_gets_a_tunnel_and_routes_to_every_segment(desk: Desk) -> None:
    async with connected(desk):
        state = await desk.dataplane.read()
        assert {peer.public_key for peer in state.peers} == {make_key("a1"), make_key("b1")}
        assert {peer.keepalive_seconds for peer in state.peers} == {10}
        assert sorted(map(str, state.routes)) == [
            "route 10.2.1.0/24 dev kilo0 src 10.5.0.9",
            "route 10.2.2.0/24 dev kilo0 src 10.5.0.9",
            "route 10.2.3.0/24 dev kilo0 src 10.5.0.9",
            "route 10.4.0.1/32 dev kilo0 src 10.5.0.9",
            "route 10.4.0.2/32 dev kilo0 src 10.5.0.9",
            "route 192.168.1.11/32 dev kilo0 src 10.5.0.9",
            "route 192.168.1.12/32 dev kilo0 src 10.5.0.9",
            "route 192.168.2.11/32 dev kilo0 src 10.5.0.9",
        ]
        assert [str(address) for address in state.addresses] == ["address 10.5.0.9/32 dev kilo0"]
        assert [str(link) for link in state.links] == ["link kilo0 mtu 1420 up"]


async def test_the_peer_is_made_and_removed_again(desk: Desk) -> None:
    async with connected(desk):
        (peer,) = await desk.peers()
        assert (peer.name, peer.public_key, peer.allowed_ips) == ("laptop", make_key("laptop"), OWN)
        assert peer.persistent_keepalive_seconds == 10
    assert await desk.peers() == ()
    assert await desk.dataplane.read() == DataplaneState()
    assert desk.said[0] == "peer laptop created"
    assert desk.said[-1] == "peer laptop removed"


async def test_a_peer_that_was_there_is_used_and_stays(desk: Desk) -> None:
    await desk.backend.put_peer(make_peer("laptop", "10.5.0.7/32", preshared=True))
    desk.allowed_ips = ()
    async with connected(desk):
        found = await desk.find("b1")
        assert found is not None
        assert found.preshared_key == make_peer("laptop", preshared=True).preshared_key
        state = await desk.dataplane.read()
        assert [str(address) for address in state.addresses] == ["address 10.5.0.7/32 dev kilo0"]
    assert [peer.name for peer in await desk.peers()] == ["laptop"]


async def test_without_clean_up_everything_stays(desk: Desk) -> None:
    desk.clean_up = False
    async with connected(desk):
        during = await desk.dataplane.read()
    assert await desk.dataplane.read() == during
    assert [peer.name for peer in await desk.peers()] == ["laptop"]
    desk.clean_up = True
    async with connected(desk):
        pass
    assert await desk.peers() == ()


async def test_what_a_killed_guest_left_is_taken_over_without_a_change_and_undone(
    desk: Desk,
) -> None:
    async with connected(desk):
        desk.task.cancel()  # its clean-up is lost as well
        desk.dataplane.refuse("")
        desk.backend.go_away("gone")
        await asyncio.wait({desk.task})
    desk.dataplane.relent()
    desk.backend.come_back()
    assert [peer.name for peer in await desk.peers()] == ["laptop"]
    left, writes = await desk.dataplane.read(), desk.dataplane.writes
    assert left.routes
    async with connected(desk):
        assert await desk.dataplane.read() == left
        assert desk.dataplane.writes == writes
    assert await desk.dataplane.read() == DataplaneState()
    assert await desk.peers() == ()


async def test_it_follows_nodes_that_come_and_go(desk: Desk) -> None:
    async with connected(desk):
        desk.backend.put_node("c1", make_spec(location="west", pod_subnets=networks("10.2.7.0/24")))
        desk.backend.put_report(
            make_report("c1", endpoint="198.51.100.31:51820", internal_ips=("192.168.3.1/24",)),
            last_seen=int(time.time()),
        )
        await desk.has_said("through a1, b1, c1")
        assert await desk.find("c1")
        await desk.backend.forget_node("b1")
        await desk.has_said("through a1, c1")
        assert await desk.find("b1") is None


async def test_a_pass_over_an_unchanged_mesh_writes_nothing(desk: Desk) -> None:
    desk.more = SERVICES
    async with connected(desk):
        before = desk.dataplane.writes
        await desk.next_pass()
        assert desk.dataplane.writes == before


async def test_services_are_reached_through_one_leader_and_follow_when_it_goes(desk: Desk) -> None:
    desk.more = SERVICES
    async with connected(desk):
        first, other = await desk.find("a1"), await desk.find("b1")
        assert first is not None
        assert other is not None
        assert SERVICES[0] in first.allowed_ips
        assert SERVICES[0] not in other.allowed_ips
        await desk.backend.forget_node("a1")
        await desk.backend.forget_node("a2")
        await desk.has_said("10.43.0.0/16: reached through b1")
        other = await desk.find("b1")
        assert other is not None
        assert SERVICES[0] in other.allowed_ips
        routes = {route.destination for route in (await desk.dataplane.read()).routes}
        assert SERVICES[0] in routes


async def test_services_move_to_a_leader_that_answers_and_stay_with_it(desk: Desk) -> None:
    desk.more = SERVICES
    async with connected(desk):
        await desk.next_pass()  # the last that anything asks for
        desk.hear_from("b1", endpoint="198.51.100.21:51820")
        await desk.has_said("reached through b1")
        desk.hear_from("a1", endpoint="198.51.100.11:51820")
        await desk.next_pass()
        found = await desk.find("b1")
        assert found is not None
        assert SERVICES[0] in found.allowed_ips


async def test_a_node_that_moved_is_not_sent_back_to_where_it_was(desk: Desk) -> None:
    async with connected(desk):
        desk.hear_from("b1", endpoint="203.0.113.77:40000")
        await desk.next_pass()
        found = await desk.find("b1")
        assert found is not None
        assert found.endpoint == Endpoint.parse("203.0.113.77:40000")


async def test_a_new_endpoint_that_was_refused_is_tried_again(desk: Desk) -> None:
    async with connected(desk):
        desk.hear_from("b1", endpoint="198.51.100.21:51820")
        desk.dataplane.refuse("endpoint 198.51.100.22")
        moved = make_report("b1", endpoint="198.51.100.22:51820", internal_ips=("192.168.2.11/24",))
        desk.backend.put_report(moved, last_seen=int(time.time()))
        await desk.has_said("Operation not permitted")
        desk.dataplane.relent()
        writes = desk.dataplane.writes
        await desk.eventually(lambda: desk.dataplane.writes > writes)
        found = await desk.find("b1")
        assert found is not None
        assert found.endpoint == moved.endpoint


async def test_the_port_that_the_kernel_chose_stays(desk: Desk) -> None:
    async with connected(desk):
        (device,) = (await desk.dataplane.read()).devices
        assert device.listen_port == 0
        chosen = replace(device, listen_port=41000)
        desk.dataplane.interfere(Change(old=device, new=chosen))
        await desk.next_pass()
        assert (await desk.dataplane.read()).devices == {chosen}


async def test_a_peer_with_an_endpoint_listens_where_the_mesh_looks_for_it(desk: Desk) -> None:
    endpoint = Endpoint.parse("203.0.113.50:51999")
    await desk.backend.put_peer(replace(make_peer("laptop", "10.5.0.9/32"), endpoint=endpoint))
    async with connected(desk):
        (device,) = (await desk.dataplane.read()).devices
        assert device.listen_port == 51999


async def test_a_tunnels_own_packets_do_not_go_into_it(desk: Desk) -> None:
    near = networks("198.51.100.0/27")
    desk.backend.put_node("b1", replace(SPECS["b1"], allowed_location_ips=near))
    async with connected(desk):
        found = await desk.find("b1")
        assert found is not None
        assert near[0] in found.allowed_ips
        routes = {route.destination for route in (await desk.dataplane.read()).routes}
        assert near[0] not in routes


async def test_no_leader_carries_the_network_its_own_tunnel_runs_through(desk: Desk) -> None:
    desk.more = networks("198.51.100.0/24")
    async with connected(desk):
        await desk.has_said("--allowed-ips 198.51.100.0/24: no leader can carry them")
        routes = {route.destination for route in (await desk.dataplane.read()).routes}
        assert desk.more[0] not in routes


async def test_packets_for_a_leader_that_is_away_do_not_leave_in_clear(desk: Desk) -> None:
    async with connected(desk):
        await desk.backend.withdraw("b1")
        await desk.eventually(lambda: desk.said[-1].endswith("through a1"))
        state = await desk.dataplane.read()
        assert networks("10.2.3.0/24")[0] not in {route.destination for route in state.routes}
        assert networks("10.2.3.0/24")[0] in {one.destination for one in state.barriers}


async def test_one_bad_node_or_a_refused_route_stops_only_itself(desk: Desk) -> None:
    desk.backend.put_document("Node bad", {"kind": "Node", "metadata": {"name": "bad"}})
    unresolved = Endpoint(host="no-such.example", port=51820)
    desk.backend.put_node(
        "lost", make_spec(location="lost", public_key=make_key("lost"), endpoint=unresolved)
    )
    desk.dataplane.refuse("route 10.2.1.0/24", reason="File exists")
    desk.start()
    await desk.has_said("route 10.2.1.0/24 dev kilo0 src 10.5.0.9: File exists")
    await desk.has_said("Node bad")
    routes = {route.destination for route in (await desk.dataplane.read()).routes}
    assert networks("10.2.3.0/24")[0] in routes
    desk.dataplane.relent()
    await desk.has_said("connected as")
    assert await desk.end() == 0


async def test_while_the_store_is_away_nothing_changes_and_the_kernel_is_repaired(
    desk: Desk,
) -> None:
    async with connected(desk):
        before = await desk.dataplane.read()
        desk.backend.go_away("connection refused")
        await desk.has_said("store cannot be heard, the network stays as it is")
        desk.dataplane.remove(next(iter(before.routes)))
        writes = desk.dataplane.writes
        await desk.eventually(lambda: desk.dataplane.writes > writes)
        assert await desk.dataplane.read() == before
        desk.backend.come_back()


async def test_a_peer_that_cannot_be_removed_is_told_and_removed_by_the_next(desk: Desk) -> None:
    async with connected(desk):
        desk.backend.go_away("connection refused")
        assert await desk.end() == 1
    assert any("peer laptop: left behind" in line for line in desk.said)
    assert await desk.dataplane.read() == DataplaneState()
    desk.backend.come_back()
    desk.said.clear()
    async with connected(desk):
        pass
    assert await desk.peers() == ()


async def test_a_peer_that_an_operator_takes_away_is_told_and_changes_nothing(desk: Desk) -> None:
    async with connected(desk):
        before = await desk.dataplane.read()
        await desk.backend.delete_peer("laptop")
        await desk.has_said("peer laptop: there is no such peer in the store")
        assert await desk.dataplane.read() == before


async def refuse(desk: Desk) -> None:
    desk.start()
    async with asyncio.timeout(LIMIT_SECONDS):
        await desk.task


async def test_a_peer_of_another_key_is_refused_and_left_alone(desk: Desk) -> None:
    await desk.backend.put_peer(
        replace(make_peer("laptop", "10.5.0.9/32"), public_key=make_key("x"))
    )
    with pytest.raises(MeshError, match=r"peer laptop: its public key is .*--private-key"):
        await refuse(desk)
    assert len(await desk.peers()) == 1
    assert desk.dataplane.writes == 0


async def test_an_address_that_the_mesh_would_refuse_makes_no_peer(desk: Desk) -> None:
    desk.allowed_ips = networks("10.2.1.5/32")
    with pytest.raises(MeshError, match=r"10\.2\.1\.5/32"):
        await refuse(desk)
    assert await desk.peers() == ()


async def test_addresses_other_than_the_peers_own_are_a_contradiction(desk: Desk) -> None:
    await desk.backend.put_peer(make_peer("laptop", "10.5.0.7/32"))
    with pytest.raises(UsageError, match=r"--allowed-ip '10\.5\.0\.9/32': .*10\.5\.0\.7/32"):
        await refuse(desk)
    desk.allowed_ips = ()
    await desk.backend.delete_peer("laptop")
    with pytest.raises(UsageError, match="--allowed-ip: is missing"):
        await refuse(desk)


LINK = Link(name="kilo0", mtu=1420, up=True)
THEIRS = WireGuardDevice(link="kilo0", public_key=make_key("agent"), listen_port=51820)
LEFTOVERS = {
    "is there already, with the public key": DataplaneState(
        links=frozenset({LINK}), devices=frozenset({THEIRS})
    ),
    "has left its network on this host": DataplaneState(
        rules=frozenset({Rule(destination=networks("192.168.1.1/32")[0], table=1107)})
    ),
    r"has left .* \(route 10\.2\.9\.0/24 dev eth0": DataplaneState(
        routes=frozenset({Route(destination=networks("10.2.9.0/24")[0], link="eth0")})
    ),
}


@pytest.mark.parametrize("words", LEFTOVERS)
async def test_where_an_agent_has_been_at_work_nothing_is_touched(desk: Desk, words: str) -> None:
    state = LEFTOVERS[words]
    desk.dataplane.interfere(*(Change(new=resource) for resource in state.resources()))
    before = await desk.dataplane.read()
    with pytest.raises(ConfigError, match=words):
        await refuse(desk)
    assert await desk.dataplane.read() == before
    assert await desk.peers() == ()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["Not_A_Name", "-a", "10.5.0.9/32"], "NAME 'Not_A_Name'"),
        (["laptop", "-a", "10.5.0.0/24"], "holds no single address"),
        (["laptop", "-a", "10.5.0.9/32", "--interface=a name"], "is not a link's name"),
    ],
)
def test_words_that_make_no_guest_are_refused(site: Site, words: list[str], reason: str) -> None:
    said = site.ask("connect", *words)
    assert said.status == 2
    assert reason in said.err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--backend=file", "--directory=/no/such"], "/no/such: No such file or directory"),
        (["--master=http://127.0.0.1:9"], "127.0.0.1:9: GET /api/v1/nodes: connection refused"),
        (["--kubeconfig=/no/such"], "/no/such"),
    ],
)
async def test_a_store_that_is_not_there_is_named_before_anything_is_made(
    flags: list[str], reason: str
) -> None:
    parsed = USAGE.parse(["laptop", "-a", "10.5.0.9/32", *flags], {})
    with pytest.raises(KiloError, match=reason):
        await stay_connected(parsed, find_store(parsed, {}), "laptop")
