"""A backend in one process: the reference implementation of the contract, and a test double.

It stores documents, not values, and reads them with the schema that every store uses, so it
is as strict as a real one. What only an operator or a fault could do to a store, a test does by
the methods below the contract's.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager

from kilo.backends.documents import (
    DEFAULT_TOPOLOGY_LABEL,
    make_node_document,
    make_peer_document,
    make_report_document,
    make_settings_document,
    read_document,
)
from kilo.backends.news import News
from kilo.backends.objects import Found, join_objects
from kilo.errors import BackendError
from kilo.mesh.model import Node, NodeReport, NodeSpec, PartialSettings, Peer, Problem, Snapshot
from kilo.mesh.remarks import Remarks


class MemoryBackend:
    """Nodes, peers and settings in a dict. Implements ``Backend``; for one event loop."""

    def __init__(
        self,
        *,
        nodes: Iterable[Node] = (),
        peers: Iterable[Peer] = (),
        settings: PartialSettings | None = None,
        topology_label: str = DEFAULT_TOPOLOGY_LABEL,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._documents: dict[str, object] = {}
        self._topology_label = topology_label
        self._wall_clock = wall_clock
        self.remarks = Remarks()
        """The last that were given."""
        self._away = ""
        self._is_closed = False
        self._wakes: set[asyncio.Event] = set()
        for node in nodes:
            self._store_node(node)
        for peer in peers:
            self._store_peer(peer)
        if settings is not None:
            self.put_settings(settings)

    # The contract.

    async def watch(self) -> AsyncIterator[Snapshot | BackendError]:
        """The snapshot now and after every change."""
        news = News()
        wake = asyncio.Event()
        self._wakes.add(wake)
        try:
            while not self._is_closed:
                wake.clear()
                outcome = self._read_or_error()
                if news.notice(outcome):
                    yield outcome
                else:
                    await wake.wait()
        finally:
            self._wakes.discard(wake)

    async def snapshot(self) -> Snapshot:
        """What is stored now."""
        return self._read()

    async def publish(self, report: NodeReport) -> None:
        """Store the report, stamped by the wall clock."""
        self._check_here()
        self.put_report(report, last_seen=int(self._wall_clock()))

    async def withdraw(self, name: str) -> None:
        """Forget the report."""
        self._check_here()
        self._remove(f"NodeReport {name}")

    async def put_peer(self, peer: Peer) -> None:
        """Store the peer."""
        self._check_here()
        self._store_peer(peer)

    async def delete_peer(self, name: str) -> None:
        """Forget the peer."""
        self._check_here()
        self._remove(f"Peer {name}")

    async def declare_node(self, name: str, spec: NodeSpec) -> None:
        """Store the declaration."""
        self._check_here()
        self.put_node(name, spec)

    async def forget_node(self, name: str) -> None:
        """Forget the declaration and the report."""
        self._check_here()
        self._remove(f"Node {name}")
        self._remove(f"NodeReport {name}")

    async def declare_settings(self, settings: PartialSettings) -> None:
        """Store the settings."""
        self._check_here()
        self.put_settings(settings)

    async def forget_settings(self) -> None:
        """Forget the settings."""
        self._check_here()
        self._remove("Settings")

    async def remark(self, remarks: Remarks) -> None:
        """Keep them, for tests to read."""
        self._check_here()
        self.remarks = remarks

    async def close(self) -> None:
        """End every watch."""
        self._is_closed = True
        self._wake_all()

    # What an operator, another node or a fault does.

    def put_node(self, name: str, spec: NodeSpec) -> None:
        """Declare a node."""
        with _refusing():
            document = make_node_document(name, spec)
        self._store(f"Node {name}", document)

    def delete_node(self, name: str) -> None:
        """Take the declaration of a node away; its report stays."""
        self._remove(f"Node {name}")

    def put_report(self, report: NodeReport, *, last_seen: int | None) -> None:
        """Store another node's report with a stamp of any age."""
        with _refusing():
            document = make_report_document(report, last_seen=last_seen)
        self._store(f"NodeReport {report.name}", document)

    def put_settings(self, settings: PartialSettings) -> None:
        """Replace the settings."""
        self._store("Settings", make_settings_document(settings))

    def delete_settings(self) -> None:
        """Take the settings away."""
        self._remove("Settings")

    def put_document(self, source: str, document: object) -> None:
        """Store anything at all, under a name that its problems will bear."""
        self._store(source, document)

    def delete_document(self, source: str) -> None:
        """Take away what ``put_document`` stored."""
        self._remove(source)

    def go_away(self, reason: str) -> None:
        """From now on the store cannot be used, for that reason."""
        self._away = reason
        self._wake_all()

    def come_back(self) -> None:
        """The store can be used again."""
        self._away = ""
        self._wake_all()

    # How it is done.

    def _store_node(self, node: Node) -> None:
        self.put_node(node.name, node.spec)
        if node.report:
            self.put_report(node.report, last_seen=int(self._wall_clock()))

    def _store_peer(self, peer: Peer) -> None:
        with _refusing():
            document = make_peer_document(peer)
        self._store(f"Peer {peer.name}", document)

    def _store(self, source: str, document: object) -> None:
        self._documents[source] = copy.deepcopy(document)
        self._wake_all()

    def _remove(self, source: str) -> None:
        self._documents.pop(source, None)
        self._wake_all()

    def _wake_all(self) -> None:
        for wake in self._wakes:
            wake.set()

    def _check_here(self) -> None:
        if self._is_closed:
            raise BackendError("memory: closed")
        if self._away:
            raise BackendError(f"memory: {self._away}")

    def _read_or_error(self) -> Snapshot | BackendError:
        try:
            return self._read()
        except BackendError as error:
            return error

    def _read(self) -> Snapshot:
        self._check_here()
        found: list[Found] = []
        problems: list[Problem] = []
        for source, document in sorted(self._documents.items()):
            reading = read_document(document, source=source, topology_label=self._topology_label)
            found += reading.found
            problems += reading.problems
        return join_objects(found, problems)


@contextmanager
def _refusing() -> Iterator[None]:
    """``BackendError`` for what no document can be made of."""
    try:
        yield
    except ValueError as error:
        raise BackendError(f"memory: {error}") from error
