"""How a cluster's Nodes, Peers and the ConfigMap of the settings are listed and watched."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from kilo.backends.documents import API_VERSION
from kilo.backends.entries import Entry, Items, make_problem_entry
from kilo.backends.fields import shorten
from kilo.backends.kubernetes.client import ApiError, Client
from kilo.backends.kubernetes.entries import SOURCE, decode_peer, decode_settings
from kilo.backends.kubernetes.settings import SETTINGS_NAME
from kilo.backends.source import (
    Bookmark,
    BusyError,
    Delete,
    Event,
    ExpiredError,
    Item,
    Listing,
    Opened,
    Probe,
    Put,
)
from kilo.errors import BackendError
from kilo.mesh.model import Problem
from kilo.notices import Notices

NODES = "/api/v1/nodes"
PEERS = f"/apis/{API_VERSION}/peers"
CRD_NAME = "peers.kilo.squat.ai"
CRD = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD_NAME}"

PAGE, FEW = 100, 10
"""Objects of a page of a list, and of a probe. All nodes of a small mesh, which is the one whose
stream may fall silent, are in a probe; the silence of a big one is a fault in itself."""
PROBE_SECONDS = 5.0
SHORTEST_WATCH_SECONDS, LONGEST_WATCH_SECONDS = 300, 600
EARLY_SECONDS = 5.0
"""A watch that ends so long before its time did not end as agreed: a server that stops does so."""
MAX_RESTARTS = 5
"""Of one list whose pages expire while it is read."""

FORBIDDEN, NOT_FOUND, GONE = 403, 404, 410
UNREADABLE = "unreadable"
"""In the place of a revision, for what there is nothing to watch of."""
ABSENT_SECONDS, FORBIDDEN_SECONDS = 30.0, 300.0
"""How long until one looks again."""
SIGN_SECONDS = 30.0
"""How often a watch of nothing says so: its silence would be looked into."""
SECOND_THOUGHT_SECONDS = 2.0
"""A server that has just started may refuse what its rules, once read, allow."""

Decode = Callable[[Mapping[str, Any], Entry | None], Entry]


class ObjectSource:
    """One kind of object of an API server. Implements ``Source``."""

    def __init__(
        self,
        client: Client,
        path: str,
        decode: Decode,
        *,
        selector: Mapping[str, str] | None = None,
    ) -> None:
        self._client = client
        self._path = path
        self._decode = decode
        self._selector = dict(selector or {})

    async def list(self, held: Items) -> Listing[Entry]:
        """All objects, in pages; without a ``resourceVersion``, so that etcd answers."""
        for _ in range(MAX_RESTARTS):
            try:
                with _translated():
                    return await self._list_pages(held)
            except ExpiredError as error:
                expired = error
        raise BackendError(str(expired))

    async def _list_pages(self, held: Items) -> Listing[Entry]:
        items: dict[str, Item[Entry]] = {}
        token = ""
        while True:
            query = {"limit": str(PAGE)} | ({"continue": token} if token else {})
            page = _read_page(await self._get(query))
            items |= (self._make_item(document, held) for document in page.documents)
            token = page.token
            if not token:
                return Listing(items=items, revision=page.revision)

    async def watch(self, revision: str, held: Items) -> AsyncGenerator[Event[Entry], None]:
        """The changes since then, for some minutes."""
        seconds = random.randint(SHORTEST_WATCH_SECONDS, LONGEST_WATCH_SECONDS)  # noqa: S311 - no secret
        query = self._selector | {
            "watch": "true",
            "resourceVersion": revision,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        end = asyncio.get_running_loop().time() + seconds
        with _translated():
            async with aclosing(self._client.stream(self._path, query=query)) as lines:
                async for line in lines:
                    yield self._read_event(line, held) if line else Opened()
        if asyncio.get_running_loop().time() < end - EARLY_SECONDS:
            raise BackendError(f"kubernetes: watch {self._path}: the server ended it early")

    async def probe(self) -> Probe:
        """The first objects."""
        with _translated():
            page = _read_page(await self._get({"limit": str(FEW)}, seconds=PROBE_SECONDS))
        return Probe(revision=page.revision, revisions=dict(map(_identify, page.documents)))

    async def _get(self, query: Mapping[str, str], *, seconds: float = 10.0) -> dict[str, Any]:
        return await self._client.call(
            "GET", self._path, query={**self._selector, **query}, timeout_seconds=seconds
        )

    def _make_item(self, document: Mapping[str, Any], held: Items) -> tuple[str, Item[Entry]]:
        name, revision = _identify(document)
        before = held.get(name)
        value = self._decode(document, before.value if before else None)
        return name, Item(value=value, revision=revision)

    def _read_event(self, line: Mapping[str, Any], held: Items) -> Event[Entry]:
        with expecting_kubernetes():
            kind, document = line["type"], dict(line["object"])
        match kind:
            case "ADDED" | "MODIFIED":
                return Put(*self._make_item(document, held))
            case "DELETED":
                return Delete(*_identify(document))
            case "BOOKMARK":
                return Bookmark(_read_revision(document))
        message, code = document.get("message", kind), document.get("code")
        raise ApiError(
            f"kubernetes: watch {self._path}: {shorten(' '.join(str(message).split()))}",
            status=code if isinstance(code, int) else 0,
        )


class PeerSource(ObjectSource):
    """Peers, which a cluster without their CustomResourceDefinition does not have."""

    def __init__(self, client: Client, *, absent_seconds: float = ABSENT_SECONDS) -> None:
        """``absent_seconds``: from one look for a missing definition to the next."""
        super().__init__(client, PEERS, decode_peer)
        self._absent_seconds = absent_seconds

    async def list(self, held: Items) -> Listing[Entry]:
        """All peers; or none, with one Problem, where nobody installed the definition."""
        try:
            return await super().list(held)
        except ApiError as error:
            # A server that has just started knows no custom resources for a moment.
            if error.status != NOT_FOUND or await self._is_defined():
                raise
        problem = Problem(
            source=SOURCE,
            object=f"CustomResourceDefinition {CRD_NAME}",
            reason="is not installed, so there are no peers:"
            " kubectl apply -f examples/kubernetes/base/crd.yaml",
        )
        missing = Item(value=make_problem_entry(problem), revision="")
        return Listing(items={"": missing}, revision=UNREADABLE)

    async def _is_defined(self) -> bool:
        try:
            await self._client.call("GET", CRD)
        except ApiError as error:
            # Without a reason it is the server that knows no definitions at all yet.
            if error.reason != "NotFound":
                raise
            return False
        return True

    async def watch(self, revision: str, held: Items) -> AsyncGenerator[Event[Entry], None]:
        """The changes since then, or the time until one should look for the definition again."""
        is_absent = revision == UNREADABLE
        events = _wait_for(self._absent_seconds) if is_absent else super().watch(revision, held)
        async with aclosing(events):
            async for event in events:
                yield event


class SettingsSource(ObjectSource):
    """The ConfigMap of the settings, which Kilo's own ClusterRole does not let an agent read."""

    def __init__(
        self,
        client: Client,
        notices: Notices,
        *,
        forbidden_seconds: float = FORBIDDEN_SECONDS,
    ) -> None:
        """``forbidden_seconds``: from one refusal to the next attempt."""
        super().__init__(
            client,
            f"/api/v1/namespaces/{client.namespace}/configmaps",
            decode_settings,
            selector={"fieldSelector": f"metadata.name={SETTINGS_NAME}"},
        )
        self._notices = notices
        self._forbidden_seconds = forbidden_seconds
        self._is_forbidden = False

    async def list(self, held: Items) -> Listing[Entry]:
        """The settings; those held before where they may not be read any more."""
        try:
            listing = await self._list_twice(held)
        except ApiError as error:
            if error.status != FORBIDDEN:
                raise
            self._is_forbidden = True
            self._notices.tell("settings may not be read: done without", [str(error)])
            return Listing(items=held, revision=UNREADABLE)
        self._is_forbidden = False
        self._notices.tell("settings may not be read: done without", ())
        return listing

    async def _list_twice(self, held: Items) -> Listing[Entry]:
        try:
            return await super().list(held)
        except ApiError as error:
            if error.status != FORBIDDEN or self._is_forbidden:
                raise
        await asyncio.sleep(SECOND_THOUGHT_SECONDS)
        return await super().list(held)

    async def watch(self, revision: str, held: Items) -> AsyncGenerator[Event[Entry], None]:
        """The changes since then, or the time until one should ask again."""
        is_refused = revision == UNREADABLE
        events = _wait_for(self._forbidden_seconds) if is_refused else super().watch(revision, held)
        async with aclosing(events):
            async for event in events:
                yield event


async def _wait_for(seconds: float) -> AsyncGenerator[Event[Entry], None]:
    """A watch of nothing, to be followed by a list."""
    yield Opened()
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        await asyncio.sleep(min(seconds, SIGN_SECONDS))
        yield Bookmark(UNREADABLE)
    raise ExpiredError("kubernetes: time to look again")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    documents: Sequence[Mapping[str, Any]]
    revision: str
    token: str
    """Of the next page; empty if there is none."""


def _read_page(answer: Mapping[str, Any]) -> _Page:
    with expecting_kubernetes():
        return _Page(
            documents=list(answer["items"] or ()),
            revision=_read_revision(answer),
            token=answer["metadata"].get("continue") or "",
        )


def _identify(document: Mapping[str, Any]) -> tuple[str, str]:
    """Name and revision."""
    with expecting_kubernetes():
        return str(document["metadata"]["name"]), _read_revision(document)


def _read_revision(document: Mapping[str, Any]) -> str:
    with expecting_kubernetes():
        return str(document["metadata"]["resourceVersion"])


@contextmanager
def expecting_kubernetes() -> Iterator[None]:
    """``BackendError`` for what a document lacks that every document of an API server has.

    Whoever answers may be something else, a proxy's login page say.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        text = f"kubernetes: the answer is none of an API server's: {error!r}"
        raise BackendError(text) from error


@contextmanager
def _translated() -> Iterator[None]:
    """The client's errors, into those that say what to do."""
    try:
        yield
    except ApiError as error:
        if error.status == GONE:
            raise ExpiredError(str(error)) from error
        if error.retry_after_seconds is not None:
            raise BusyError(str(error), seconds=error.retry_after_seconds) from error
        raise
