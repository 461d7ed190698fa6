"""The Kubernetes backend, where the contract does not say it: on a real API server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kilo.backends.kubernetes.settings import make_config_map
from kilo.errors import BackendError
from kilo.mesh.model import NodeSpec, Snapshot
from tests.backends.following import Follower
from tests.backends.stores import Store, open_cluster
from tests.builders import make_key, make_peer, make_report
from tests.cluster.planes import (
    CONFIG_MAPS,
    NAMESPACE,
    NODES,
    PEERS,
    Cluster,
    share_plane,
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_cluster(tmp_path) as opened:
        yield opened


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(share_plane())


async def test_more_nodes_than_a_page_holds_are_all_listed_and_followed(
    store: Store, cluster: Cluster
) -> None:
    names = [f"n{number:03}" for number in range(130)]
    for name in names:
        cluster.put_node(name)
    assert [node.name for node in (await store.backend.snapshot()).nodes] == names
    follower = Follower(store.backend)
    first = await follower.next()
    assert isinstance(first, Snapshot)
    assert [node.name for node in first.nodes] == names
    cluster.delete_node("n064")
    await follower.until(lambda snapshot: len(snapshot.nodes) == 129)


async def test_a_heartbeat_leaves_every_node_the_very_same_value(store: Store) -> None:
    for name in ("a1", "b1"):
        store.operator.register(name)
        await store.backend.publish(make_report(name))
    follower = Follower(store.other)
    before = await follower.until(lambda snapshot: len(snapshot.last_seen) == 2)
    store.clock.seconds += 30
    await store.backend.publish(make_report("a1"))
    after = await follower.until(lambda snapshot: snapshot.last_seen != before.last_seen)
    assert after.nodes is before.nodes
    store.operator.put_node("b1", NodeSpec(location="lisbon"))
    changed = await follower.until(lambda snapshot: snapshot.nodes[1].spec.location == "lisbon")
    assert changed.nodes[0] is before.nodes[0]


async def test_what_others_change_in_a_node_is_no_news(store: Store, cluster: Cluster) -> None:
    store.operator.register("a1")
    follower = Follower(store.backend)
    await follower.next()
    cluster.patch(f"{NODES}/a1", {"metadata": {"labels": {"beta.example.com/rack": "7"}}})
    cluster.plane.call(
        "PATCH",
        f"{NODES}/a1/status",
        {"status": {"nodeInfo": {"kernelVersion": "6.1"}}},
        content_type="application/merge-patch+json",
    )
    cluster.put_node("b1")
    await follower.until(lambda snapshot: len(snapshot.nodes) == 2)
    assert len(follower.said) == 2


async def test_a_value_that_does_not_parse_is_named_with_its_node(
    store: Store, cluster: Cluster
) -> None:
    cluster.put_node("a1", {"force-endpoint": "nowhere", "last-seen": "soon"})
    snapshot = await store.backend.snapshot()
    assert [node.name for node in snapshot.nodes] == ["a1"]
    assert [str(problem).partition(":")[0] for problem in snapshot.problems] == ["Node a1"] * 2


async def test_publishing_for_a_node_that_is_not_registered_says_so(store: Store) -> None:
    with pytest.raises(BackendError, match=r"Node a1 is not registered .* --hostname"):
        await store.backend.publish(make_report("a1"))


async def test_putting_a_peer_again_replaces_its_spec_and_leaves_the_rest(
    store: Store, cluster: Cluster
) -> None:
    peer = replace(make_peer("squat", preshared=True), persistent_keepalive_seconds=10)
    await store.backend.put_peer(peer)
    cluster.patch(f"{PEERS}/squat", {"metadata": {"labels": {"owner": "tom"}}})
    await store.backend.put_peer(make_peer("squat", "10.5.0.2/32"))
    stored = cluster.plane.call("GET", f"{PEERS}/squat")
    assert stored["metadata"]["labels"] == {"owner": "tom"}
    assert "presharedKey" not in stored["spec"]
    assert stored["spec"]["allowedIPs"] == ["10.5.0.2/32"]
    assert (await store.backend.snapshot()).peers == (make_peer("squat", "10.5.0.2/32"),)


async def test_the_status_of_a_peer_is_nothing_of_the_mesh(store: Store, cluster: Cluster) -> None:
    cluster.put_peer("squat", publicKey=str(make_key("squat")), allowedIPs=["10.5.0.1/32"])
    follower = Follower(store.backend)
    first = await follower.until(lambda snapshot: bool(snapshot.peers))
    cluster.patch(f"{PEERS}/squat/status", {"status": {"conditions": []}})
    store.operator.register("a1")
    second = await follower.until(lambda snapshot: bool(snapshot.nodes))
    assert second.problems == ()
    assert second.peers[0] is first.peers[0]


async def test_settings_in_a_config_map_are_followed(store: Store, cluster: Cluster) -> None:
    follower = Follower(store.backend)
    await follower.next()
    store.operator.put_settings({"port": 51821})
    await follower.until(lambda snapshot: snapshot.settings == {"port": 51821})
    other = make_config_map({"port": 51822}, namespace=NAMESPACE)
    cluster.plane.call("POST", CONFIG_MAPS, other | {"metadata": {"name": "kilo-other"}})
    store.operator.delete_settings()
    await follower.until(lambda snapshot: snapshot.settings == {})
