"""The stores that the contract is tried on, each with an operator who has hands.

A new backend is one more entry in ``STORES``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Protocol

import yaml

from kilo.backends.base import Backend
from kilo.backends.documents import make_node_document, make_settings_document
from kilo.backends.etcd.backend import EtcdBackend
from kilo.backends.etcd.keys import Keys
from kilo.backends.file.backend import FileBackend
from kilo.backends.joining import JoinedBackend
from kilo.backends.kubernetes.backend import KubernetesBackend
from kilo.backends.kubernetes.client import Access, Client
from kilo.backends.kubernetes.settings import SETTINGS_NAME, make_config_map
from kilo.backends.memory import MemoryBackend
from kilo.lab.apicalls import RefusedError
from kilo.mesh.model import NodeSpec, PartialSettings
from tests.backends.etcds import Etcd, connect, share_etcd
from tests.cluster.planes import CONFIG_MAPS, NAMESPACE, Cluster, share_plane
from tests.cluster.relay import Relay

NOW = 1_700_000_000


class Clock:
    """A wall clock that a test turns."""

    def __init__(self) -> None:
        self.seconds = float(NOW)

    def __call__(self) -> float:
        return self.seconds


class Operator(Protocol):
    """What people and faults do to a store, past the backend."""

    def register(self, name: str) -> None:
        """What comes before an agent where machines are registered by somebody else."""
        ...

    def put_node(self, name: str, spec: NodeSpec) -> None: ...
    def delete_node(self, name: str) -> None: ...
    def put_settings(self, settings: PartialSettings) -> None: ...
    def delete_settings(self) -> None: ...
    def put_document(self, source: str, document: object) -> None: ...
    def delete_document(self, source: str) -> None: ...
    def go_away(self) -> None: ...
    def come_back(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Store:
    """A backend, a second one on the same store, and the store's operator."""

    backend: Backend
    other: Backend
    operator: Operator
    clock: Clock


class DirectoryOperator:
    """Writes files with a text editor, moves the directory away and back."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._aside = directory.with_name("aside")

    def register(self, name: str) -> None:
        """Nothing: an agent's report will do."""

    def put_node(self, name: str, spec: NodeSpec) -> None:
        self.put_document(f"node-{name}", make_node_document(name, spec))

    def delete_node(self, name: str) -> None:
        self.delete_document(f"node-{name}")

    def put_settings(self, settings: PartialSettings) -> None:
        self.put_document("settings", make_settings_document(settings))

    def delete_settings(self) -> None:
        self.delete_document("settings")

    def delete_document(self, source: str) -> None:
        (self._directory / f"{source}.yaml").unlink()

    def put_document(self, source: str, document: object) -> None:
        (self._directory / f"{source}.yaml").write_text(yaml.safe_dump(document))

    def go_away(self) -> None:
        self._directory.rename(self._aside)

    def come_back(self) -> None:
        self._aside.rename(self._directory)


class MemoryOperator:
    """Uses the hands that the memory backend has for tests."""

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend
        self.put_node = backend.put_node
        self.delete_node = backend.delete_node
        self.put_settings = backend.put_settings
        self.delete_settings = backend.delete_settings
        self.put_document = backend.put_document
        self.delete_document = backend.delete_document
        self.come_back = backend.come_back

    def register(self, name: str) -> None:
        """Nothing: an agent's report will do."""

    def go_away(self) -> None:
        self._backend.go_away("gone")


class JoinedOperator(MemoryOperator):
    """Has a hand in two stores: what is wrong stands in the second, all else in the first, where
    agents publish.
    """

    def __init__(self, first: MemoryBackend, second: MemoryBackend) -> None:
        super().__init__(first)
        self._stores = first, second
        self.put_document = second.put_document
        self.delete_document = second.delete_document
        self.come_back = self._come_back

    def go_away(self) -> None:
        for store in self._stores:
            store.go_away("gone")

    def _come_back(self) -> None:
        for store in self._stores:
            store.come_back()


class ClusterOperator:
    """Has the administrator's rights, writes past the API server, and breaks the way to it."""

    def __init__(self, cluster: Cluster, relay: Relay) -> None:
        self._cluster = cluster
        self._plane = cluster.plane
        self.delete_node = cluster.delete_node
        self.go_away = relay.refuse
        self.come_back = relay.resume

    def register(self, name: str) -> None:
        """As a kubelet does, where nobody gives pod CIDRs."""
        self._cluster.put_node(name, pod_cidrs=())

    def put_node(self, name: str, spec: NodeSpec) -> None:
        """Only what the contract's nodes are declared with."""
        annotations = {"location": spec.location} if spec.location else {}
        try:
            subnets = tuple(map(str, spec.pod_subnets))
            self._cluster.put_node(name, annotations, pod_cidrs=subnets)
        except RefusedError:
            self._cluster.annotate(name, annotations)

    def put_settings(self, settings: PartialSettings) -> None:
        document = make_config_map(settings, namespace=NAMESPACE)
        self._plane.call("POST", CONFIG_MAPS, document)

    def delete_settings(self) -> None:
        self._plane.call("DELETE", f"{CONFIG_MAPS}/{SETTINGS_NAME}")

    def put_document(self, source: str, document: object) -> None:
        """A Peer such as an older CustomResourceDefinition lets in."""
        self._plane.etcdctl("put", f"/registry/kilo.squat.ai/peers/{source}", text=dumps(document))

    def delete_document(self, source: str) -> None:
        self._plane.etcdctl("del", f"/registry/kilo.squat.ai/peers/{source}")


class EtcdOperator:
    """Uses ``etcdctl``, and breaks the way to the store."""

    def __init__(self, etcd: Etcd, keys: Keys, relay: Relay) -> None:
        self._etcd = etcd
        self._keys = keys
        self.go_away = relay.refuse
        self.come_back = relay.resume

    def register(self, name: str) -> None:
        """Nothing: an agent's report will do."""

    def put_node(self, name: str, spec: NodeSpec) -> None:
        self._put(self._keys.node(name), make_node_document(name, spec))

    def delete_node(self, name: str) -> None:
        self._etcd.ctl("del", self._keys.node(name))

    def put_settings(self, settings: PartialSettings) -> None:
        self._put(self._keys.settings, make_settings_document(settings))

    def delete_settings(self) -> None:
        self._etcd.ctl("del", self._keys.settings)

    def put_document(self, source: str, document: object) -> None:
        """As a peer, whatever it is."""
        self._put(f"{self._keys.prefix}peers/{source}", document)

    def delete_document(self, source: str) -> None:
        self._etcd.ctl("del", f"{self._keys.prefix}peers/{source}")

    def _put(self, key: str, document: object) -> None:
        self._etcd.ctl("put", key, text=dumps(document))


@contextlib.asynccontextmanager
async def open_memory(_directory: Path) -> AsyncIterator[Store]:
    clock = Clock()
    backend = MemoryBackend(wall_clock=clock)
    yield Store(backend=backend, other=backend, operator=MemoryOperator(backend), clock=clock)
    await backend.close()


@contextlib.asynccontextmanager
async def open_joined(_directory: Path) -> AsyncIterator[Store]:
    clock = Clock()
    first, second = MemoryBackend(wall_clock=clock), MemoryBackend(wall_clock=clock)
    backend = JoinedBackend({"etcd": first, "file": second})
    other = JoinedBackend({"file": second, "etcd": first})
    operator = JoinedOperator(first, second)
    yield Store(backend=backend, other=other, operator=operator, clock=clock)
    await backend.close()
    await other.close()


@contextlib.asynccontextmanager
async def open_directory(directory: Path) -> AsyncIterator[Store]:
    clock = Clock()
    mesh = directory / "mesh"
    mesh.mkdir()
    backend, other = FileBackend(mesh, wall_clock=clock), FileBackend(mesh, wall_clock=clock)
    yield Store(backend=backend, other=other, operator=DirectoryOperator(mesh), clock=clock)
    await backend.close()
    await other.close()


@contextlib.asynccontextmanager
async def open_cluster(_directory: Path) -> AsyncIterator[Store]:
    clock = Clock()
    plane = share_plane()
    cluster = Cluster(plane)
    with Relay(port=plane.files.port) as relay:
        groups = ["system:masters"]
        config = plane.make_kubeconfig("contract", server=relay.server, groups=groups)
        access = Access(kubeconfig=str(config))
        backend = KubernetesBackend(Client(access), wall_clock=clock)
        other = KubernetesBackend(Client(access), wall_clock=clock)
        operator = ClusterOperator(cluster, relay)
        yield Store(backend=backend, other=other, operator=operator, clock=clock)
        await backend.close()
        await other.close()
    cluster.empty()


@contextlib.asynccontextmanager
async def open_etcd(directory: Path) -> AsyncIterator[Store]:
    clock = Clock()
    etcd = share_etcd()
    keys = Keys(f"/{directory.name}/")
    with Relay(port=etcd.port) as relay:
        way = f"http://127.0.0.1:{relay.port}"
        backend = EtcdBackend(connect(way), keys, wall_clock=clock)
        other = EtcdBackend(connect(way), keys, wall_clock=clock)
        operator = EtcdOperator(etcd, keys, relay)
        yield Store(backend=backend, other=other, operator=operator, clock=clock)
        await backend.close()
        await other.close()
    etcd.ctl("del", "--prefix", keys.prefix)


STORES: dict[str, Callable[[Path], AbstractAsyncContextManager[Store]]] = {
    "memory": open_memory,
    "joined": open_joined,
    "file": open_directory,
    "etcd": open_etcd,
    "kubernetes": open_cluster,
}
