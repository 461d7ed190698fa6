"""The Backend contract, tried on every store in ``stores.py``."""

from __future__ import annotations

import asyncio

import pytest

from kilo.errors import BackendError
from kilo.mesh.keys import WITHHELD
from kilo.mesh.model import (
    Endpoint,
    Granularity,
    NodeSpec,
    PartialSettings,
    Peer,
    Snapshot,
)
from tests.backends.following import LIMIT_SECONDS, Follower, names, unmarked
from tests.backends.stores import NOW, Store
from tests.builders import interfaces, make_key, make_peer, make_report, networks

OREGON = NodeSpec(location="oregon", pod_subnets=networks("10.2.1.0/24"))


async def test_an_empty_store_is_an_empty_snapshot(store: Store) -> None:
    assert await store.backend.snapshot() == Snapshot()
    assert await Follower(store.backend).next() == Snapshot()


async def test_a_watch_begins_with_what_is_there_and_goes_on_with_each_change(store: Store) -> None:
    store.operator.put_node("a1", OREGON)
    follower = Follower(store.backend)
    first = await follower.next()
    assert isinstance(first, Snapshot)
    assert [(node.name, node.spec) for node in first.nodes] == [("a1", OREGON)]
    store.operator.put_node("b1", NodeSpec(location="frankfurt"))
    await follower.until(lambda snapshot: [node.name for node in snapshot.nodes] == ["a1", "b1"])
    store.operator.delete_node("a1")
    await follower.until(lambda snapshot: [node.name for node in snapshot.nodes] == ["b1"])


async def test_the_last_of_many_changes_is_always_told(store: Store) -> None:
    follower = Follower(store.backend)
    await follower.next()
    for number in range(50):
        store.operator.put_node("a1", NodeSpec(location=f"place-{number}"))
    last = NodeSpec(location="place-49")
    await follower.until(lambda snapshot: [node.spec for node in snapshot.nodes] == [last])


async def test_a_report_joins_the_declaration_of_its_node_and_is_stamped(store: Store) -> None:
    store.operator.put_node("a1", OREGON)
    report = make_report("a1")
    await store.backend.publish(report)
    snapshot = await store.backend.snapshot()
    assert [(node.spec, node.report) for node in snapshot.nodes] == [(OREGON, report)]
    assert snapshot.last_seen == {"a1": NOW}
    assert snapshot.problems == ()


async def test_a_node_that_only_reports_exists_too(store: Store) -> None:
    store.operator.register("a1")
    await store.backend.publish(make_report("a1"))
    assert [node.name for node in (await store.backend.snapshot()).nodes] == ["a1"]


async def test_another_agent_sees_what_one_publishes(store: Store) -> None:
    report = make_report("a1")
    follower = Follower(store.other)
    await follower.next()
    store.operator.register("a1")
    await store.backend.publish(report)
    await follower.until(lambda snapshot: [node.report for node in snapshot.nodes] == [report])


async def test_publishing_again_replaces_the_report(store: Store) -> None:
    store.operator.register("a1")
    await store.backend.publish(make_report("a1"))
    moved = make_report("a1", endpoint="203.0.113.9:51820")
    await store.backend.publish(moved)
    assert [node.report for node in (await store.backend.snapshot()).nodes] == [moved]


async def test_a_heartbeat_is_told_though_the_snapshot_is_equal(store: Store) -> None:
    store.operator.register("a1")
    await store.backend.publish(make_report("a1"))
    follower = Follower(store.backend)
    first = await follower.until(lambda snapshot: bool(snapshot.nodes))
    store.clock.seconds += 30
    await store.backend.publish(make_report("a1"))
    second = await follower.until(lambda snapshot: snapshot.last_seen == {"a1": NOW + 30})
    assert second == first
    assert first.last_seen == {"a1": NOW}


async def test_withdrawing_takes_the_report_back_and_leaves_the_declaration(store: Store) -> None:
    store.operator.put_node("a1", OREGON)
    await store.backend.publish(make_report("a1"))
    await store.backend.withdraw("a1")
    snapshot = await store.backend.snapshot()
    assert [(node.spec, node.report) for node in snapshot.nodes] == [(OREGON, None)]
    assert snapshot.last_seen == {}


async def test_withdrawing_what_is_not_there_is_no_error(store: Store) -> None:
    await store.backend.withdraw("a1")
    assert await store.backend.snapshot() == Snapshot()


@pytest.mark.parametrize("preshared", [False, True], ids=["no preshared key", "preshared key"])
async def test_a_peer_comes_back_as_it_was_put(store: Store, *, preshared: bool) -> None:
    peer = make_peer("squat", "10.5.0.1/32", "fd00:5::/64", preshared=preshared)
    await store.backend.put_peer(peer)
    assert unmarked(await store.backend.snapshot()) == (peer,)


async def test_putting_a_peer_of_the_same_name_replaces_it(store: Store) -> None:
    await store.backend.put_peer(make_peer("squat"))
    changed = make_peer("squat", "10.5.0.2/32")
    await store.backend.put_peer(changed)
    snapshot = await store.backend.snapshot()
    assert unmarked(snapshot) == (changed,)
    assert snapshot.problems == ()


async def test_the_last_peer_can_be_deleted_and_deleting_it_again_is_no_error(store: Store) -> None:
    await store.backend.put_peer(make_peer("squat"))
    await store.backend.delete_peer("squat")
    await store.backend.delete_peer("squat")
    assert await store.backend.snapshot() == Snapshot()


async def test_nodes_and_peers_are_sorted_by_name(store: Store) -> None:
    for name in ("c", "a", "b"):
        store.operator.put_node(name, NodeSpec())
        await store.backend.put_peer(make_peer(name))
    snapshot = await store.backend.snapshot()
    assert [node.name for node in snapshot.nodes] == ["a", "b", "c"]
    assert names(snapshot) == ["a", "b", "c"]


async def test_settings_hold_what_was_set_and_nothing_else(store: Store) -> None:
    settings = PartialSettings(granularity=Granularity.CROSS, mtu=None)
    store.operator.put_settings(settings)
    store.operator.put_node("a1", NodeSpec())
    assert (await store.backend.snapshot()).settings == settings
    store.operator.delete_settings()
    assert (await store.backend.snapshot()).settings == PartialSettings()


@pytest.mark.parametrize(
    "spec",
    [
        NodeSpec(),
        NodeSpec(
            location="oregon",
            endpoint=Endpoint.parse("[2001:db8::1]:51820"),
            internal_ips=interfaces("192.168.0.1/24", "fd00:1::1/64"),
            leader=True,
            persistent_keepalive_seconds=10,
            allowed_location_ips=networks("192.168.0.50/32", "fd00:1::50/128"),
            pod_subnets=networks("10.2.1.0/24", "fd00:2:1::/64"),
        ),
        NodeSpec(internal_ips=()),
    ],
    ids=["nothing", "all that every store has room for", "no internal IP"],
)
async def test_what_is_declared_of_a_node_comes_back(store: Store, spec: NodeSpec) -> None:
    store.operator.register("a1")
    await store.backend.declare_node("a1", spec)
    snapshot = await store.backend.snapshot()
    assert [(node.name, node.spec) for node in snapshot.nodes] == [("a1", spec)]
    assert snapshot.problems == ()


async def test_a_declaration_takes_the_place_of_the_one_before_and_leaves_the_report(
    store: Store,
) -> None:
    store.operator.register("a1")
    await store.backend.publish(make_report("a1"))
    await store.backend.declare_node("a1", NodeSpec(leader=True, pod_subnets=OREGON.pod_subnets))
    await store.backend.declare_node("a1", NodeSpec(location="frankfurt"))
    (node,) = (await store.backend.snapshot()).nodes
    assert node.spec == NodeSpec(location="frankfurt")
    assert node.report == make_report("a1")


async def test_another_sees_what_an_operator_declares_and_forgets(store: Store) -> None:
    store.operator.put_node("b1", NodeSpec(location="frankfurt"))
    follower = Follower(store.other)
    await follower.next()
    store.operator.register("a1")
    await store.backend.declare_node("a1", OREGON)
    await follower.until(lambda snapshot: OREGON in [node.spec for node in snapshot.nodes])
    await store.backend.forget_node("a1")
    await follower.until(lambda snapshot: OREGON not in [node.spec for node in snapshot.nodes])


async def test_of_a_forgotten_node_neither_declaration_nor_report_is_left(store: Store) -> None:
    store.operator.register("a1")
    await store.backend.declare_node("a1", OREGON)
    await store.backend.publish(make_report("a1"))
    await store.backend.forget_node("a1")
    snapshot = await store.backend.snapshot()
    # Whoever registers the machines of a store knows it all the same.
    assert [node for node in snapshot.nodes if (node.spec, node.report) != (NodeSpec(), None)] == []
    assert snapshot.last_seen == {}


async def test_a_node_that_is_forgotten_reports_itself_anew(store: Store) -> None:
    store.operator.register("a1")
    await store.backend.publish(make_report("a1"))
    await store.backend.forget_node("a1")
    await store.backend.publish(make_report("a1"))
    assert [node.report for node in (await store.backend.snapshot()).nodes] == [make_report("a1")]


async def test_forgetting_what_is_not_there_is_no_error(store: Store) -> None:
    await store.backend.forget_node("a1")
    await store.backend.forget_settings()
    assert await store.backend.snapshot() == Snapshot()


async def test_settings_that_are_declared_take_the_place_of_those_before(store: Store) -> None:
    store.operator.put_settings(PartialSettings(granularity=Granularity.CROSS, port=51821))
    settings = PartialSettings(mtu=None, subnets=networks("10.4.0.0/16", "fd00:4::/64"))
    await store.backend.declare_settings(settings)
    snapshot = await store.backend.snapshot()
    assert snapshot.settings == settings
    assert snapshot.problems == ()


async def test_settings_are_forgotten(store: Store) -> None:
    await store.backend.declare_settings(PartialSettings(port=51821))
    assert (await store.backend.snapshot()).settings == PartialSettings(port=51821)
    await store.backend.forget_settings()
    assert await store.backend.snapshot() == Snapshot()


async def test_a_bad_object_is_a_problem_and_stops_no_other(store: Store) -> None:
    await store.backend.put_peer(make_peer("good"))
    bad = {
        "apiVersion": "kilo.squat.ai/v1alpha1",
        "kind": "Peer",
        "metadata": {"name": "bad"},
        "spec": {"publicKey": str(make_key("bad")), "allowedIPs": ["10.5.0.2"]},
    }
    store.operator.put_document("bad", bad)
    snapshot = await store.backend.snapshot()
    assert names(snapshot) == ["good"]
    (problem,) = snapshot.problems
    assert (problem.object, problem.field) == ("Peer bad", "spec.allowedIPs[0]")
    assert problem.value == "10.5.0.2"
    store.operator.delete_document("bad")
    assert (await store.backend.snapshot()).problems == ()


async def test_a_store_that_goes_away_is_told_once_and_its_return_even_if_unchanged(
    store: Store,
) -> None:
    await store.backend.put_peer(make_peer("squat"))
    follower = Follower(store.backend)
    before = await follower.next()
    store.operator.go_away()
    assert "\n" not in str(await follower.until_error())
    store.operator.come_back()
    assert await follower.next() == before


async def test_the_watch_hears_changes_after_the_store_was_away(store: Store) -> None:
    await store.backend.put_peer(make_peer("squat"))
    follower = Follower(store.backend)
    await follower.next()
    store.operator.go_away()
    await follower.until_error()
    store.operator.come_back()
    await follower.until(lambda snapshot: names(snapshot) == ["squat"])
    await store.backend.put_peer(make_peer("tom", "10.5.0.2/32"))
    await follower.until(lambda snapshot: names(snapshot) == ["squat", "tom"])


async def test_every_call_says_that_the_store_is_away(store: Store) -> None:
    await store.backend.put_peer(make_peer("squat"))
    store.operator.go_away()
    calls = (
        store.backend.snapshot,
        lambda: store.backend.publish(make_report("a1")),
        lambda: store.backend.withdraw("a1"),
        lambda: store.backend.put_peer(make_peer("squat")),
        lambda: store.backend.delete_peer("squat"),
        lambda: store.backend.declare_node("a1", OREGON),
        lambda: store.backend.forget_node("a1"),
        lambda: store.backend.declare_settings(PartialSettings(port=51821)),
        store.backend.forget_settings,
    )
    for call in calls:
        with pytest.raises(BackendError):
            await call()
    store.operator.come_back()
    assert names(await store.backend.snapshot()) == ["squat"]


@pytest.mark.parametrize("name", ["../escape", "", "Big", "a/b", "-a", "a" * 254, "a\n"])
async def test_a_name_that_is_no_object_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(BackendError, match=r"metadata\.name"):
        await store.backend.put_peer(make_peer(name))
    with pytest.raises(BackendError, match=r"metadata\.name"):
        await store.backend.publish(make_report(name))
    with pytest.raises(BackendError, match=r"metadata\.name"):
        await store.backend.declare_node(name, OREGON)


async def test_a_withheld_preshared_key_is_never_written(store: Store) -> None:
    peer = Peer(
        name="squat",
        public_key=make_key("squat"),
        allowed_ips=networks("10.5.0.1/32"),
        preshared_key=WITHHELD,
    )
    with pytest.raises(BackendError, match="withheld"):
        await store.backend.put_peer(peer)


async def test_closing_ends_every_watch_and_may_be_done_twice(store: Store) -> None:
    followers = [Follower(store.backend), Follower(store.backend)]
    for follower in followers:
        await follower.next()
    async with asyncio.timeout(LIMIT_SECONDS), asyncio.TaskGroup() as tasks:
        for follower in followers:
            tasks.create_task(follower.ends())
        await store.backend.close()
        await store.backend.close()
    with pytest.raises(BackendError, match="closed"):
        await store.backend.snapshot()


async def test_many_calls_at_once_all_arrive(store: Store) -> None:
    for number in range(20):
        store.operator.register(f"n{number:02}")
    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(store.backend.put_peer(make_peer(f"p{number:02}", "10.5.0.0/24")))
            tasks.create_task(store.backend.publish(make_report(f"n{number:02}")))
    snapshot = await store.backend.snapshot()
    assert (len(snapshot.peers), len(snapshot.nodes)) == (20, 20)
