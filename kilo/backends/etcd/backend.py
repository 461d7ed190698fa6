"""The etcd backend: watching and writing, as the ``Backend`` contract wants."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Protocol

from kilo.backends.documents import (
    make_node_document,
    make_peer_document,
    make_report_document,
    make_settings_document,
)
from kilo.backends.entries import join_entries
from kilo.backends.etcd import pools
from kilo.backends.etcd.asks import Ask, delete, put
from kilo.backends.etcd.client import Client
from kilo.backends.etcd.failures import EtcdError
from kilo.backends.etcd.keys import Keys
from kilo.backends.etcd.lease import LEASE_SECONDS, RENEW_SECONDS, Lease, is_lease_lost
from kilo.backends.etcd.source import KeySource
from kilo.backends.etcd.views import encode_document
from kilo.backends.watching import StoreWatch
from kilo.errors import BackendError
from kilo.mesh.model import NodeReport, NodeSpec, PartialSettings, Peer, Snapshot
from kilo.mesh.remarks import Remarks


class Registration(Protocol):
    """How a node that nobody declared comes to be declared."""

    async def ensure(self, name: str) -> None:
        """See to it that the node is declared. ``BackendError`` if it is not to report itself."""
        ...

    async def provide(self, name: str) -> None:
        """Give the node, which has reported itself, what it is due. ``BackendError`` if not."""
        ...

    def note_change(self, key: str) -> None:
        """The key has another value, or is gone."""
        ...


class EtcdBackend:
    """Keys of an etcd. Implements ``Backend``; for one event loop."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        *,
        registration: Registration | None = None,
        wall_clock: Callable[[], float] = time.time,
        lease_seconds: int = LEASE_SECONDS,
        renew_seconds: float = RENEW_SECONDS,
    ) -> None:
        """``client`` is closed with the backend."""
        self._client = client
        self._keys = keys
        self._registration = registration
        self._wall_clock = wall_clock
        self._source = KeySource(client, keys)
        note = registration.note_change if registration else None
        self._watched = KeySource(client, keys, note_change=note)
        self._reports: dict[str, NodeReport] = {}
        """What is published, to be put again should the lease be lost."""
        self._writing = asyncio.Lock()  # of reports: one put anew must not outlive its withdrawal
        self._lease = Lease(
            client, restore=self._restore, seconds=lease_seconds, renew_seconds=renew_seconds
        )
        self._watches: weakref.WeakSet[StoreWatch] = weakref.WeakSet()
        self._is_closed = False

    def watch(self) -> AsyncGenerator[Snapshot | BackendError, None]:
        """The snapshot now and after every change; see the contract."""
        watch = StoreWatch({"all": self._watched})
        self._watches.add(watch)
        if self._is_closed:
            watch.end()
        return watch.follow()

    async def snapshot(self) -> Snapshot:
        """What is below the prefix now."""
        self._check_open()
        return join_entries([(await self._source.list({})).items])

    async def publish(self, report: NodeReport) -> None:
        """Put the report, under our lease.

        Not before the node is declared, where it is to declare itself: it would take part in a
        location that is not its own.
        """
        self._check_open()
        self._keys.report(report.name)  # its name is checked before anything is asked
        if self._registration:
            await self._registration.ensure(report.name)
        async with self._writing:
            self._reports[report.name] = report
            await self._put_report(report)
        if self._registration:
            await self._registration.provide(report.name)

    async def withdraw(self, name: str) -> None:
        """Delete the report."""
        self._check_open()
        key = self._keys.report(name)
        async with self._writing:
            self._reports.pop(name, None)
            await self._client.call(delete(key))

    async def put_peer(self, peer: Peer) -> None:
        """Put the peer, in place of the one of its name."""
        await self._put(self._keys.peer(peer.name), lambda: make_peer_document(peer))

    async def delete_peer(self, name: str) -> None:
        """Delete the peer."""
        await self._delete(self._keys.peer(name))

    async def declare_node(self, name: str, spec: NodeSpec) -> None:
        """Put the node, in place of what was declared before; subnets of pools stay its own."""
        self._check_open()
        key = self._keys.node(name)
        whole = await pools.complete_spec(self._client, self._keys, name, spec)
        await self._put(key, lambda: make_node_document(name, whole))

    async def forget_node(self, name: str) -> None:
        """Delete the node and release its subnets in one step, then its report."""
        self._check_open()
        await pools.release(self._client, self._keys, name)
        await self.withdraw(name)

    async def declare_settings(self, settings: PartialSettings) -> None:
        """Put the settings, in place of those before."""
        await self._put(self._keys.settings, lambda: make_settings_document(settings))

    async def forget_settings(self) -> None:
        """Delete the settings."""
        await self._delete(self._keys.settings)

    async def remark(self, remarks: Remarks) -> None:
        """Nothing: an etcd has no place for them; the agent's log has."""

    async def close(self) -> None:
        """End every watch, and the client; the report stays for as long as its lease."""
        self._is_closed = True
        for watch in tuple(self._watches):
            await watch.stop()
        await self._lease.stop()
        await self._client.close()

    # How it is done.

    def _check_open(self) -> None:
        if self._is_closed:
            raise BackendError("etcd: closed")

    async def _put(self, key: str, make: Callable[[], Mapping[str, object]]) -> None:
        self._check_open()
        await self._client.call(put(key, _encode(make)))

    async def _delete(self, key: str) -> None:
        self._check_open()
        await self._client.call(delete(key))

    # Reports

    async def _put_report(self, report: NodeReport) -> None:
        """Under the lease, or under a new one if that is gone."""
        lease = await self._lease.get()
        try:
            await self._client.call(self._make_put(report, lease))
        except EtcdError as error:
            if not is_lease_lost(error):
                raise
            self._lease.lose(lease)
            await self._client.call(self._make_put(report, await self._lease.get()))

    def _make_put(self, report: NodeReport, lease: int) -> Ask:
        last_seen = int(self._wall_clock())
        value = _encode(lambda: make_report_document(report, last_seen=last_seen))
        return put(self._keys.report(report.name), value, lease=lease)

    async def _restore(self) -> None:
        """Put what the lost lease took along, stamped as seen now: whoever does so lives."""
        async with self._writing:
            for report in tuple(self._reports.values()):
                await self._put_report(report)


def _encode(make: Callable[[], Mapping[str, object]]) -> bytes:
    """A document as it is stored. ``BackendError`` for what cannot be written down."""
    try:
        return encode_document(make())
    except ValueError as error:
        raise BackendError(f"etcd: {error}") from error
