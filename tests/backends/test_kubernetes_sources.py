"""Lists and watches of an API server that is odd: half installed, forbidding, confused."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from kilo.backends.kubernetes.backend import KubernetesBackend
from kilo.backends.kubernetes.client import Client
from kilo.backends.kubernetes.entries import decode_node
from kilo.backends.kubernetes.remarking import Remarker
from kilo.backends.kubernetes.sources import CRD, ObjectSource, PeerSource, SettingsSource
from kilo.backends.source import BusyError, ExpiredError
from kilo.backends.watching import StoreWatch
from kilo.errors import BackendError
from kilo.lab.certificates import Authority
from kilo.mesh.model import Snapshot
from kilo.mesh.remarks import PeerStanding, Remarks
from kilo.notices import Notices
from tests.backends.fakeapi import NODES, FakeApi, answer, connect, refuse
from tests.backends.following import LIMIT_SECONDS
from tests.builders import make_key, make_peer

PEERS = "/apis/kilo.squat.ai/v1alpha1/peers"
CONFIG_MAPS = "/api/v1/namespaces/kube-system/configmaps"
MISSING = (
    "CustomResourceDefinition peers.kilo.squat.ai: is not installed, so there are no peers:"
    " kubectl apply -f examples/kubernetes/base/crd.yaml"
)
PEER = {
    "metadata": {"name": "squat", "resourceVersion": "5"},
    "spec": {"publicKey": str(make_key("squat")), "allowedIPs": ["10.5.0.1/32"]},
}


class Kubernetes:
    """A handler of the fake server: lists of objects by path, and watches."""

    def __init__(self) -> None:
        self.lists: dict[str, list[dict[str, Any]]] = {NODES: [], PEERS: [], CONFIG_MAPS: []}
        self.answers: dict[str, web.Response] = {}
        """What a path is answered with, whatever is asked."""
        self.tokens: list[str] = []
        """Of pages: the first one that is asked for has expired."""
        self.lines: list[bytes] = []
        """What a watch of nodes tells."""
        self.asked: Counter[str] = Counter()
        self._was_asked = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.path] += 1
        self._was_asked.set()
        if found := self.answers.get(request.path):
            return web.Response(body=found.body, status=found.status)
        if request.path not in self.lists:
            return refuse(404, "NotFound", f"{request.path} not found")
        if "watch" in request.query:
            return await self._watch(request)
        return self._list(request)

    async def wait_until_asked(self, path: str, *, times: int) -> None:
        while self.asked[path] < times:
            self._was_asked.clear()
            await self._was_asked.wait()

    def _list(self, request: web.Request) -> web.Response:
        token = request.query.get("continue", "")
        if token and self.tokens:
            return refuse(410, "Expired", f"{self.tokens.pop()} is too old")
        items = self.lists[request.path]
        begin, limit = int(token or 0), int(request.query["limit"])
        end = begin + limit
        metadata = {"resourceVersion": "10"} | ({"continue": str(end)} if end < len(items) else {})
        return web.json_response({"metadata": metadata, "items": items[begin:end]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in self.lines if request.path == NODES else ():
            await response.write(line)
        await asyncio.Event().wait()
        return response


@pytest.fixture
def kubernetes() -> Kubernetes:
    return Kubernetes()


@pytest.fixture
async def api(tmp_path: Path, kubernetes: Kubernetes) -> AsyncIterator[FakeApi]:
    one = FakeApi(Authority.create(), tmp_path)
    one.handler = kubernetes
    async with one.serve():
        yield one


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[Client]:
    one = connect(api)
    yield one
    await one.close()


@asynccontextmanager
async def following(client: Client) -> AsyncIterator[AsyncIterator[Any]]:
    watch = StoreWatch(
        {
            "nodes": make_node_source(client),
            "peers": PeerSource(client, absent_seconds=0.2),
            "settings": SettingsSource(client, Notices("test"), forbidden_seconds=0.2),
        }
    )
    async with asyncio.timeout(LIMIT_SECONDS):
        told = watch.follow()
        yield told
        await told.aclose()


def make_node_source(client: Client) -> ObjectSource:
    return ObjectSource(client, NODES, partial(decode_node, topology_label="region"))


def make_nodes(count: int) -> list[dict[str, Any]]:
    return [
        {"metadata": {"name": f"n{number:04}", "resourceVersion": str(number)}}
        for number in range(count)
    ]


def texts(snapshot: Snapshot) -> list[str]:
    return list(map(str, snapshot.problems))


async def find(told: AsyncIterator[Any], **wanted: int) -> Snapshot:
    """The first snapshot with so many of each."""
    async for outcome in told:
        assert isinstance(outcome, Snapshot)
        if all(len(getattr(outcome, name)) == count for name, count in wanted.items()):
            return outcome
    raise AssertionError


# Peers without their definition.


async def test_without_the_definition_there_are_no_peers_and_one_problem(
    kubernetes: Kubernetes, client: Client
) -> None:
    del kubernetes.lists[PEERS]
    backend = KubernetesBackend(client)
    snapshot = await backend.snapshot()
    assert (snapshot.peers, texts(snapshot)) == ((), [MISSING])
    await backend.close()


async def test_a_definition_that_comes_later_is_found(
    kubernetes: Kubernetes, client: Client
) -> None:
    del kubernetes.lists[PEERS]
    async with following(client) as told:
        assert texts(await find(told, problems=1)) == [MISSING]
        kubernetes.lists[PEERS] = [PEER]
        await find(told, problems=0, peers=1)


@pytest.mark.parametrize("known", [True, False], ids=["defined", "knows no definitions yet"])
async def test_a_server_that_does_not_serve_peers_yet_is_not_taken_for_one_without_peers(
    kubernetes: Kubernetes, client: Client, *, known: bool
) -> None:
    page = web.Response(text="404 page not found", status=404)
    kubernetes.answers[PEERS] = page
    kubernetes.answers[CRD] = web.json_response({"kind": "CustomResourceDefinition"})
    if not known:
        kubernetes.answers[CRD] = page
    with pytest.raises(BackendError, match="404"):
        await PeerSource(client).list({})
    async with following(client) as told:
        first = asyncio.ensure_future(anext(told))
        await asyncio.wait({first}, timeout=1.0)
        assert not first.done()
        kubernetes.lists[PEERS] = [PEER]
        del kubernetes.answers[PEERS]
        assert [peer.name for peer in (await first).peers] == ["squat"]


async def test_putting_a_peer_without_the_definition_says_what_to_do(
    kubernetes: Kubernetes, client: Client
) -> None:
    del kubernetes.lists[PEERS]
    backend = KubernetesBackend(client)
    with pytest.raises(BackendError, match=r"is not installed: kubectl apply -f"):
        await backend.put_peer(make_peer("squat"))
    await backend.close()


# Settings that may not be read.


async def test_forbidden_settings_are_said_once_and_done_without(
    kubernetes: Kubernetes, client: Client
) -> None:
    kubernetes.answers[CONFIG_MAPS] = refuse(403, "Forbidden", "configmaps is forbidden")
    with capture_logs() as logs:
        async with following(client) as told:
            first = await find(told, nodes=0)
            await kubernetes.wait_until_asked(CONFIG_MAPS, times=6)
    assert (first.settings, first.problems) == ({}, ())
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert "configmaps is forbidden" in logs[0]["detail"]


async def test_settings_that_may_be_read_later_are(kubernetes: Kubernetes, client: Client) -> None:
    kubernetes.answers[CONFIG_MAPS] = refuse(403, "Forbidden", "configmaps is forbidden")
    kubernetes.lists[CONFIG_MAPS] = [make_config_map(51821)]
    async with following(client) as told:
        await find(told, settings=0)
        del kubernetes.answers[CONFIG_MAPS]
        assert (await find(told, settings=1)).settings == {"port": 51821}


async def test_settings_stay_in_force_when_they_may_not_be_read_any_more(
    kubernetes: Kubernetes, client: Client
) -> None:
    kubernetes.lists[CONFIG_MAPS] = [make_config_map(51821)]
    source = SettingsSource(client, Notices("test"))
    before = await source.list({})
    kubernetes.answers[CONFIG_MAPS] = refuse(403, "Forbidden", "configmaps is forbidden")
    after = await source.list(before.items)
    assert after.items == before.items


def make_config_map(port: int) -> dict[str, Any]:
    settings = {
        "apiVersion": "kilo.squat.ai/v1alpha1",
        "kind": "Settings",
        "metadata": {"name": "mesh"},
        "spec": {"port": port},
    }
    metadata = {"name": "kilo-settings", "resourceVersion": "3"}
    return {"metadata": metadata, "data": {"mesh": json.dumps(settings)}}


# Lists and streams.


async def test_a_list_whose_pages_expire_meanwhile_is_begun_anew(
    kubernetes: Kubernetes, client: Client
) -> None:
    kubernetes.lists[NODES] = make_nodes(250)
    kubernetes.tokens = ["one", "two"]
    listing = await make_node_source(client).list({})
    assert (len(listing.items), listing.revision) == (250, "10")


async def test_lists_and_probes_are_answered_by_etcd_and_not_by_some_servers_cache(
    kubernetes: Kubernetes, client: Client, api: FakeApi
) -> None:
    """Which is what it means to ask without a ``resourceVersion``."""
    kubernetes.lists[NODES] = make_nodes(250)
    source = make_node_source(client)
    await source.list({})
    await source.probe()
    assert [asked.query for asked in api.asked] == [
        {"limit": "100"},
        {"limit": "100", "continue": "100"},
        {"limit": "100", "continue": "200"},
        {"limit": "10"},
    ]


async def test_a_list_whose_pages_expire_again_and_again_is_given_up(
    kubernetes: Kubernetes, client: Client
) -> None:
    kubernetes.lists[NODES] = make_nodes(250)
    kubernetes.tokens = ["a token"] * 50
    with pytest.raises(BackendError, match="410"):
        await make_node_source(client).list({})


async def test_a_watch_asks_for_bookmarks_and_for_its_end_at_a_moment_of_its_own(
    kubernetes: Kubernetes, client: Client, api: FakeApi
) -> None:
    """Without bookmarks a quiet collection resumes at a revision that is forgotten by then."""
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    kubernetes.lines = make_lines([{"type": "ERROR", "object": status}])
    for _ in range(20):
        with pytest.raises(ExpiredError):
            await watch_to_its_end(client)
    queries = [asked.query for asked in api.asked]
    ends = {int(query.pop("timeoutSeconds")) for query in queries}
    assert len(ends) > 5
    assert min(ends) >= 300
    assert max(ends) <= 600
    expected = {"watch": "true", "resourceVersion": "1", "allowWatchBookmarks": "true"}
    assert queries == [expected] * 20


@pytest.mark.parametrize(
    "body", [b"{}", b'{"items": 5}', b'{"metadata": {}, "items": [{"metadata": {"name": "a"}}]}']
)
async def test_remarks_on_peers_that_are_none_are_an_error_and_no_crash(
    kubernetes: Kubernetes, client: Client, body: bytes
) -> None:
    kubernetes.answers[PEERS] = web.Response(body=body)
    with pytest.raises(BackendError, match="none of an API server"):
        await Remarker(client).remark(Remarks(peers={"squat": PeerStanding(ready=True)}))


async def test_a_server_that_asks_to_be_left_alone_is_for_as_long_as_it_says(
    client: Client, api: FakeApi
) -> None:
    """Priority and fairness answers so to whom it has no room for."""
    status = {"kind": "Status", "reason": "TooManyRequests", "message": "later"}
    api.handler = answer(status, status=429, headers={"Retry-After": "4"})
    source = make_node_source(client)
    for asking in (source.list({}), source.probe(), watch_to_its_end(client)):
        with pytest.raises(BusyError, match="later") as caught:
            await asking
        assert caught.value.seconds == 4.0


async def test_a_watch_that_ends_before_its_time_is_an_error_and_not_tried_again_at_once(
    kubernetes: Kubernetes, client: Client
) -> None:
    kubernetes.answers[NODES] = web.Response(body=b"")
    with pytest.raises(BackendError, match="the server ended it early"):
        await watch_to_its_end(client)


async def test_an_expired_revision_told_in_the_stream_is_one(
    kubernetes: Kubernetes, client: Client
) -> None:
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    kubernetes.lines = make_lines([{"type": "ERROR", "object": status}])
    with pytest.raises(ExpiredError, match="too old"):
        await watch_to_its_end(client)


@pytest.mark.parametrize(
    "line",
    [
        {"type": "ADDED"},
        {"type": "ADDED", "object": {}},
        {"type": "ADDED", "object": "x"},
        {"type": "ADDED", "object": {"metadata": {"name": "a"}}},
        {"type": "ERROR", "object": {"code": 500, "message": "etcd\nis gone"}},
        {"type": "NEWS", "object": {"metadata": {"name": "a", "resourceVersion": "1"}}},
        {"metadata": {}},
    ],
)
async def test_a_line_that_is_no_event_is_an_error_of_one_line(
    kubernetes: Kubernetes, client: Client, line: dict[str, Any]
) -> None:
    kubernetes.lines = make_lines([line])
    with pytest.raises(BackendError) as caught:
        await watch_to_its_end(client)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"items": 5}', b'{"metadata": {"resourceVersion": "1"}, "items": [7]}']
)
async def test_who_answers_something_else_than_lists_is_no_api_server(
    kubernetes: Kubernetes, client: Client, body: bytes
) -> None:
    kubernetes.answers[NODES] = web.Response(body=body)
    with pytest.raises(BackendError, match="none of an API server"):
        await make_node_source(client).list({})


async def test_an_object_of_odd_parts_is_left_out_and_stops_no_other(
    kubernetes: Kubernetes, client: Client
) -> None:
    odd = {"metadata": {"name": "odd", "resourceVersion": "1", "annotations": []}, "spec": 7}
    kubernetes.lists[NODES] = [odd, *make_nodes(1)]
    backend = KubernetesBackend(client)
    assert [node.name for node in (await backend.snapshot()).nodes] == ["n0000", "odd"]
    await backend.close()


def make_lines(events: Iterable[object]) -> list[bytes]:
    return [json.dumps(event).encode() + b"\n" for event in events]


async def watch_to_its_end(client: Client) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        async for _ in make_node_source(client).watch("1", {}):
            pass
