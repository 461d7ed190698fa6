"""From an agent's pass to what ``kubectl describe`` shows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kilo.backends.kubernetes.backend import KubernetesBackend
from kilo.backends.kubernetes.client import Access, Client
from tests.builders import make_key
from tests.cluster.planes import PEERS, Cluster
from tests.engine.world import World, running

LIMIT_SECONDS = 120.0
"""Looking takes a program, and the agent waits for it meanwhile."""


@pytest.fixture
async def world(tmp_path: Path, cluster: Cluster) -> AsyncIterator[World]:
    """The agent of the one Node there is, with the roles that we ship."""
    cluster.put_node("a", pod_cidrs=("10.2.1.0/24",))
    store = KubernetesBackend(Client(Access(kubeconfig=str(cluster.make_agent_kubeconfig()))))
    yield World(path=tmp_path, store=store)
    await store.close()


def put_thief(cluster: Cluster, *allowed_ips: str) -> None:
    peer = {
        "apiVersion": "kilo.squat.ai/v1alpha1",
        "kind": "Peer",
        "metadata": {"name": "thief"},
        "spec": {"publicKey": str(make_key("thief")), "allowedIPs": list(allowed_ips)},
    }
    cluster.plane.apply(json.dumps(peer))


def judge_thief(cluster: Cluster) -> tuple[str, str]:
    """Status and reason of its condition; empty while there is none."""
    status = cluster.plane.call("GET", f"{PEERS}/thief").get("status") or {}
    conditions = status.get("conditions") or [{"status": "", "reason": ""}]
    return conditions[0]["status"], conditions[0]["reason"]


async def test_a_peer_is_told_what_it_may_not_have_and_then_that_it_may(
    world: World, cluster: Cluster
) -> None:
    put_thief(cluster, "10.2.1.0/25")
    async with running(world):
        await eventually(world, lambda: judge_thief(cluster) == ("False", "Refused"))
        await eventually(world, lambda: _says(cluster, "lies inside 10.2.1.0/24 of Node a"))
        put_thief(cluster, "10.2.1.0/25", "10.5.0.1/32")
        await eventually(world, lambda: judge_thief(cluster) == ("True", "PartlyRefused"))
        put_thief(cluster, "10.5.0.1/32")
        await eventually(world, lambda: judge_thief(cluster) == ("True", "Accepted"))


async def test_a_node_is_told_which_of_its_annotations_does_not_parse(
    world: World, cluster: Cluster
) -> None:
    cluster.annotate("a", {"persistent-keepalive": "often"})
    async with running(world):
        await world.eventually(
            lambda: "'often' is not a whole number" in _describe(cluster, "node/a")
        )


async def eventually(world: World, holds: Callable[[], object]) -> None:
    await world.eventually(holds, seconds=LIMIT_SECONDS)


def _says(cluster: Cluster, text: str) -> bool:
    return text in _describe(cluster, "peer/thief").partition("Events:")[2]


def _describe(cluster: Cluster, what: str) -> str:
    return cluster.plane.kubectl("describe", what)
