"""Remarks, in a real API server: seen as an operator sees them, written as an agent may."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from kilo.backends.documents import is_object_name
from kilo.backends.kubernetes.client import Access, ApiError, Client
from kilo.backends.kubernetes.remarking import (
    FORGET_SECONDS,
    MOST_EVENTS,
    MOST_EVENTS_OF_ONE,
    Remarker,
    Target,
    make_event,
)
from kilo.backends.kubernetes.sources import PEERS
from kilo.lab.apicalls import RefusedError
from kilo.lab.controlplane import ControlPlane
from kilo.mesh.model import PartialSettings
from kilo.mesh.remarks import PeerStanding, Reason, Remark, Remarks
from tests.builders import make_key
from tests.cluster.planes import ACCOUNT_USER, EVENTS, PREFIX, Cluster, share_plane
from tests.cluster.relay import Relay

NOW = 1_700_000_000
NOW_TEXT = "2023-11-14T22:13:20Z"
STOLEN = Remark(
    object="Peer squat",
    reason=Reason.REFUSED,
    message="spec.allowedIPs 10.2.1.0/25 refused: it lies inside 10.2.1.0/24 of Node a",
)
GARBAGE = Remark(
    object="Node a",
    reason=Reason.INVALID,
    message=f"metadata.annotations[{PREFIX}force-endpoint]: 'x' is not host:port",
)
SETTINGS = Remark(
    object="Settings mesh", reason=Reason.INVALID, message="spec.mtu: 'big' is not a number"
)
REFUSED = PeerStanding(ready=False, remarks=(STOLEN,))
READY = PeerStanding(ready=True)
ALL = Remarks(node="a", remarks=(GARBAGE, STOLEN), peers={"squat": REFUSED})


class Clock:
    """Monotonic, and can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class CountingClient(Client):
    """Notes what was asked of the server."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self.calls: list[str] = []

    async def call(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        self.calls.append(f"{method} {path}")
        return await super().call(method, path, **how)

    @property
    def writes(self) -> list[str]:
        return [call for call in self.calls if not call.startswith("GET")]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    one = Cluster(share_plane())
    yield one
    one.empty()


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[CountingClient]:
    """An agent's, with the roles that we ship."""
    one = CountingClient(Access(kubeconfig=str(cluster.make_agent_kubeconfig())))
    yield one
    await one.close()


@pytest.fixture
def remarker(client: CountingClient) -> Remarker:
    return make_remarker(client)


def make_remarker(client: Client, clock: Clock | None = None) -> Remarker:
    return Remarker(client, clock=clock or Clock(), wall_clock=lambda: NOW)


def put_squat(cluster: Cluster, name: str = "squat") -> None:
    cluster.put_peer(name, publicKey=str(make_key(name)), allowedIPs=["10.2.1.0/25"])


def read_status(cluster: Cluster, name: str = "squat") -> dict[str, Any]:
    return dict(cluster.plane.call("GET", f"{PEERS}/{name}").get("status") or {})


def list_events(cluster: Cluster) -> list[dict[str, Any]]:
    return [event for path in EVENTS for event in cluster.plane.call("GET", path)["items"]]


# What an operator sees.


async def test_describing_a_peer_shows_what_was_refused_and_that_it_is_not_ready(
    cluster: Cluster, remarker: Remarker
) -> None:
    put_squat(cluster)

    await remarker.remark(ALL)
    text = cluster.plane.kubectl("describe", "peer", "squat")

    events = text.partition("Events:")[2]
    assert "Refused" in events
    assert "kilo" in events
    assert STOLEN.message in events
    assert "Ready" in text
    assert "False" in text


async def test_describing_a_node_shows_the_annotation_that_does_not_parse(
    cluster: Cluster, remarker: Remarker
) -> None:
    cluster.put_node("a")

    await remarker.remark(ALL)

    assert GARBAGE.message in cluster.plane.kubectl("describe", "node", "a")


async def test_describing_the_settings_shows_what_is_wrong_with_them(
    cluster: Cluster, remarker: Remarker
) -> None:
    cluster.put_settings(PartialSettings(mtu=1400))

    await remarker.remark(Remarks(node="a", remarks=(SETTINGS,)))
    text = cluster.plane.kubectl("describe", "configmap", "-n", "kube-system", "kilo-settings")

    assert SETTINGS.message in text


async def test_events_are_listed_with_kind_name_reason_and_message(
    cluster: Cluster, remarker: Remarker
) -> None:
    put_squat(cluster)
    cluster.put_node("a")

    await remarker.remark(ALL)
    lines = cluster.plane.kubectl("get", "events", "--no-headers").splitlines()

    assert sorted(line.split(maxsplit=4)[1:] for line in lines) == [
        ["Warning", "Invalid", "node/a", GARBAGE.message],
        ["Warning", "Refused", "peer/squat", STOLEN.message],
    ]


async def test_an_event_says_who_said_it(cluster: Cluster, remarker: Remarker) -> None:
    cluster.put_node("a")

    await remarker.remark(Remarks(node="b", remarks=(GARBAGE,)))
    (event,) = list_events(cluster)

    assert event["source"] == {"component": "kilo", "host": "b"}
    assert (event["reportingComponent"], event["reportingInstance"]) == ("kilo", "b")
    assert event["firstTimestamp"] == event["lastTimestamp"] == NOW_TEXT


async def test_a_peer_can_be_waited_for_until_it_is_ready(
    cluster: Cluster, remarker: Remarker
) -> None:
    put_squat(cluster)

    await remarker.remark(Remarks(node="a", peers={"squat": READY}))

    cluster.plane.kubectl("wait", "--for=condition=Ready", "peer/squat", "--timeout=10s")


async def test_the_last_handshake_and_the_standing_do_not_disturb_each_other(
    cluster: Cluster, client: CountingClient
) -> None:
    put_squat(cluster)
    speaker, leader = make_remarker(client), make_remarker(client)

    await speaker.remark(Remarks(node="a", peers={"squat": READY}))
    await leader.remark(Remarks(node="b", handshakes={"squat": NOW - 10}))
    await speaker.remark(Remarks(node="a", peers={"squat": REFUSED}))
    status = read_status(cluster)

    assert status["lastHandshake"] == {"node": "b", "time": "2023-11-14T22:13:10Z"}
    assert [one["reason"] for one in status["conditions"]] == ["Refused"]


# Once.


async def test_what_was_told_is_not_told_again(client: CountingClient, cluster: Cluster) -> None:
    put_squat(cluster)
    remarker = make_remarker(client)
    await remarker.remark(ALL)
    client.calls.clear()

    await remarker.remark(ALL)

    assert client.calls == []


async def test_several_agents_and_restarts_make_one_event_and_one_status(
    client: CountingClient, cluster: Cluster
) -> None:
    put_squat(cluster)
    await make_remarker(client).remark(ALL)
    written = cluster.plane.call("GET", f"{PEERS}/squat")
    client.calls.clear()

    await make_remarker(client).remark(replace(ALL, node="b"))

    assert len(list_events(cluster)) == 2
    assert not [call for call in client.calls if call.startswith("PATCH")]
    assert cluster.plane.call("GET", f"{PEERS}/squat") == written


async def test_what_was_lost_is_written_again_after_a_while(
    client: CountingClient, cluster: Cluster
) -> None:
    clock = Clock()
    remarker = make_remarker(client, clock)
    put_squat(cluster)
    await remarker.remark(ALL)
    cluster.empty()
    put_squat(cluster)

    clock.ahead = FORGET_SECONDS
    await remarker.remark(ALL)

    assert STOLEN.message in cluster.plane.kubectl("describe", "peer", "squat")
    assert read_status(cluster)["conditions"]


async def test_what_was_put_right_and_is_wrong_again_is_told_again(
    client: CountingClient, cluster: Cluster
) -> None:
    remarker = make_remarker(client)
    await remarker.remark(Remarks(node="a", remarks=(GARBAGE,)))
    for event in list_events(cluster):
        cluster.plane.call("DELETE", f"{EVENTS[0]}/{event['metadata']['name']}")

    await remarker.remark(Remarks(node="a"))
    await remarker.remark(Remarks(node="a", remarks=(GARBAGE,)))

    assert [event["message"] for event in list_events(cluster)] == [GARBAGE.message]


# What is not there, or not to be had.


async def test_a_peer_that_is_gone_meanwhile_gets_neither_event_nor_status(
    client: CountingClient, cluster: Cluster
) -> None:
    cluster.empty()
    await make_remarker(client).remark(replace(ALL, remarks=(STOLEN,)))

    assert client.writes == []


async def test_a_peer_of_which_the_server_takes_no_status_is_said_once_and_stops_no_other(
    client: CountingClient, cluster: Cluster
) -> None:
    """It is older than the schema, which it does not meet."""
    put_squat(cluster)
    broken = cluster.plane.call("GET", f"{PEERS}/squat")
    broken["metadata"]["name"] = "broken"
    broken["spec"] = {"publicKey": "x", "allowedIPs": []}
    cluster.plane.etcdctl("put", "/registry/kilo.squat.ai/peers/broken", text=json.dumps(broken))
    invalid = replace(STOLEN, object="Peer broken", reason=Reason.INVALID)
    standing = PeerStanding(ready=False, remarks=(invalid,))
    clock = Clock()
    remarker = make_remarker(client, clock)
    remarks = Remarks(node="a", remarks=(invalid,), peers={"broken": standing, "squat": READY})
    with capture_logs() as logs:
        await remarker.remark(remarks)
        clock.ahead = FORGET_SECONDS
        await remarker.remark(remarks)

    assert [log["what"] for log in logs] == ["Peer broken"]
    assert "422" in logs[0]["detail"]
    assert read_status(cluster)["conditions"]
    assert invalid.message in cluster.plane.kubectl("describe", "peer", "broken")


async def test_names_that_no_object_can_have_are_passed_over(
    client: CountingClient, cluster: Cluster
) -> None:
    assert cluster
    names = ("", "../nodes/a", "A b", "x" * 300, "a/status?b=c")
    remarks = [
        replace(STOLEN, object=f"{kind} {name}") for kind in ("Peer", "Node") for name in names
    ]
    others = [replace(STOLEN, object=text) for text in ("", "Peer", "Segment location:x", "Pod a")]
    peers = dict.fromkeys(names, REFUSED)

    await make_remarker(client).remark(
        Remarks(node="a", remarks=(*remarks, *others), peers=peers, handshakes={"../x": NOW})
    )

    assert client.writes == []


async def test_of_remarks_without_end_the_first_are_shown_and_the_number_of_the_others_said(
    client: CountingClient,
) -> None:
    # Told already, all but the last that are shown: only they cost a call.
    many = tuple(
        replace(GARBAGE, object="Pod a", message=f"{number:04}") for number in range(MOST_EVENTS)
    )
    last = replace(GARBAGE, object="Node z", message="one too many")
    with capture_logs() as logs:
        await make_remarker(client).remark(Remarks(node="a", remarks=(*many, last)))

    assert client.writes == []
    assert [log["detail"] for log in logs] == ["1 more remarks are not shown as Events"]


async def test_a_value_that_is_wrong_in_ever_new_ways_is_told_of_so_often_and_no_more(
    client: CountingClient, cluster: Cluster
) -> None:
    for name in "ab":
        cluster.put_node(name)
    clock = Clock()
    remarker = make_remarker(client, clock)

    async def remark(message: str) -> None:
        other = replace(GARBAGE, object="Node b")
        await remarker.remark(Remarks(node="a", remarks=(replace(GARBAGE, message=message), other)))

    with capture_logs() as logs:
        for number in range(MOST_EVENTS_OF_ONE + 3):
            await remark(f"'{number}' is not host:port")
    made = [event["involvedObject"]["name"] for event in list_events(cluster)]
    assert (made.count("a"), made.count("b")) == (MOST_EVENTS_OF_ONE, 1)
    assert [log["what"] for log in logs] == ["Events on Node a"]

    clock.ahead = FORGET_SECONDS
    await remark("'last' is not host:port")
    assert len(list_events(cluster)) == MOST_EVENTS_OF_ONE + 2


async def test_calls_are_made_at_leisure(client: CountingClient, cluster: Cluster) -> None:
    assert cluster
    remarks = tuple(replace(GARBAGE, message=f"{number}") for number in range(8))
    begin = time.monotonic()

    await make_remarker(client).remark(Remarks(node="a", remarks=remarks))

    assert len(client.writes) == 8
    assert time.monotonic() - begin > 0.7


async def test_many_peers_are_read_by_one_list(client: CountingClient, cluster: Cluster) -> None:
    names = [f"p{number}" for number in range(6)]
    for name in names:
        put_squat(cluster, name)

    await make_remarker(client).remark(Remarks(node="a", peers=dict.fromkeys(names, READY)))

    assert client.calls.count(f"GET {PEERS}") == 1
    assert all(read_status(cluster, name)["conditions"] for name in names)


async def test_what_was_told_before_the_server_went_away_is_not_told_again(
    cluster: Cluster,
) -> None:
    with Relay(port=cluster.plane.files.port) as relay:
        access = Access(kubeconfig=str(cluster.make_agent_kubeconfig(relay)))
        client = CountingClient(access)
        remarker = make_remarker(client)
        await remarker.remark(Remarks(node="a", remarks=(GARBAGE,)))
        relay.refuse()
        other = replace(GARBAGE, object="Node b")
        with pytest.raises(ApiError):
            await remarker.remark(Remarks(node="a", remarks=(GARBAGE, other)))
        relay.resume()
        client.calls.clear()
        await remarker.remark(Remarks(node="a", remarks=(GARBAGE, other)))
        await client.close()

    assert len(client.writes) == 1
    assert {event["involvedObject"]["name"] for event in list_events(cluster)} == {"a", "b"}


# A cluster made for Kilo, which knows neither the status nor our Events.

KILOS_OWN = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: peers.kilo.squat.ai}
spec:
  group: kilo.squat.ai
  scope: Cluster
  names: {kind: Peer, plural: peers, singular: peer, listKind: PeerList}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    schema:
      openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: kilo}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [list, patch, watch]}
- {apiGroups: [kilo.squat.ai], resources: [peers], verbs: [list, watch]}
- {apiGroups: [apiextensions.k8s.io], resources: [customresourcedefinitions], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kilo}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kilo}
subjects:
- {kind: ServiceAccount, name: kilo, namespace: kube-system}
"""
ALSO_STATUS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: kilo}
rules:
- {apiGroups: [kilo.squat.ai], resources: [peers], verbs: [list, watch]}
- {apiGroups: [kilo.squat.ai], resources: [peers/status], verbs: [patch]}
- {apiGroups: [""], resources: [events], verbs: [create]}
"""


@pytest.fixture(scope="module")
def old_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("old")) as plane:
        plane.apply(KILOS_OWN)
        _wait_for(lambda: _answers(plane, "GET", PEERS))
        put_squat(Cluster(plane))
        yield plane


@pytest.fixture
async def old_client(old_plane: ControlPlane) -> AsyncIterator[CountingClient]:
    kubeconfig = Cluster(old_plane).make_agent_kubeconfig()
    one = CountingClient(Access(kubeconfig=str(kubeconfig)))
    yield one
    await one.close()


def grant(plane: ControlPlane, role: str, *, events: bool, peers: bool = True) -> None:
    """Let the agents have this role, and wait until the server goes by it."""
    plane.apply(role)
    _wait_for(lambda: _may(plane, "create", "", "events") is events)
    _wait_for(lambda: _may(plane, "list", "kilo.squat.ai", "peers") is peers)


def _may(plane: ControlPlane, verb: str, group: str, resource: str) -> bool:
    attributes = {"verb": verb, "group": group, "resource": resource, "namespace": "default"}
    review = {"spec": {"user": ACCOUNT_USER, "resourceAttributes": attributes}}
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    return bool(plane.call("POST", path, review)["status"]["allowed"])


def _answers(plane: ControlPlane, method: str, path: str) -> bool:
    try:
        plane.call(method, path)
    except RefusedError:
        return False
    return True


def _wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def test_what_kilos_own_role_forbids_is_said_once_and_done_without(
    old_plane: ControlPlane, old_client: CountingClient
) -> None:
    grant(old_plane, KILOS_OWN, events=False)
    clock = Clock()
    remarker = make_remarker(old_client, clock)
    with capture_logs() as logs:
        await remarker.remark(ALL)
        writes = len(old_client.writes)
        await remarker.remark(replace(ALL, remarks=(GARBAGE,), peers={"squat": READY}))
        assert len(old_client.writes) == writes
        clock.ahead = FORGET_SECONDS
        await remarker.remark(ALL)

    assert writes == 2
    assert len(old_client.writes) == 4
    assert [log["what"] for log in logs] == ["status", "events"]
    assert all("403" in log["detail"] for log in logs)


async def test_a_definition_without_a_status_is_done_without_and_events_are_shown(
    old_plane: ControlPlane, old_client: CountingClient
) -> None:
    grant(old_plane, ALSO_STATUS, events=True)
    with capture_logs() as logs:
        await make_remarker(old_client).remark(ALL)

    assert [log["what"] for log in logs] == ["status"]
    assert "404" in logs[0]["detail"]
    assert STOLEN.message in old_plane.kubectl("describe", "peer", "squat")


async def test_without_the_right_to_read_peers_their_events_are_shown_all_the_same(
    old_plane: ControlPlane, old_client: CountingClient
) -> None:
    peers = "- {apiGroups: [kilo.squat.ai], resources: [peers], verbs: [list, watch]}\n"
    grant(old_plane, ALSO_STATUS.replace(peers, ""), events=True, peers=False)
    with capture_logs() as logs:
        await make_remarker(old_client).remark(ALL)

    assert [log["what"] for log in logs] == ["peers"]
    assert STOLEN.message in old_plane.kubectl("get", "events")


# The document.


def test_an_events_name_is_that_of_what_it_says_and_never_too_long() -> None:
    target = Target(api_version="v1", kind="Node", name="a." * 126 + "a")
    names = {
        make_event(target, remark, node=node, now=NOW_TEXT)["metadata"]["name"]
        for remark in (GARBAGE, replace(GARBAGE, message="other"))
        for node in ("a", "b")
    }

    assert len(names) == 2
    assert all(is_object_name(name) for name in names)


def test_an_events_message_is_cut() -> None:
    target = Target(api_version="v1", kind="Node", name="a")
    event = make_event(target, replace(GARBAGE, message="x" * 5000), node="a", now=NOW_TEXT)

    assert len(event["message"]) == 1024
