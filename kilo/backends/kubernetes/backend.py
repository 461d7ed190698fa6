"""The Kubernetes backend: watching, writing and remarking, as the ``Backend`` contract wants."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

from kilo.backends.annotations import REPORTED_ANNOTATIONS, make_report_annotations
from kilo.backends.documents import (
    DEFAULT_TOPOLOGY_LABEL,
    check_object_name,
    make_peer_document,
)
from kilo.backends.entries import join_entries
from kilo.backends.kubernetes.client import JSON_PATCH, ApiError, Client
from kilo.backends.kubernetes.declaring import Declarer, annotate_node
from kilo.backends.kubernetes.entries import decode_node
from kilo.backends.kubernetes.remarking import Remarker
from kilo.backends.kubernetes.sources import (
    CRD_NAME,
    NODES,
    NOT_FOUND,
    PEERS,
    ObjectSource,
    PeerSource,
    SettingsSource,
)
from kilo.backends.watching import StoreWatch
from kilo.errors import BackendError, flatten_errors
from kilo.mesh.model import NodeReport, NodeSpec, PartialSettings, Peer, Snapshot
from kilo.mesh.remarks import Remarks
from kilo.notices import Notices

ALREADY_EXISTS = "AlreadyExists"
MAX_TRIES = 3
"""To put a peer that others create and delete at the same time."""


class KubernetesBackend:
    """The objects of a cluster. Implements ``Backend``; for one event loop."""

    def __init__(
        self,
        client: Client,
        *,
        topology_label: str = DEFAULT_TOPOLOGY_LABEL,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """``client`` is closed with the backend."""
        self._client = client
        self._wall_clock = wall_clock
        decode = partial(decode_node, topology_label=topology_label)
        self._sources: dict[str, ObjectSource] = {
            "nodes": ObjectSource(client, NODES, decode),
            "peers": PeerSource(client),
            "settings": SettingsSource(client, Notices("kubernetes")),
        }
        self._declarer = Declarer(client)
        self._remarker = Remarker(client)
        self._watches: weakref.WeakSet[StoreWatch] = weakref.WeakSet()
        self._is_closed = False

    def watch(self) -> AsyncGenerator[Snapshot | BackendError, None]:
        """The snapshot now and after every change; see the contract."""
        watch = StoreWatch(self._sources)
        self._watches.add(watch)
        if self._is_closed:
            watch.end()
        return watch.follow()

    async def snapshot(self) -> Snapshot:
        """What the cluster holds now: three lists at once."""
        self._check_open()
        try:
            async with asyncio.TaskGroup() as group:
                lists = [group.create_task(one.list({})) for one in self._sources.values()]
        except* BackendError as errors:
            raise flatten_errors(errors)[0] from None
        return join_entries([one.result().items for one in lists])

    async def publish(self, report: NodeReport) -> None:
        """Replace our annotations of the Node, all in one patch."""
        self._check_open()
        last_seen = int(self._wall_clock())
        annotations = make_report_annotations(report, last_seen=last_seen)
        try:
            await annotate_node(self._client, report.name, annotations)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            raise BackendError(
                f"kubernetes: Node {report.name} is not registered in the cluster"
                " (is --hostname the node's name?)"
            ) from error

    async def withdraw(self, name: str) -> None:
        """Remove our annotations of the Node, whichever of them are there."""
        self._check_open()
        try:
            await annotate_node(self._client, name, dict.fromkeys(REPORTED_ANNOTATIONS))
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise

    async def put_peer(self, peer: Peer) -> None:
        """Create the Peer; where there is one, replace its whole ``spec`` and nothing else."""
        self._check_open()
        try:
            document = make_peer_document(peer)
        except ValueError as error:
            raise BackendError(f"kubernetes: {error}") from error
        for _ in range(MAX_TRIES):
            if await self._create_peer(document) or await self._replace_peer(peer.name, document):
                return
        raise BackendError(f"kubernetes: Peer {peer.name}: comes and goes too fast to be put")

    async def delete_peer(self, name: str) -> None:
        """Delete the Peer."""
        self._check_open()
        self._check_name("Peer", name)
        try:
            await self._client.call("DELETE", f"{PEERS}/{name}")
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise

    async def declare_node(self, name: str, spec: NodeSpec) -> None:
        """Replace the operator's annotations of the Node."""
        self._check_open()
        await self._declarer.declare_node(name, spec)

    async def forget_node(self, name: str) -> None:
        """Remove the operator's annotations of the Node, and its agent's."""
        self._check_open()
        await self._declarer.forget_node(name)

    async def declare_settings(self, settings: PartialSettings) -> None:
        """Write the ConfigMap of the settings."""
        self._check_open()
        await self._declarer.declare_settings(settings)

    async def forget_settings(self) -> None:
        """Delete the ConfigMap of the settings."""
        self._check_open()
        await self._declarer.forget_settings()

    async def remark(self, remarks: Remarks) -> None:
        """Events, and the status of Peers."""
        self._check_open()
        await self._remarker.remark(remarks)

    async def close(self) -> None:
        """End every watch, and the client."""
        self._is_closed = True
        for watch in tuple(self._watches):
            await watch.stop()
        await self._client.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise BackendError("kubernetes: closed")

    def _check_name(self, kind: str, name: str) -> None:
        """A name that follows the rule needs no quoting in a path."""
        try:
            check_object_name(kind, name)
        except ValueError as error:
            raise BackendError(f"kubernetes: {error}") from error

    async def _create_peer(self, document: dict[str, Any]) -> bool:
        """Whether it was not there."""
        try:
            await self._client.call("POST", PEERS, body=document)
        except ApiError as error:
            if error.status == NOT_FOUND:
                raise BackendError(
                    f"kubernetes: the CustomResourceDefinition {CRD_NAME} is not installed:"
                    " kubectl apply -f examples/kubernetes/base/crd.yaml"
                ) from error
            if error.reason != ALREADY_EXISTS:
                raise
            return False
        return True

    async def _replace_peer(self, name: str, document: dict[str, Any]) -> bool:
        """Whether it was still there."""
        # Not a merge patch, which would leave fields that the new one does not have.
        patch = [{"op": "replace", "path": "/spec", "value": document["spec"]}]
        try:
            await self._client.call("PATCH", f"{PEERS}/{name}", body=patch, content_type=JSON_PATCH)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return False
        return True
