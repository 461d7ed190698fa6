"""Nodes that no sane program writes: nothing crashes, and each bad value is named once."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from functools import partial

import pytest

from kilo.backends.kubernetes.backend import KubernetesBackend
from kilo.mesh.model import Snapshot
from tests.backends.following import Follower, texts
from tests.builders import make_report, networks
from tests.cluster.agents import open_agent, places
from tests.cluster.planes import PREFIX, Cluster

GARBAGE = {
    "force-endpoint": "10.0.0.1",
    "force-internal-ip": "10.0.0.1",
    "persistent-keepalive": "ten",
    "allowed-location-ips": "everywhere",
    "endpoint": "here",
    "internal-ip": "192.168.1.1/99",
    "key": "short",
    "last-seen": "yesterday",
    "wireguard-ip": "\x01\u202e",
    "discovered-endpoints": "{",
    "granularity": "half",
}
HUGE = "x" * 1_000_000


@pytest.fixture
async def agent(cluster: Cluster) -> AsyncIterator[KubernetesBackend]:
    """With the credentials of an agent."""
    async with open_agent(cluster.make_agent_kubeconfig()) as one:
        yield one


async def test_each_bad_value_is_one_problem_however_often_the_node_changes(
    cluster: Cluster, agent: KubernetesBackend
) -> None:
    cluster.put_node("bad", GARBAGE)
    cluster.put_node("good", {"location": "oregon"})
    follower = Follower(agent)
    first = await follower.until(lambda snapshot: len(snapshot.nodes) == 2)
    assert blamed(first) == Counter(dict.fromkeys(GARBAGE, 1))
    for number in range(3):
        cluster.annotate("bad", {"last-seen": f"day {number}"})
        cluster.annotate("good", {"location": f"place-{number}"})
        later = await follower.until(partial(is_at, f"place-{number}"))
        # The same again and no more: who prints what is new of each snapshot prints each once.
        assert blamed(later) == blamed(first)
        unchanged = {text for text in texts(first) if "last-seen" not in text}
        assert unchanged == {text for text in texts(later) if "last-seen" not in text}


def is_at(place: str, snapshot: Snapshot) -> bool:
    """Whether the good node is there."""
    return places(snapshot)["good"] == place


async def test_a_bad_node_keeps_its_place_and_the_others_theirs(
    cluster: Cluster, agent: KubernetesBackend
) -> None:
    cluster.put_node("bad", GARBAGE, pod_cidrs=("10.2.1.0/24",))
    cluster.put_node("good")
    await agent.publish(make_report("good"))
    bad, good = (await agent.snapshot()).nodes
    assert (bad.spec.pod_subnets, bad.report) == (networks("10.2.1.0/24"), None)
    assert good.report == make_report("good")


@pytest.mark.parametrize(
    "value", [HUGE, "[" * 1_000_000, "10.0.0.0/8," * 90_000], ids=["text", "brackets", "list"]
)
async def test_an_annotation_of_a_megabyte_is_read_and_named_in_a_line(
    cluster: Cluster, agent: KubernetesBackend, value: str
) -> None:
    cluster.put_node("good")
    follower = Follower(agent)
    await follower.until(lambda snapshot: list(places(snapshot)) == ["good"])
    named = {PREFIX + "discovered-endpoints": value, PREFIX + "location": "oregon"}
    cluster.write_past_server("huge", {"metadata": {"name": "huge", "annotations": named}})
    snapshot = await follower.until(lambda snapshot: len(snapshot.nodes) == 2)
    assert places(snapshot) == {"good": "", "huge": "oregon"}
    (text,) = texts(snapshot)
    assert "huge" in text
    assert "discovered-endpoints" in text
    assert len(text) < 300


def blamed(snapshot: Snapshot) -> Counter[str]:
    """How many problems there are with each annotation of the node ``bad``."""
    counter: Counter[str] = Counter()
    for problem in snapshot.problems:
        assert problem.object == "Node bad"
        assert len(str(problem)) < 300
        name = next(
            name for name in sorted(GARBAGE, key=len)[::-1] if f"{PREFIX}{name}" in problem.field
        )
        counter[name] += 1
    return counter
