"""What an agent asks of the API server is what its roles allow, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from kilo.backends.kubernetes.backend import KubernetesBackend
from kilo.mesh.model import PartialSettings, Snapshot
from kilo.mesh.remarks import PeerStanding, Reason, Remark, Remarks
from tests.backends.following import Follower, names
from tests.builders import make_key, make_report
from tests.cluster.agents import Request, Requests, open_agent, places
from tests.cluster.planes import (
    ACCOUNT_USER,
    EVENTS,
    NAMESPACE,
    PEERS,
    PREFIX,
    RBAC,
    SETTLE_SECONDS,
    Cluster,
)

KILO_ACCOUNT = "kilo-of-old"
KILO_RBAC = f"""
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {KILO_ACCOUNT}}}
rules:
- {{apiGroups: [""], resources: [nodes], verbs: [list, watch, patch]}}
- {{apiGroups: [kilo.squat.ai], resources: [peers], verbs: [list, watch]}}
- {{apiGroups: [apiextensions.k8s.io], resources: [customresourcedefinitions], verbs: [get]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {KILO_ACCOUNT}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {KILO_ACCOUNT}}}
subjects: [{{kind: ServiceAccount, name: {KILO_ACCOUNT}, namespace: {NAMESPACE}}}]
"""
"""What a cluster that was made for Kilo gives to its agents."""

SETTINGS = PartialSettings(port=51999)
FORBIDDEN = 403
ONLY_IN_NEED = {("get", "customresourcedefinitions")}
"""Asked only where the server knows no peers: is it new, or did nobody install them?"""

REMARKS = Remarks(
    node="a1",
    remarks=(
        Remark(object="ConfigMap kilo-settings", reason=Reason.INVALID, message="mtu 'x' is bad"),
        Remark(object="Node a1", reason=Reason.INVALID, message="endpoint 'here' is not host:port"),
        Remark(
            object="Peer squat", reason=Reason.REFUSED, message="allowedIPs 10.2.1.0/24 refused"
        ),
    ),
    peers={"squat": PeerStanding(ready=True)},
    handshakes={"squat": 1_700_000_000},
)


@pytest.fixture
def populated(cluster: Cluster) -> Cluster:
    """A node, a peer, settings."""
    cluster.put_node("a1")
    cluster.put_peer("squat", publicKey=str(make_key("squat")), allowedIPs=["10.5.0.1/32"])
    cluster.put_settings(SETTINGS)
    return cluster


async def use_everything(agent: KubernetesBackend, cluster: Cluster) -> Snapshot:
    """Make every call that an agent makes of its backend; what it heard of the cluster."""
    follower = Follower(agent)
    await follower.until(lambda snapshot: names(snapshot) == ["squat"])
    await agent.publish(make_report("a1"))
    await agent.remark(REMARKS)
    await agent.remark(REMARKS)
    cluster.annotate("a1", {"location": "oregon"})
    heard = await follower.until(
        lambda snapshot: (
            places(snapshot) == {"a1": "oregon"} and snapshot.nodes[0].report == make_report("a1")
        )
    )
    assert await agent.snapshot() == heard
    await agent.withdraw("a1")
    assert cluster.read_annotations("a1") == {PREFIX + "location": "oregon"}
    return heard


async def test_no_call_is_refused_and_none_goes_beyond_the_roles_we_ship(
    populated: Cluster,
) -> None:
    requests = Requests(populated.plane, ACCOUNT_USER)
    async with open_agent(populated.make_agent_kubeconfig()) as agent:
        heard = await use_everything(agent, populated)
    assert (heard.settings, heard.problems) == (SETTINGS, ())
    rules = list(read_rules(RBAC.read_text()))
    asked_of_us = {(verb, kind) for rule in rules for verb in rule["verbs"] for kind in kinds(rule)}
    # Nor do we ask the operator for what we do not use.
    made = await wait_for_all(requests, asked_of_us - ONLY_IN_NEED)
    assert [one for one in made if one.code >= 400] == []
    assert [one for one in made if not any(allows(rule, one) for rule in rules)] == []


async def test_what_is_remarked_can_be_read_beside_the_objects(populated: Cluster) -> None:
    async with open_agent(populated.make_agent_kubeconfig()) as agent:
        await use_everything(agent, populated)
    events = [event for path in EVENTS for event in populated.plane.call("GET", path)["items"]]
    said = [
        (one["involvedObject"]["kind"], one["involvedObject"]["name"], one["reason"])
        for one in events
    ]
    assert sorted(said) == [
        ("ConfigMap", "kilo-settings", "Invalid"),
        ("Node", "a1", "Invalid"),
        ("Peer", "squat", "Refused"),
    ]
    assert populated.plane.call("GET", f"{PEERS}/squat")["status"]


async def test_with_the_role_that_kilo_has_all_but_extras_works_and_it_is_said_once(
    populated: Cluster,
) -> None:
    populated.plane.apply(KILO_RBAC)
    token = populated.plane.make_service_account_token(NAMESPACE, KILO_ACCOUNT)
    kubeconfig = populated.plane.make_kubeconfig(KILO_ACCOUNT, token=token)
    requests = Requests(populated.plane, f"system:serviceaccount:{NAMESPACE}:{KILO_ACCOUNT}")
    with capture_logs() as logs:
        async with open_agent(kubeconfig) as agent:
            heard = await use_everything(agent, populated)
    assert (heard.settings, heard.problems) == (PartialSettings(), ())
    refused = {one.resource for one in requests.read() if one.code == FORBIDDEN}
    assert refused == {"configmaps", "events", "peers/status"}
    said = [str(entry) for entry in logs if entry["log_level"] == "warning"]
    assert len(said) == len(refused)
    for resource in ("configmaps", "events", "peers/squat/status"):
        assert sum(resource in text for text in said) == 1


async def wait_for_all(requests: Requests, wanted: set[tuple[str, str]]) -> list[Request]:
    """The requests made, once those (verb, resource) are among them: the end of a watch is noted
    a while after it.
    """
    async with asyncio.timeout(SETTLE_SECONDS):
        while not wanted <= {(one.verb, one.resource) for one in requests.read()}:  # noqa: ASYNC110 - a file, which tells nobody
            await asyncio.sleep(0.1)
    return requests.read()


def read_rules(text: str) -> Iterator[dict[str, Any]]:
    """The rules of all roles in these documents."""
    for document in yaml.safe_load_all(text):
        if document and document["kind"] in ("ClusterRole", "Role"):
            yield from document["rules"]


def kinds(rule: dict[str, Any]) -> list[str]:
    """The kinds of objects that a role's rule is about."""
    return list(rule["resources"])


def allows(rule: dict[str, Any], request: Request) -> bool:
    """Whether a role's rule allows the request."""
    return (
        request.verb in rule["verbs"]
        and request.group in rule["apiGroups"]
        and request.resource in rule["resources"]
        and request.name in rule.get("resourceNames", [request.name])
    )
