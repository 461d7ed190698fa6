"""One mesh from two stores: the own host stands in the cluster, a rack in another store."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from kilo.backends.joining import JoinedBackend
from kilo.backends.memory import MemoryBackend
from kilo.http import answer_ready
from kilo.lastgood import SnapshotFile
from kilo.mesh.keys import PresharedKey
from kilo.mesh.model import NodeReport, PartialSettings
from tests.builders import make_key, make_peer, make_report, make_spec, networks
from tests.engine.test_store_away import SilentBackend
from tests.engine.world import (
    REMOTE,
    Clock,
    World,
    let_everything_run,
    make_backend,
    running,
)

RACK = make_report("r", endpoint="198.51.100.4:51820", internal_ips=("192.168.3.11/24",))
NEW = make_report("n", endpoint="198.51.100.5:51820", internal_ips=("192.168.4.11/24",))


class Rack:
    """The other store, with one node."""

    def __init__(self) -> None:
        self.store = MemoryBackend()
        self.declare("r", "rack", "10.2.4.0/24")
        self.store.put_report(RACK, last_seen=int(time.time()))

    def declare(self, name: str, location: str, subnet: str) -> None:
        spec = make_spec(location=location, pod_subnets=networks(subnet))
        self.store.put_node(name, spec)


@pytest.fixture
def rack() -> Rack:
    return Rack()


@pytest.fixture
async def hybrid(world: World, rack: Rack) -> World:
    join(world, rack)
    return world


def join(world: World, rack: Rack, *, order: tuple[str, str] = ("kubernetes", "etcd")) -> None:
    """The store of an agent that starts now."""
    stores = {"kubernetes": world.backend, "etcd": rack.store}
    kinds = {kind: stores[kind] for kind in order}
    world.store = JoinedBackend(kinds, first_answers_seconds=0.5)


def say_ready(world: World) -> str:
    return bytes(answer_ready(world.status, {}).body).decode()


async def settle(world: World, rack: Rack) -> None:
    """An agent that has heard both stores, and ended."""
    join(world, rack)
    async with running(world):
        await world.settled()
        await world.eventually((world.path / "snapshot.json").exists)


async def test_the_nodes_of_all_stores_take_part(hybrid: World) -> None:
    async with running(hybrid):
        await hybrid.settled()
        assert hybrid.names == {"a", "b", "c", "r"}
        assert hybrid.status.snapshot.problems == ()


async def test_the_own_report_goes_to_the_first_store_only(hybrid: World, rack: Rack) -> None:
    async with running(hybrid):
        await hybrid.eventually(hybrid.find_report)
        assert [node.name for node in rack.store._read().nodes] == ["r"]


async def test_while_one_store_is_away_its_nodes_stay_and_the_silent_ones_of_the_other_leave(
    hybrid: World, rack: Rack
) -> None:
    stamp = int(time.time()) - 54
    rack.store.put_report(RACK, last_seen=stamp)
    hybrid.backend.put_report(REMOTE, last_seen=stamp)
    async with running(hybrid):
        await hybrid.settled()
        assert hybrid.names == {"a", "b", "c", "r"}
        rack.store.go_away("the rack is on fire")
        await hybrid.eventually(lambda: hybrid.status.away)

        await hybrid.eventually(lambda: hybrid.names == {"a", "b", "r"})
        await hybrid.eventually(lambda: time.time() > stamp + 62)
        await hybrid.next_pass()
        assert hybrid.names == {"a", "b", "r"}

        rack.store.come_back()
        await hybrid.eventually(lambda: hybrid.names == {"a", "b"})


async def test_while_one_store_is_away_the_others_changes_converge(
    hybrid: World, rack: Rack
) -> None:
    async with running(hybrid):
        await hybrid.settled()
        rack.store.go_away("the rack is on fire")
        await hybrid.eventually(lambda: hybrid.status.away)
        hybrid.backend.put_node("n", make_spec(location="new", pod_subnets=networks("10.2.5.0/24")))
        hybrid.backend.put_report(NEW, last_seen=int(time.time()))

        await hybrid.eventually(lambda: hybrid.names == {"a", "b", "c", "r", "n"})
        state = await hybrid.settled()
        keys = {peer.public_key for peer in state.peers}
        assert {make_key("r"), make_key("n")} <= keys


async def test_operators_are_told_which_store_is_away_and_when_it_is_back(
    hybrid: World, rack: Rack
) -> None:
    with capture_logs() as logs:
        async with running(hybrid):
            await hybrid.settled()
            assert hybrid.read("kilo_store_up") == 1
            rack.store.go_away("the rack is on fire")
            await hybrid.eventually(lambda: hybrid.status.away)

            assert say_ready(hybrid) == "store etcd: memory: the rack is on fire\n"
            assert hybrid.read("kilo_store_up") == 0
            assert hybrid.read("kilo_each_store_up", {"store": "etcd"}) == 0
            assert hybrid.read("kilo_each_store_up", {"store": "kubernetes"}) == 1
            assert hybrid.read("kilo_errors_total", {"event": "store"}) == 1

            rack.store.come_back()
            await hybrid.eventually(lambda: not hybrid.status.away)
            assert say_ready(hybrid) == "ready\n"
            assert hybrid.read("kilo_store_up") == 1
            assert hybrid.read("kilo_each_store_up", {"store": "etcd"}) == 1
    told = [(log["event"], log.get("error")) for log in logs if log.get("store") == "etcd"]
    assert told == [
        ("store cannot be heard: what stands in it stays as it is", "memory: the rack is on fire"),
        ("store is heard again", None),
    ]


async def test_while_all_stores_are_away_nothing_is_judged_and_the_error_names_all(
    hybrid: World, rack: Rack
) -> None:
    async with running(hybrid):
        state = await hybrid.settled()
        rack.store.go_away("on fire")
        hybrid.backend.go_away("under water")
        await hybrid.eventually(lambda: hybrid.status.store_error)

        assert hybrid.status.store_error == "memory: under water; memory: on fire"
        assert hybrid.read("kilo_each_store_up", {"store": "kubernetes"}) == 0
        assert await hybrid.settled() == state


async def test_the_own_report_is_published_at_once_when_its_store_is_back(
    world: World, rack: Rack
) -> None:
    clock = Clock()
    world.backend = make_backend(clock)
    join(world, rack)
    async with running(world):
        await world.eventually(world.find_report)
        world.backend.go_away("under water")
        await world.eventually(lambda: world.status.away)
        clock.ahead = 1000.0
        world.backend.come_back()

        await world.eventually(lambda: world.backend._read().last_seen["a"] > time.time() + 900)


# Starts.


async def test_a_start_without_one_store_takes_what_the_disk_has_of_it(
    world: World, rack: Rack
) -> None:
    await settle(world, rack)
    rack.store.go_away("on fire")
    writes = world.writes
    join(world, rack)
    async with running(world):
        await world.settled()
        assert world.names == {"a", "b", "c", "r"}
        assert world.writes == writes
        assert world.status.away == {"etcd": "memory: on fire"}

        world.backend.put_node("n", make_spec(location="new", pod_subnets=networks("10.2.5.0/24")))
        world.backend.put_report(NEW, last_seen=int(time.time()))
        await world.eventually(lambda: world.names == {"a", "b", "c", "r", "n"})


async def test_who_was_live_when_the_snapshot_was_kept_is_live_whatever_its_clock_says(
    world: World, rack: Rack
) -> None:
    """An hour behind, and live all the same: its stamp was seen to change."""
    stamp = int(time.time()) - 3600
    rack.declare("n", "late", "10.2.5.0/24")
    rack.store.put_report(NEW, last_seen=stamp)
    join(world, rack)
    async with running(world):
        await world.settled()
        assert "n" not in world.names
        rack.store.put_report(NEW, last_seen=stamp + 30)
        await world.eventually(lambda: "n" in world.names)
        await world.eventually(lambda: str(NEW.public_key) in _read_kept(world))
    rack.store.go_away("on fire")
    join(world, rack)
    async with running(world):
        await world.settled()
        assert world.names == {"a", "b", "c", "r", "n"}


def _read_kept(world: World) -> str:
    """The last seen of the nodes in the snapshot on disk."""
    kept = SnapshotFile(world.path / "snapshot.json").load()
    nodes = kept.nodes if kept else ()
    return " ".join(str(n.public_key) for n in nodes if kept and n.name in kept.last_seen)


async def test_nodes_known_from_the_disk_are_judged_once_their_store_is_heard(
    world: World, rack: Rack
) -> None:
    await settle(world, rack)
    rack.store.go_away("on fire")
    join(world, rack)
    async with running(world):
        await world.settled()
        rack.store.delete_document("NodeReport r")
        rack.store.come_back()

        await world.eventually(lambda: world.names == {"a", "b", "c"})


async def test_a_silent_store_is_as_good_as_one_that_is_away(world: World, rack: Rack) -> None:
    await settle(world, rack)
    rack.store = SilentBackend()
    join(world, rack)
    async with running(world):
        await world.settled()
        assert world.names == {"a", "b", "c", "r"}
        assert world.status.away == {"etcd": "etcd: no answer for 0.5 s"}


async def test_a_store_that_is_empty_at_the_start_is_not_believed_and_the_other_is(
    world: World, rack: Rack
) -> None:
    """As where a directory is a mount point and the mount came too late."""
    await settle(world, rack)
    rack.store = MemoryBackend()
    join(world, rack)
    async with running(world):
        await world.settled()
        assert world.names == {"a", "b", "c", "r"}
        assert "is it mounted?" in world.status.away["etcd"]
        world.backend.delete_document("Peer phone")
        await world.eventually(lambda: world.read("kilo_peers") == 0)

        await rack.store.put_peer(make_peer("laptop", "10.5.0.9/32"))
        await world.eventually(lambda: world.names == {"a", "b", "c"})
        assert not world.status.away


async def test_without_anything_known_of_a_store_the_kernel_is_not_touched(
    hybrid: World, rack: Rack
) -> None:
    """With the nodes of half the mesh this host would take another address than it has."""
    rack.store.put_report(RACK, last_seen=int(time.time()) - 600)
    rack.store.go_away("on fire")
    async with running(hybrid):
        await hybrid.eventually(lambda: hybrid.status.store_error == "memory: on fire")
        await let_everything_run()
        hybrid.dataplane.interfere()
        await let_everything_run()
        assert hybrid.writes == 0

        rack.store.come_back()
        await hybrid.eventually(lambda: hybrid.names == {"a", "b", "c", "r"})


async def test_what_was_the_only_store_is_known_when_a_second_is_added_and_the_first_is_away(
    world: World, rack: Rack
) -> None:
    async with running(world):
        await world.settled()
        await world.eventually((world.path / "snapshot.json").exists)
    world.backend.go_away("under water")
    join(world, rack)
    async with running(world):
        await world.eventually(lambda: world.names == {"a", "b", "c", "r"})


async def test_the_snapshot_on_disk_holds_the_preshared_keys_of_no_store(
    world: World, rack: Rack
) -> None:
    peer = make_peer("safe", "10.5.0.9/32", preshared=True)
    await rack.store.put_peer(peer)
    await settle(world, rack)
    text = (world.path / "snapshot.json").read_text()
    assert "safe" in text
    assert isinstance(peer.preshared_key, PresharedKey)
    assert peer.preshared_key.reveal() not in text


# Conflicts.


async def test_a_host_whose_name_is_taken_in_another_store_says_so_and_changes_nothing(
    world: World, rack: Rack
) -> None:
    rack.declare("c", "rack", "10.2.6.0/24")
    join(world, rack, order=("etcd", "kubernetes"))
    async with running(world):
        await world.eventually(lambda: "--hostname" in world.status.not_ready)
        assert world.status.not_ready == (
            "Node a: is a node of kubernetes already, which comes before etcd: this host needs"
            " another name (--hostname): the network stays as it is"
        )
        assert world.writes == 0


async def test_a_refusal_names_the_stores_of_both(hybrid: World, rack: Rack) -> None:
    rack.declare("r", "rack", "10.2.3.0/24")
    await rack.store.put_peer(make_peer("phone2", "10.5.0.1/32"))
    async with running(hybrid):
        await hybrid.settled()
        assert hybrid.status.topology is not None
        of_node, of_peer = map(str, hybrid.status.topology.refusals)
        assert of_node == (
            "Node c (kubernetes): podSubnets 10.2.3.0/24 refused: it belongs to Node r (etcd)"
        )
        assert of_peer == (
            "Peer phone2 (etcd): spec.allowedIPs 10.5.0.1/32 refused: Peer phone (kubernetes)"
            " claims it too"
        )


# Kilo's own agents.


def make_foreign(report: NodeReport) -> NodeReport:
    """As Kilo's own agent writes it."""
    return replace(report, agent="")


async def test_where_kilos_own_agents_run_other_stores_are_left_out_and_it_is_said_once(
    hybrid: World, rack: Rack
) -> None:
    await rack.store.put_peer(make_peer("laptop", "10.5.0.9/32"))
    async with running(hybrid):
        await hybrid.settled()
        assert "r" in hybrid.names
        hybrid.backend.put_report(make_foreign(REMOTE), last_seen=int(time.time()))

        await hybrid.eventually(lambda: hybrid.names == {"a", "b", "c"})
        await hybrid.settled()
        assert hybrid.status.topology is not None
        assert [peer.name for peer in hybrid.status.topology.peers] == ["phone"]
        (refusal,) = map(str, hybrid.status.topology.refusals)
        assert refusal == (
            "Store etcd: nodes and peers r, laptop refused: the agent of Node c (kubernetes) is"
            " Kilo's own or too old and knows of no other store than its own"
        )


async def test_a_host_that_kilos_own_agents_cannot_know_leaves_its_network_as_it_is(
    world: World, rack: Rack
) -> None:
    rack.declare("a", "north", "10.2.1.0/24")
    world.backend.delete_node("a")
    join(world, rack, order=("etcd", "kubernetes"))
    async with running(world):
        state = await world.settled()
        world.backend.put_report(make_foreign(REMOTE), last_seen=int(time.time()))

        await world.eventually(lambda: world.status.not_ready)
        assert world.status.not_ready == (
            "Node a (etcd): the agent of Node c (kubernetes) is Kilo's own or too old and knows of"
            " no other store than its own: the network stays as it is"
        )
        assert await world.dataplane.read() == state


async def test_settings_of_both_stores_hold(hybrid: World, rack: Rack) -> None:
    rack.store.put_settings(PartialSettings(port=51999))
    async with running(hybrid):
        await hybrid.eventually(
            lambda: hybrid.status.topology and hybrid.status.topology.settings.port == 51999
        )
