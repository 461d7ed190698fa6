"""The way between an agent and a healthy API server breaks; the relay breaks it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest

from kilo.backends.kubernetes.backend import KubernetesBackend
from kilo.backends.kubernetes.sources import PAGE
from kilo.errors import BackendError
from kilo.mesh.model import Snapshot
from tests.backends.following import Follower, names
from tests.builders import make_key, make_report
from tests.cluster.agents import (
    ERROR_SECONDS,
    RETURN_SECONDS,
    Request,
    Requests,
    open_agent,
    places,
    within,
)
from tests.cluster.planes import ACCOUNT_USER, Cluster
from tests.cluster.relay import Relay

MANY_NODES = 80
"""So many that to list them all is dear, and so done at leisure."""


@pytest.fixture
async def agent(cluster: Cluster, relay: Relay) -> AsyncIterator[KubernetesBackend]:
    """An agent that speaks through the relay."""
    async with open_agent(cluster.make_agent_kubeconfig(relay)) as one:
        yield one


@pytest.mark.parametrize("fault", [Relay.refuse, Relay.freeze])
async def test_a_broken_way_is_told_and_what_changed_meanwhile_is_seen_after_it(
    cluster: Cluster, relay: Relay, agent: KubernetesBackend, fault: Callable[[Relay], None]
) -> None:
    cluster.put_node("a1", {"location": "oregon"})
    cluster.put_node("a2")
    cluster.put_peer("squat", publicKey=str(make_key("squat")), allowedIPs=["10.5.0.1/32"])
    follower = Follower(agent)
    await follower.until(lambda snapshot: len(snapshot.nodes) == 2 and names(snapshot) == ["squat"])
    fault(relay)
    error = await within(ERROR_SECONDS, follower.until_error())
    assert relay.server in str(error)
    cluster.annotate("a1", {"location": "frankfurt"})
    cluster.delete_node("a2")
    cluster.plane.call("DELETE", "/apis/kilo.squat.ai/v1alpha1/peers/squat")
    relay.resume()
    wanted = {"a1": "frankfurt"}
    done = follower.until(lambda snapshot: places(snapshot) == wanted and not snapshot.peers)
    await within(RETURN_SECONDS, done)


async def test_a_watch_cut_every_second_misses_nothing_and_lists_not_each_time(
    cluster: Cluster, relay: Relay, agent: KubernetesBackend
) -> None:
    cuts = 15
    for number in range(MANY_NODES):
        cluster.put_node(f"n{number}")
    follower = Follower(agent)
    await follower.until(lambda snapshot: len(snapshot.nodes) == MANY_NODES)
    requests = Requests(cluster.plane, ACCOUNT_USER)
    async with asyncio.TaskGroup() as tasks:
        heard = tasks.create_task(
            follower.until(
                lambda snapshot: (
                    places(snapshot)["n0"] == "the end"
                    and len(snapshot.nodes) == MANY_NODES + 1
                    and f"late{cuts - 1}" in places(snapshot)
                )
            )
        )
        for number in range(cuts):
            relay.cut()
            cluster.annotate("n0", {"location": f"place-{number}"})
            cluster.put_node(f"late{number}")
            if number:
                cluster.delete_node(f"late{number - 1}")
            await asyncio.sleep(1.0)  # the fault itself: once a second
        cluster.annotate("n0", {"location": "the end"})
        last = await within(RETURN_SECONDS, heard)
    assert last == await agent.snapshot()
    told = {places(said)["n0"] for said in follower.said if isinstance(said, Snapshot)}
    assert len(told) > cuts / 2
    assert len(find_whole_lists(requests)) < cuts / 2


def find_whole_lists(requests: Requests) -> list[Request]:
    """Those of all nodes; an agent also reads a few, to see whether the store answers."""
    lists = [one for one in requests.read() if (one.verb, one.resource) == ("list", "nodes")]
    return [one for one in lists if f"limit={PAGE}" in one.path.split("?")[1].split("&")]


async def test_an_agent_that_cannot_be_heard_says_so_and_is_heard_afterwards(
    cluster: Cluster, relay: Relay, agent: KubernetesBackend
) -> None:
    cluster.put_node("a1")
    await agent.publish(make_report("a1"))
    relay.refuse()
    with pytest.raises(BackendError, match=relay.server):
        await within(ERROR_SECONDS, agent.publish(make_report("a1", endpoint="203.0.113.1:51820")))
    relay.resume()
    moved = make_report("a1", endpoint="203.0.113.9:51820")
    await within(RETURN_SECONDS, agent.publish(moved))
    assert [node.report for node in (await agent.snapshot()).nodes] == [moved]


async def test_many_agents_do_not_come_back_all_at_once(cluster: Cluster, relay: Relay) -> None:
    agents = 20
    for number in range(MANY_NODES):
        cluster.put_node(f"n{number}")
    kubeconfig = cluster.make_agent_kubeconfig(relay)
    async with contextlib.AsyncExitStack() as stack:
        followers = [
            Follower(await stack.enter_async_context(open_agent(kubeconfig))) for _ in range(agents)
        ]
        for follower in followers:
            await follower.until(lambda snapshot: len(snapshot.nodes) == MANY_NODES)
        relay.refuse()
        for follower in followers:
            await within(ERROR_SECONDS, follower.until_error())
        requests = Requests(cluster.plane, ACCOUNT_USER)
        cluster.annotate("n0", {"location": "oregon"})
        relay.resume()
        async with asyncio.TaskGroup() as tasks:
            for follower in followers:
                back = follower.until(lambda snapshot: places(snapshot)["n0"] == "oregon")
                tasks.create_task(within(RETURN_SECONDS, back))
        assert len(find_whole_lists(requests)) < agents * 3 / 4
        first, *_, last = sorted(one.at for one in requests.read())
        assert last - first > timedelta(seconds=0.3)
