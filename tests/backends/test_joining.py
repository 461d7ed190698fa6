"""Several stores read as one mesh: who wins, what is told while one is away, where things go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.backends.etcd.config import EtcdConfig
from kilo.backends.joining import JoinedBackend
from kilo.backends.memory import MemoryBackend
from kilo.backends.opening import BackendConfig, open_backend
from kilo.backends.parts import ORDER, join_parts, mark_part
from kilo.errors import BackendError, ConfigError
from kilo.mesh.model import Granularity, NodeSpec, PartialSettings, Peer, Snapshot
from kilo.mesh.remarks import PeerStanding, Reason, Remark, Remarks
from tests.backends.following import Follower, texts
from tests.builders import make_key, make_peer, make_report, make_spec, networks

EAST, WEST = make_spec(location="east"), make_spec(location="west")
BAD_PEER = {
    "apiVersion": "kilo.squat.ai/v1alpha1",
    "kind": "Peer",
    "metadata": {"name": "bad"},
    "spec": {"publicKey": str(make_key("bad")), "allowedIPs": ["10.5.0.2"]},
}


class Hybrid:
    """A cluster and a rack, and agents that read both."""

    def __init__(self) -> None:
        self.cluster = MemoryBackend()
        self.rack = MemoryBackend()
        self.cluster_agent = JoinedBackend({"kubernetes": self.cluster, "etcd": self.rack})
        self.rack_agent = JoinedBackend({"etcd": self.rack, "kubernetes": self.cluster})

    @property
    def agents(self) -> tuple[JoinedBackend, JoinedBackend]:
        return self.cluster_agent, self.rack_agent


@pytest.fixture
async def hybrid() -> AsyncIterator[Hybrid]:
    opened = Hybrid()
    yield opened
    for agent in opened.agents:
        await agent.close()


class GatedBackend(MemoryBackend):
    """A store that says nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def watch(self) -> AsyncIterator[Snapshot | BackendError]:
        await self.gate.wait()
        async for outcome in super().watch():
            yield outcome


class BreakingBackend(MemoryBackend):
    """A store whose watch ends with an error, once, instead of telling of it."""

    has_broken = False

    async def watch(self) -> AsyncIterator[Snapshot | BackendError]:
        if not self.has_broken:
            self.has_broken = True
            raise BackendError("memory: the watch broke")
        async for outcome in super().watch():
            yield outcome


# What all of them say.


async def test_nodes_and_peers_of_all_stores_are_there_and_say_where_they_stand(
    hybrid: Hybrid,
) -> None:
    hybrid.cluster.put_node("c1", EAST)
    await hybrid.cluster.put_peer(make_peer("phone"))
    await hybrid.rack.publish(make_report("r1"))
    await hybrid.rack.put_peer(make_peer("laptop", "10.5.0.2/32"))
    for agent in hybrid.agents:
        snapshot = await agent.snapshot()
        assert [(node.name, node.origin) for node in snapshot.nodes] == [
            ("c1", "kubernetes"),
            ("r1", "etcd"),
        ]
        assert [(peer.name, peer.origin) for peer in snapshot.peers] == [
            ("laptop", "etcd"),
            ("phone", "kubernetes"),
        ]
        assert snapshot.last_seen.keys() == {"r1"}
        assert snapshot.problems == ()


async def test_of_two_nodes_of_one_name_all_agents_take_the_same_and_say_so(
    hybrid: Hybrid,
) -> None:
    hybrid.cluster.put_node("n1", EAST)
    hybrid.rack.put_node("n1", WEST)
    for agent in hybrid.agents:
        snapshot = await agent.snapshot()
        assert [(node.origin, node.spec) for node in snapshot.nodes] == [("kubernetes", EAST)]
        (text,) = texts(snapshot)
        assert text == (
            "etcd: Node n1: metadata.name: 'n1' is a Node of kubernetes too, which comes before"
            " etcd; left out"
        )


async def test_of_two_peers_of_one_name_all_agents_take_the_same_and_say_so(
    hybrid: Hybrid,
) -> None:
    await hybrid.rack.put_peer(make_peer("squat", "10.5.0.2/32"))
    await hybrid.cluster.put_peer(make_peer("squat", "10.5.0.1/32"))
    for agent in hybrid.agents:
        snapshot = await agent.snapshot()
        assert [peer.allowed_ips for peer in snapshot.peers] == [networks("10.5.0.1/32")]
        (text,) = texts(snapshot)
        assert text.startswith("etcd: Peer squat: metadata.name: 'squat' is a Peer of kubernetes")


async def test_the_heartbeat_of_a_node_that_is_left_out_is_not_that_of_its_namesake(
    hybrid: Hybrid,
) -> None:
    hybrid.cluster.put_node("n1", EAST)
    await hybrid.rack.publish(make_report("n1"))
    snapshot = await hybrid.cluster_agent.snapshot()
    assert [(node.origin, node.report) for node in snapshot.nodes] == [("kubernetes", None)]
    assert snapshot.last_seen == {}


async def test_each_setting_is_the_first_stores_that_sets_it_and_a_difference_is_a_problem(
    hybrid: Hybrid,
) -> None:
    hybrid.cluster.put_settings(PartialSettings(port=51820, granularity=Granularity.FULL))
    hybrid.rack.put_settings(PartialSettings(port=51999, mtu=1400, granularity=Granularity.FULL))
    for agent in hybrid.agents:
        snapshot = await agent.snapshot()
        assert snapshot.settings == PartialSettings(
            port=51820, granularity=Granularity.FULL, mtu=1400
        )
        (text,) = texts(snapshot)
        assert text == (
            "etcd: Settings mesh: spec.port: '51999' is '51820' in kubernetes, which comes before"
            " etcd; left out"
        )


async def test_a_problem_says_in_which_store_it_is(hybrid: Hybrid) -> None:
    hybrid.rack.put_document("bad", BAD_PEER)
    (text,) = texts(await hybrid.cluster_agent.snapshot())
    assert text.startswith("etcd: bad: Peer bad: spec.allowedIPs[0]: '10.5.0.2' ")


# One store away.


async def test_while_one_store_is_away_the_others_changes_are_told_and_its_part_stays(
    hybrid: Hybrid,
) -> None:
    hybrid.rack.put_node("r1", WEST)
    follower = Follower(hybrid.cluster_agent)
    await follower.until(lambda snapshot: bool(snapshot.nodes))
    hybrid.rack.go_away("the rack is on fire")
    told = await follower.until(lambda snapshot: bool(snapshot.away))
    assert told.away == {"etcd": "memory: the rack is on fire"}
    hybrid.cluster.put_node("c1", EAST)
    told = await follower.until(lambda snapshot: len(snapshot.nodes) == 2)
    assert [node.name for node in told.nodes] == ["c1", "r1"]
    assert told.away.keys() == {"etcd"}
    hybrid.rack.come_back()
    told = await follower.until(lambda snapshot: not snapshot.away)
    assert [node.name for node in told.nodes] == ["c1", "r1"]
    assert not any(isinstance(outcome, BackendError) for outcome in follower.said)


async def test_only_when_all_stores_are_away_a_watch_tells_an_error_which_names_all(
    hybrid: Hybrid,
) -> None:
    follower = Follower(hybrid.rack_agent)
    await follower.next()
    hybrid.rack.go_away("on fire")
    await follower.until(lambda snapshot: bool(snapshot.away))
    hybrid.cluster.go_away("under water")
    error = await follower.until_error()
    assert str(error) == "memory: under water; memory: on fire"
    hybrid.rack.come_back()
    told = await follower.until_snapshot()
    assert told.away.keys() == {"kubernetes"}


async def test_a_store_that_was_never_heard_has_no_part(hybrid: Hybrid) -> None:
    hybrid.rack.go_away("on fire")
    hybrid.cluster.put_node("c1", EAST)
    told = await Follower(hybrid.cluster_agent).until_snapshot()
    assert told.parts.keys() == {"kubernetes"}
    assert told.away.keys() == {"etcd"}


async def test_a_watch_waits_for_the_first_answer_of_every_store() -> None:
    late, prompt = GatedBackend(), MemoryBackend()
    late.put_node("r1", WEST)
    agent = JoinedBackend({"kubernetes": prompt, "etcd": late}, first_answers_seconds=3600)
    follower = Follower(agent)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(follower.next())
        await asyncio.sleep(0.05)  # what must not happen has no event to wait for
        assert not first.done()
        late.gate.set()
    told = first.result()
    assert isinstance(told, Snapshot)
    assert told.parts.keys() == {"kubernetes", "etcd"}
    await agent.close()


async def test_a_store_that_says_nothing_counts_as_away_after_a_while() -> None:
    silent = GatedBackend()
    agent = JoinedBackend({"kubernetes": MemoryBackend(), "etcd": silent}, first_answers_seconds=0)
    follower = Follower(agent)
    told = await follower.until_snapshot()
    assert told.away == {"etcd": "etcd: no answer for 0 s"}
    silent.gate.set()
    await follower.until(lambda snapshot: not snapshot.away)
    await agent.close()


async def test_a_watch_that_breaks_is_begun_again() -> None:
    breaking = BreakingBackend()
    agent = JoinedBackend({"kubernetes": MemoryBackend(), "etcd": breaking})
    follower = Follower(agent)
    told = await follower.until_snapshot()
    assert told.away == {"etcd": "memory: the watch broke"}
    await follower.until(lambda snapshot: not snapshot.away)
    await agent.close()


async def test_a_snapshot_is_refused_while_a_store_is_away(hybrid: Hybrid) -> None:
    """Whoever asks for one would take half a mesh for the whole."""
    hybrid.rack.go_away("on fire")
    with pytest.raises(BackendError, match="memory: on fire"):
        await hybrid.cluster_agent.snapshot()


# Where things go.


async def test_a_report_goes_to_the_first_store_and_needs_no_other(hybrid: Hybrid) -> None:
    hybrid.cluster.go_away("under water")
    await hybrid.rack_agent.publish(make_report("r1"))
    assert [node.name for node in (await hybrid.rack.snapshot()).nodes] == ["r1"]
    await hybrid.rack_agent.withdraw("r1")
    assert (await hybrid.rack.snapshot()).nodes == ()


async def test_a_peer_of_another_store_is_not_put_a_second_time(hybrid: Hybrid) -> None:
    await hybrid.cluster.put_peer(make_peer("squat"))
    with pytest.raises(BackendError) as caught:
        await hybrid.rack_agent.put_peer(make_peer("squat", "10.5.0.2/32"))
    assert str(caught.value) == (
        "Peer squat: stands in kubernetes, not in etcd: write it there (--backend=kubernetes)"
    )
    assert (await hybrid.rack.snapshot()).peers == ()


async def test_a_node_of_another_store_is_not_declared_a_second_time(hybrid: Hybrid) -> None:
    await hybrid.rack.publish(make_report("r1"))
    with pytest.raises(BackendError, match=r"Node r1: stands in etcd, not in kubernetes"):
        await hybrid.cluster_agent.declare_node("r1", EAST)
    assert (await hybrid.cluster.snapshot()).nodes == ()


async def test_what_is_deleted_is_deleted_where_it_stands(hybrid: Hybrid) -> None:
    await hybrid.rack.put_peer(make_peer("squat"))
    hybrid.rack.put_node("r1", WEST)
    hybrid.rack.put_settings(PartialSettings(port=51999))
    await hybrid.cluster_agent.delete_peer("squat")
    await hybrid.cluster_agent.forget_node("r1")
    await hybrid.cluster_agent.forget_settings()
    assert await hybrid.rack.snapshot() == Snapshot()


async def test_what_stands_in_a_store_that_is_there_is_deleted_though_another_is_away(
    hybrid: Hybrid,
) -> None:
    await hybrid.cluster.put_peer(make_peer("squat"))
    hybrid.rack.go_away("on fire")
    with pytest.raises(BackendError, match="on fire"):
        await hybrid.cluster_agent.delete_peer("squat")
    assert (await hybrid.cluster.snapshot()).peers == ()


async def test_a_peer_that_cannot_be_read_is_found_for_its_name(hybrid: Hybrid) -> None:
    hybrid.rack.put_document("Peer bad", BAD_PEER)
    await hybrid.cluster_agent.delete_peer("bad")
    assert await hybrid.rack.snapshot() == Snapshot()


async def test_each_store_hears_what_is_said_of_its_own_objects(hybrid: Hybrid) -> None:
    phone, laptop = (
        Remark(object=f"Peer {name}", reason=Reason.REFUSED, message="no", origin=origin)
        for name, origin in (("phone", "kubernetes"), ("laptop", "etcd"))
    )
    remarks = Remarks(
        remarks=(laptop, phone),
        peers={"phone": PeerStanding(ready=False), "laptop": PeerStanding(ready=True)},
        handshakes={"phone": 1, "laptop": 2},
        origins={"phone": "kubernetes", "laptop": "etcd"},
    )
    await hybrid.rack_agent.remark(remarks)
    for store, name, remark in (
        (hybrid.cluster, "phone", phone),
        (hybrid.rack, "laptop", laptop),
    ):
        told = store.remarks
        assert told.remarks == (remark,)
        assert {*told.peers, *told.handshakes} == {name}


async def test_remarks_reach_one_store_though_another_is_away(hybrid: Hybrid) -> None:
    phone = Remark(object="Peer phone", reason=Reason.REFUSED, message="no", origin="kubernetes")
    hybrid.rack.go_away("on fire")
    with pytest.raises(BackendError, match="on fire"):
        await hybrid.rack_agent.remark(Remarks(remarks=(phone,)))
    assert hybrid.cluster.remarks.remarks == (phone,)


# Everybody comes to the same.

NAMES = st.sampled_from(["a", "b"])
STORES = st.sampled_from(ORDER)
SPECS = st.sampled_from([NodeSpec(), EAST, WEST])
PEERS = st.sampled_from([make_peer("p"), make_peer("p", "10.5.0.2/32"), make_peer("q")])
SETTINGS = st.sampled_from([PartialSettings(port=1), PartialSettings(port=2, mtu=1400)])
Stores = dict[str, MemoryBackend]


def put_node(kind: str, name: str, spec: NodeSpec, stores: Stores) -> None:
    stores[kind].put_node(name, spec)


def delete_node(kind: str, name: str, stores: Stores) -> None:
    stores[kind].delete_node(name)


def put_report(kind: str, name: str, last_seen: int, stores: Stores) -> None:
    stores[kind].put_report(make_report(name), last_seen=last_seen)


def put_peer(kind: str, peer: Peer, stores: Stores) -> None:
    stores[kind]._store_peer(peer)


def put_settings(kind: str, given: PartialSettings, stores: Stores) -> None:
    stores[kind].put_settings(given)


def go_away(kind: str, stores: Stores) -> None:
    stores[kind].go_away("gone")


def come_back(kind: str, stores: Stores) -> None:
    stores[kind].come_back()


STEPS = st.one_of(
    st.builds(partial, st.just(put_node), STORES, NAMES, SPECS),
    st.builds(partial, st.just(delete_node), STORES, NAMES),
    st.builds(partial, st.just(put_report), STORES, NAMES, st.integers(1, 3)),
    st.builds(partial, st.just(put_peer), STORES, PEERS),
    st.builds(partial, st.just(put_settings), STORES, SETTINGS),
    st.builds(partial, st.just(go_away), STORES),
    st.builds(partial, st.just(come_back), STORES),
)
TURNS = st.integers(0, 4)
"""How often each watch may take a step before the next thing happens."""


@settings(deadline=None, max_examples=150)
@given(steps=st.lists(st.tuples(STEPS, TURNS), max_size=25))
def test_in_whatever_order_the_watches_speak_all_agents_come_to_the_same_snapshot(
    steps: list[tuple[Callable[[Stores], None], int]],
) -> None:
    asyncio.run(_follow_steps(steps))


async def _follow_steps(steps: list[tuple[Callable[[Stores], None], int]]) -> None:
    stores = {kind: MemoryBackend() for kind in ORDER}
    orders = permutations(ORDER)
    agents = [JoinedBackend({kind: stores[kind] for kind in order}) for order in orders]
    followers = [Follower(agent) for agent in agents]
    first = [asyncio.create_task(follower.next()) for follower in followers]
    for step, turns in steps:
        step(stores)
        for _ in range(turns):
            await asyncio.sleep(0)
    for store in stores.values():
        store.come_back()
    parts = {kind: mark_part(await store.snapshot(), kind) for kind, store in stores.items()}
    last = join_parts(parts, home="")
    for follower, begun in zip(followers, first, strict=True):
        told = await begun
        if told != last or told.last_seen != last.last_seen:
            told = await follower.until(lambda s: (s, s.last_seen) == (last, last.last_seen))
    for agent in agents:
        await agent.close()


# The program.


async def test_several_backends_are_opened_as_one() -> None:
    config = BackendConfig(kind="file", others=("etcd",))
    backend = await open_backend(config)
    assert isinstance(backend, JoinedBackend)
    await backend.close()


async def test_a_configuration_error_of_one_of_several_backends_is_told() -> None:
    config = BackendConfig(kind="file", others=("etcd",), etcd=EtcdConfig(prefix=""))
    with pytest.raises(ConfigError, match="etcd-prefix"):
        await open_backend(config)
