"""What a link reads and writes in a cluster, besides the mesh: Services, and all with its label.

All that a link makes bears a label with its name, and nothing without it is changed or deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kilo.backends.documents import make_peer_document
from kilo.backends.entries import Entry
from kilo.backends.kubernetes.client import JSON_PATCH, MERGE_PATCH, ApiError, Client
from kilo.backends.kubernetes.sources import FORBIDDEN, NOT_FOUND, PEERS, ObjectSource
from kilo.backends.listwatch import FOLLOWER, Collection
from kilo.errors import BackendError
from kilo.kgctl.clustermirror import (
    LINK_LABEL,
    Document,
    ObjectChange,
    ServiceName,
    describe_taken,
    find_service,
)
from kilo.mesh.model import Peer, Snapshot

DISCOVERY = "/apis/discovery.k8s.io"
LABEL_POINTER = f"/metadata/labels/{LINK_LABEL.replace('/', '~1')}"
CONFLICT, INVALID = 409, 422
PAGE = 200
"""Objects of a list at a time."""
NOTHING = Snapshot()
"""What a Service adds to a mesh."""


class LinkedCluster:
    """One cluster. Implements ``PeerWriter`` and ``Services``."""

    def __init__(self, client: Client, link: str) -> None:
        self._client = client
        self._link = link
        self._slices = ""

    # Peers

    async def put_peer(self, peer: Peer) -> None:
        """See the protocol."""
        try:
            document = make_peer_document(peer)
        except ValueError as error:
            raise BackendError(f"kubernetes: {error}") from error
        metadata = {"name": peer.name, "labels": {LINK_LABEL: self._link}}
        try:
            await self._client.call("POST", PEERS, body=document | {"metadata": metadata})
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            await self._replace_peer(peer.name, document["spec"])

    async def _replace_peer(self, name: str, spec: object) -> None:
        patch = [
            {"op": "test", "path": LABEL_POINTER, "value": self._link},
            {"op": "replace", "path": "/spec", "value": spec},
        ]
        try:
            await self._client.call("PATCH", f"{PEERS}/{name}", body=patch, content_type=JSON_PATCH)
        except ApiError as error:
            # The test failed; or the spec was refused, and then it would have been when created.
            if error.status == INVALID and not await self._is_own(f"{PEERS}/{name}"):
                raise _refuse("Peer", name, self._link) from error
            raise

    async def delete_peer(self, name: str) -> None:
        """See the protocol."""
        await self._delete(f"{PEERS}/{name}", "Peer", name)

    async def _is_own(self, path: str) -> bool:
        return self._has_label(await self._client.call("GET", path))

    def _has_label(self, document: Document) -> bool:
        labels = document["metadata"].get("labels") or {}
        return bool(labels.get(LINK_LABEL) == self._link)

    async def _delete(self, path: str, kind: str, name: str) -> None:
        """The very object that was looked at."""
        try:
            found = await self._client.call("GET", path)
            if not self._has_label(found):
                raise _refuse(kind, name, self._link)
            body = {"preconditions": {"uid": found["metadata"]["uid"]}}
            await self._client.call("DELETE", path, body=body)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise

    # Services

    async def read(self, name: ServiceName) -> Document | None:
        """See the protocol."""
        try:
            return await self._client.call("GET", f"{_find_services(name)}/{name.name}")
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return None

    def follow(self, name: ServiceName, changed: Callable[[], None]) -> FollowedService:
        """See the protocol."""
        return FollowedService(self._client, name, changed)

    async def list_mirrors(self) -> list[Document] | None:
        """See the protocol; those of all namespaces."""
        try:
            slices = await self._find_slices()
            services = await self._list("/api/v1/services", "Service")
            return [*services, *await self._list(f"{slices}/endpointslices", "EndpointSlice")]
        except ApiError as error:
            if error.status != FORBIDDEN:
                raise
            return None

    async def is_taken(self, name: ServiceName) -> bool:
        """See the protocol."""
        found = await self.read(name)
        return found is not None and not self._has_label(found)

    async def change_mirror(self, change: ObjectChange) -> None:
        """Write it; ``BackendError`` for one that is there and not the link's, and for a slice
        whose Service is not.
        """
        path = await self._find_path(change)
        name, document = change.service.name, change.document
        if document is None:
            await self._delete(f"{path}/{name}", change.kind, str(change.service))
            return
        if change.kind == "EndpointSlice":
            await self._check_service(find_service(document))
        if change.held is None:
            await self._create(path, change, document)
        else:
            await self._merge(f"{path}/{name}", document, change.held)

    async def _check_service(self, name: ServiceName) -> None:
        """A slice would take a part of a Service's traffic away, whosever that is."""
        service = await self.read(name)
        if service is None:
            raise BackendError(f"there is no Service {name}")
        if not self._has_label(service):
            raise _refuse("Service", str(name), self._link)

    async def _create(self, path: str, change: ObjectChange, document: Document) -> None:
        body = document
        if change.kind == "EndpointSlice":
            version = (await self._find_slices()).removeprefix("/apis/")
            body = {"apiVersion": version, **body}
        try:
            await self._client.call("POST", path, body=body)
        except ApiError as error:
            if error.status == CONFLICT:
                await self._replace(f"{path}/{change.service.name}", change, document)
                return
            if error.status == NOT_FOUND:
                raise BackendError(
                    f"{change}: there is no namespace {change.service.namespace}"
                ) from error
            raise

    async def _replace(self, path: str, change: ObjectChange, document: Document) -> None:
        """What has come meanwhile: another run of the same link may have been faster."""
        found = await self._client.call("GET", path)
        if not self._has_label(found):
            raise _refuse(change.kind, str(change.service), self._link)
        await self._merge(path, document, found)

    async def _merge(self, path: str, document: Document, held: Document) -> None:
        fields: Document = {
            name: document[name] for name in ("spec", "endpoints", "ports") if name in document
        }
        if "spec" in fields:
            fields["spec"] = {**fields["spec"], "selector": None}
        metadata = {
            "labels": document["metadata"]["labels"],
            "resourceVersion": held["metadata"]["resourceVersion"],
        }
        body = {"metadata": metadata, **fields}
        await self._client.call("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def _find_path(self, change: ObjectChange) -> str:
        prefix = "/api/v1" if change.kind == "Service" else await self._find_slices()
        plural = f"{change.kind.lower()}s"
        return f"{prefix}/namespaces/{change.service.namespace}/{plural}"

    async def _find_slices(self) -> str:
        """The group and version of EndpointSlices: v1 from Kubernetes 1.21 on."""
        if not self._slices:
            group = await self._client.call("GET", DISCOVERY)
            versions = [one["version"] for one in group["versions"]]
            self._slices = f"{DISCOVERY}/{'v1' if 'v1' in versions else versions[0]}"
        return self._slices

    async def _list(self, path: str, kind: str) -> list[Document]:
        found: list[Document] = []
        query = {"labelSelector": f"{LINK_LABEL}={self._link}", "limit": str(PAGE)}
        while True:
            page: dict[str, Any] = await self._client.call("GET", path, query=query)
            found += ({**item, "kind": kind} for item in page["items"] or ())
            token = page["metadata"].get("continue")
            if not token:
                return found
            query["continue"] = token


class FollowedService:
    """A Service that is listed and watched. Implements the protocol of its name."""

    def __init__(self, client: Client, name: ServiceName, changed: Callable[[], None]) -> None:
        selector = {"fieldSelector": f"metadata.name={name.name}"}
        source = ObjectSource(client, _find_services(name), _keep, selector=selector)
        self._collection = Collection(source, self, pace=FOLLOWER)
        self._changed = changed

    async def run(self) -> None:
        """See the protocol."""
        await self._collection.run()

    @property
    def is_known(self) -> bool:
        """See the protocol."""
        return self._collection.is_listed

    @property
    def error(self) -> BackendError | None:
        """See the protocol."""
        return self._collection.error

    @property
    def document(self) -> Document | None:
        """See the protocol."""
        item = next(iter(self._collection.items.values()), None)
        kept: Document | None = item.value.essence if item else None  # type: ignore[assignment]  # as ``_keep`` made it
        return kept

    # What a collection tells.

    def note_change(self, old: Entry | None, new: Entry | None) -> None:  # noqa: ARG002 - what it is now is asked for
        """It came, went or changed."""
        self._changed()

    def note_state(self) -> None:
        """It is known now, or its server is away or back."""
        self._changed()

    def note_put_back(self) -> None:
        """What is held is listed anew anyway."""


def _keep(document: Mapping[str, Any], held: Entry | None) -> Entry:
    """Only what a mirror is made of, so that nothing else is a change."""
    labels = dict(document["metadata"].get("labels") or {})
    essence = {"metadata": {"labels": labels}, "spec": document["spec"]}
    entry = Entry(essence=essence, part=NOTHING)
    return held if held == entry else entry


def _find_services(name: ServiceName) -> str:
    """The path of the Services of its namespace; the names hold nothing that needs quoting."""
    return f"/api/v1/namespaces/{name.namespace}/services"


def _refuse(kind: str, name: str, link: str) -> BackendError:
    return BackendError(describe_taken(kind, name, link))
