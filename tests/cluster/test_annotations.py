"""What stands on Node objects, written and read by agents of both kinds, through a real server."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kilo.backends.kubernetes.backend import KubernetesBackend
from kilo.errors import BackendError
from kilo.mesh.model import Endpoint, Granularity, Node, NodeReport, NodeSpec
from tests.builders import interfaces, make_key, make_report, networks
from tests.cluster.agents import open_agent
from tests.cluster.planes import NODES, PREFIX, Cluster

NOW = 1_700_000_000
DEVICE = make_key("device")
KILO_LEADER = {
    "cni-compatibility-ip": "",
    "discovered-endpoints": json.dumps(
        {str(DEVICE): {"IP": "203.0.113.7", "Port": 4500, "Zone": ""}}, separators=(",", ":")
    ),
    "endpoint": "198.51.100.11:51820",
    "force-endpoint": "oregon.example.com:51820",
    "granularity": "location",
    "internal-ip": "192.168.1.11/24",
    "key": str(make_key("a1")),
    "last-seen": str(NOW),
    "leader": "",
    "persistent-keepalive": "25",
    "wireguard-ip": "10.4.0.1/16",
}
"""A leader behind a NAT, as Kilo's agent and its operator leave the node."""
KILO_FOLLOWER = {
    "cni-compatibility-ip": "",
    "discovered-endpoints": "null",
    "endpoint": "[2001:db8::12]:51820",
    "granularity": "location",
    "internal-ip": "",
    "key": str(make_key("a2")),
    "last-seen": str(NOW),
    "location": "frankfurt",
    "wireguard-ip": "",
}
"""A node without internal address that leads nothing."""


@pytest.fixture
async def agent(cluster: Cluster) -> AsyncIterator[KubernetesBackend]:
    """With the credentials of an agent, its clock at NOW."""
    async with open_agent(cluster.make_agent_kubeconfig(), wall_clock=lambda: float(NOW)) as one:
        yield one


async def test_nodes_as_kilos_own_agents_write_them_are_read(
    cluster: Cluster, agent: KubernetesBackend
) -> None:
    labels = {"topology.kubernetes.io/region": "oregon"}
    cluster.put_node("a1", KILO_LEADER, labels=labels, pod_cidrs=("10.2.1.0/24",))
    cluster.put_node("a2", KILO_FOLLOWER, labels=labels, pod_cidrs=("10.2.2.0/24",))
    snapshot = await agent.snapshot()
    assert snapshot.problems == ()
    assert snapshot.last_seen == {"a1": NOW, "a2": NOW}
    assert snapshot.nodes == (
        Node(
            name="a1",
            spec=NodeSpec(
                location="oregon",
                endpoint=Endpoint(host="oregon.example.com", port=51820),
                leader=True,
                persistent_keepalive_seconds=25,
                pod_subnets=networks("10.2.1.0/24"),
            ),
            report=NodeReport(
                name="a1",
                public_key=make_key("a1"),
                endpoint=Endpoint(host="198.51.100.11", port=51820),
                internal_ips=interfaces("192.168.1.11/24"),
                wireguard_ips=interfaces("10.4.0.1/16"),
                discovered_endpoints=((DEVICE, Endpoint(host="203.0.113.7", port=4500)),),
                granularity=Granularity.LOCATION,
            ),
        ),
        Node(
            name="a2",
            spec=NodeSpec(location="frankfurt", pod_subnets=networks("10.2.2.0/24")),
            report=NodeReport(
                name="a2",
                public_key=make_key("a2"),
                endpoint=Endpoint(host="2001:db8::12", port=51820),
                granularity=Granularity.LOCATION,
            ),
        ),
    )


async def test_a_node_of_two_families_has_two_pod_subnets(
    cluster: Cluster, agent: KubernetesBackend
) -> None:
    both = ["10.2.1.0/24", "fd00:a:0:1::/64"]
    # Servers before 1.23 keep the second one only if told to.
    spec = {"podCIDR": both[0], "podCIDRs": both}
    cluster.write_past_server("a1", {"metadata": {"name": "a1"}, "spec": spec})
    assert [node.pod_subnets for node in (await agent.snapshot()).nodes] == [networks(*both)]


async def test_what_is_published_has_the_names_and_formats_of_kilos_annotations(
    cluster: Cluster, agent: KubernetesBackend
) -> None:
    cluster.put_node("a1")
    await agent.publish(
        NodeReport(
            name="a1",
            public_key=make_key("a1"),
            endpoint=Endpoint(host="198.51.100.11", port=51820),
            internal_ips=interfaces("192.168.1.11/24"),
            wireguard_ips=interfaces("10.4.0.1/16"),
            discovered_endpoints=((DEVICE, Endpoint(host="203.0.113.7", port=4500)),),
            granularity=Granularity.LOCATION,
        )
    )
    written = list_own(cluster.read_node("a1"))
    discovered = written.pop("discovered-endpoints")
    assert json.loads(discovered) == {str(DEVICE): {"IP": "203.0.113.7", "Port": 4500, "Zone": ""}}
    assert written == {
        "cni-compatibility-ip": "",
        "endpoint": "198.51.100.11:51820",
        "granularity": "location",
        "internal-ip": "192.168.1.11/24",
        "key": str(make_key("a1")),
        "last-seen": str(NOW),
        "wireguard-ip": "10.4.0.1/16",
    }


async def test_a_node_that_leads_nothing_and_has_no_internal_address_says_so(
    cluster: Cluster, agent: KubernetesBackend
) -> None:
    cluster.put_node("a1")
    await agent.publish(make_report("a1", endpoint="[2001:db8::12]:51820", internal_ips=()))
    written = list_own(cluster.read_node("a1"))
    assert written["internal-ip"] == written["wireguard-ip"] == ""
    assert written["endpoint"] == "[2001:db8::12]:51820"
    assert re.fullmatch(r"\{\}|null|", written["discovered-endpoints"])


async def test_publishing_and_withdrawing_touch_nothing_of_others(
    cluster: Cluster, agent: KubernetesBackend
) -> None:
    declared = {"location": "oregon", "leader": "false", "force-endpoint": "198.51.100.9:51820"}
    cluster.put_node("a1", declared, labels={"rack": "r7"})
    foreign = {"flannel.alpha.coreos.com/backend-type": "vxlan", "kilo.squat.aims/key": "x"}
    cluster.patch(f"{NODES}/a1", {"metadata": {"annotations": foreign}})
    cluster.patch(f"{NODES}/a1/status", {"status": {"capacity": {"pods": "110"}}})
    before = cluster.read_node("a1")
    await agent.publish(make_report("a1"))
    published = cluster.read_node("a1")
    assert strip_own(published, keep=declared) == strip_own(before, keep=declared)
    await agent.withdraw("a1")
    withdrawn = cluster.read_node("a1")
    assert strip_own(withdrawn, keep=()) == strip_own(before, keep=())
    assert list_own(withdrawn) == declared


async def test_withdrawing_goes_on_where_an_annotation_is_missing_already(
    cluster: Cluster, agent: KubernetesBackend
) -> None:
    cluster.put_node("a1", {"location": "oregon"})
    await agent.publish(make_report("a1"))
    cluster.annotate("a1", {"endpoint": None, "wireguard-ip": None})
    await agent.withdraw("a1")
    await agent.withdraw("a1")
    assert list_own(cluster.read_node("a1")) == {"location": "oregon"}


async def test_withdrawing_takes_away_what_kilos_own_agent_wrote(
    cluster: Cluster, agent: KubernetesBackend
) -> None:
    cluster.put_node("a1", KILO_LEADER)
    await agent.withdraw("a1")
    assert set(list_own(cluster.read_node("a1"))) == {
        "force-endpoint",
        "leader",
        "persistent-keepalive",
    }


async def test_no_agent_registers_a_node(cluster: Cluster, agent: KubernetesBackend) -> None:
    with pytest.raises(BackendError, match="a1"):
        await agent.publish(make_report("a1"))
    assert cluster.plane.call("GET", NODES)["items"] == []


def list_own(node: dict[str, Any]) -> dict[str, str]:
    """Kilo's annotations of a Node, without their prefix."""
    annotations = node["metadata"].get("annotations", {})
    return {
        name.removeprefix(PREFIX): value
        for name, value in annotations.items()
        if name.startswith(PREFIX)
    }


def strip_own(node: dict[str, Any], *, keep: Any) -> dict[str, Any]:
    """All of a Node but Kilo's annotations and what the server changes with every write."""
    stripped = copy.deepcopy(node)
    metadata = stripped["metadata"]
    for name in ("resourceVersion", "managedFields"):
        metadata.pop(name, None)
    metadata["annotations"] = {
        name: value
        for name, value in metadata["annotations"].items()
        if not name.startswith(PREFIX) or name.removeprefix(PREFIX) in keep
    }
    return stripped
