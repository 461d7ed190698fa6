"""The API server or its etcd breaks and comes back; a control plane of this module's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from kilo.backends.kubernetes.backend import KubernetesBackend
from kilo.errors import BackendError
from kilo.lab.controlplane import ControlPlane
from kilo.mesh.model import PartialSettings, Snapshot
from tests.backends.following import Follower, names
from tests.builders import make_key, make_report
from tests.cluster.agents import ERROR_SECONDS, RETURN_SECONDS, open_agent, places, within
from tests.cluster.planes import NODES, Cluster, prepare
from tests.cluster.relay import Relay

SETTINGS = PartialSettings(port=51999)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane that may be broken, if it is mended again."""
    with ControlPlane(tmp_path_factory.mktemp("plane")) as one:
        prepare(one)
        yield one


@pytest.fixture
def own(plane: ControlPlane) -> Iterator[Cluster]:
    """That control plane, with one of each in it; running again at the end."""
    cluster = Cluster(plane)
    cluster.put_node("a1", {"location": "oregon", "leader": ""})
    cluster.put_peer("squat", publicKey=str(make_key("squat")), allowedIPs=["10.5.0.1/32"])
    cluster.put_settings(SETTINGS)
    yield cluster
    plane.thaw_apiserver()
    plane.thaw_etcd()
    plane.start()
    cluster.empty()


@pytest.fixture
async def agent(own: Cluster) -> AsyncIterator[KubernetesBackend]:
    """An agent of that control plane, whose node is a1."""
    async with open_agent(own.make_agent_kubeconfig()) as one:
        await one.publish(make_report("a1"))
        yield one


@pytest.fixture
async def follower(agent: KubernetesBackend) -> Follower:
    """Has heard of everything there is."""
    one = Follower(agent)
    await one.until(is_whole)
    one.said.clear()
    return one


def is_whole(snapshot: Snapshot) -> bool:
    """Whether it holds what is there when a test begins."""
    return (
        places(snapshot) == {"a1": "oregon"}
        and snapshot.nodes[0].report == make_report("a1")
        and names(snapshot) == ["squat"]
        and snapshot.settings == SETTINGS
        and snapshot.problems == ()
    )


async def comes_back(own: Cluster, follower: Follower) -> None:
    """The store is back: everything is there soon, nothing was ever missing, and changes are heard
    of again.
    """
    await within(RETURN_SECONDS, follower.until(is_whole))
    assert [said for said in find_snapshots(follower) if not is_whole(said)] == []
    own.annotate("a1", {"location": "frankfurt"})
    await within(RETURN_SECONDS, follower.until(lambda s: places(s) == {"a1": "frankfurt"}))


def find_snapshots(follower: Follower) -> list[Snapshot]:
    """Those that it was told."""
    return [said for said in follower.said if isinstance(said, Snapshot)]


async def test_a_killed_server_is_told_and_all_is_there_soon_after_its_return(
    own: Cluster, follower: Follower
) -> None:
    own.plane.kill_apiserver()
    await within(ERROR_SECONDS, follower.until_error())
    await asyncio.to_thread(own.plane.start_apiserver)
    await comes_back(own, follower)


async def test_a_server_killed_again_and_again_never_shows_less_than_there_is(
    own: Cluster, agent: KubernetesBackend, follower: Follower
) -> None:
    async with asyncio.TaskGroup() as tasks:
        moved = tasks.create_task(follower.until(lambda s: places(s) == {"a1": "frankfurt"}))
        # One that has just started may serve no custom resources yet, and know no roles.
        for _ in range(3):
            own.plane.kill_apiserver()
            await asyncio.to_thread(own.plane.start_apiserver)
            await agent.publish(make_report("a1"))
        own.annotate("a1", {"location": "frankfurt"})
        await within(RETURN_SECONDS, moved)
    *before, _ = find_snapshots(follower)
    assert [said for said in before if not is_whole(said)] == []


async def test_a_frozen_server_is_noticed_though_its_connections_stay(
    own: Cluster, agent: KubernetesBackend, follower: Follower
) -> None:
    own.plane.freeze_apiserver()
    await fails(agent, follower)
    own.plane.thaw_apiserver()
    await comes_back(own, follower)


@pytest.mark.parametrize("fault", [ControlPlane.kill_etcd, ControlPlane.freeze_etcd])
async def test_a_server_that_lives_without_its_etcd_is_noticed_and_loses_nothing(
    own: Cluster,
    agent: KubernetesBackend,
    follower: Follower,
    fault: Callable[[ControlPlane], None],
) -> None:
    fault(own.plane)
    await fails(agent, follower)
    own.plane.thaw_etcd()
    # The API server too, should it have ended meanwhile.
    await asyncio.to_thread(own.plane.start)
    await comes_back(own, follower)


async def fails(agent: KubernetesBackend, follower: Follower) -> None:
    """The store is away: the watch says so, and so does whoever writes."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(within(ERROR_SECONDS, follower.until_error()))
        with pytest.raises(BackendError):
            await within(ERROR_SECONDS, agent.publish(make_report("a1")))


async def test_a_store_put_back_to_an_older_state_is_what_counts(
    own: Cluster, agent: KubernetesBackend, follower: Follower
) -> None:
    backup = await asyncio.to_thread(own.plane.backup)
    # So many writes that the restored store's revisions are behind for long.
    for number in range(100):
        own.annotate("a1", {"location": f"place-{number}"})
    own.put_node("a2")
    await follower.until(lambda snapshot: places(snapshot) == {"a1": "place-99", "a2": ""})
    await asyncio.to_thread(own.plane.restore, backup)
    await within(RETURN_SECONDS, follower.until(is_whole))
    own.annotate("a1", {"location": "frankfurt"})
    await within(RETURN_SECONDS, follower.until(lambda s: places(s) == {"a1": "frankfurt"}))
    assert places(await agent.snapshot()) == {"a1": "frankfurt"}


async def test_a_store_put_back_unseen_that_has_overtaken_what_was_seen_is_what_counts(
    own: Cluster,
) -> None:
    async with reach_by_relay(own) as (relay, follower):
        backup = await asyncio.to_thread(own.plane.backup)
        own.put_node("a2")
        own.annotate("a1", {"location": "frankfurt"})
        await follower.until(lambda s: places(s) == {"a1": "frankfurt", "a2": ""})
        relay.refuse()
        await within(ERROR_SECONDS, follower.until_error())
        await asyncio.to_thread(own.plane.restore, backup)
        # Revisions go on beyond those that were seen: to resume there is possible, and wrong.
        own.put_node("a3")
        for number in range(50):
            own.annotate("a3", {"location": f"place-{number}"})
        relay.resume()
        wanted = {"a1": "oregon", "a3": "place-49"}
        await within(RETURN_SECONDS, follower.until(lambda s: places(s) == wanted))


async def test_a_watch_whose_history_was_compacted_away_begins_anew(own: Cluster) -> None:
    own.put_node("a2")
    async with reach_by_relay(own) as (relay, follower):
        seen = own.plane.call("GET", f"{NODES}?limit=1")["metadata"]["resourceVersion"]
        relay.refuse()
        await within(ERROR_SECONDS, follower.until_error())
        own.delete_node("a2")
        own.annotate("a1", {"location": "frankfurt"})
        # A server that has just started remembers no change; nor does etcd, compacted.
        own.plane.kill_apiserver()
        own.plane.compact()
        await asyncio.to_thread(own.plane.start_apiserver)
        gone = own.plane.call("GET", f"{NODES}?watch=true&resourceVersion={seen}&timeoutSeconds=9")
        assert (gone["type"], gone["object"]["code"]) == ("ERROR", 410)
        relay.resume()
        await within(RETURN_SECONDS, follower.until(lambda s: places(s) == {"a1": "frankfurt"}))


@contextlib.asynccontextmanager
async def reach_by_relay(own: Cluster) -> AsyncIterator[tuple[Relay, Follower]]:
    """An agent that need not see all that happens to the server, following."""
    with Relay(port=own.plane.files.port) as relay:
        async with open_agent(own.make_agent_kubeconfig(relay)) as agent:
            follower = Follower(agent)
            await follower.until(lambda snapshot: "a1" in places(snapshot))
            yield relay, follower
