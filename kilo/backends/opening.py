"""The one list of backends in the program. Each is imported only when it is chosen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from kilo.backends.base import Backend
from kilo.backends.documents import DEFAULT_TOPOLOGY_LABEL
from kilo.backends.etcd.config import EtcdConfig
from kilo.backends.joining import JoinedBackend
from kilo.backends.parts import ORDER
from kilo.errors import ConfigError
from kilo.mesh.model import NodeSpec

BACKENDS = ORDER
DEFAULT_DIRECTORY = Path("/etc/kilo/mesh")
CLIENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"etcd": ("etcd3", "grpc"), "kubernetes": ("aiohttp", "kubernetes")}
)
"""Kind -> packages that its store is spoken to with: those of the extra of the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """Which store, and where it is."""

    kind: str
    """Where this host's own facts are written."""
    others: tuple[str, ...] = ()
    """Kinds that are read beside it."""
    directory: Path = DEFAULT_DIRECTORY
    """Of the file backend."""
    topology_label: str = DEFAULT_TOPOLOGY_LABEL
    """The label of a Kubernetes Node that holds its location."""
    kubeconfig: str = ""
    """Of the kubernetes backend: path of a kubeconfig; in-cluster where ``master`` is empty too."""
    master: str = ""
    """Of the kubernetes backend: URL of the API server; wins over the kubeconfig's."""
    etcd: EtcdConfig = field(default_factory=EtcdConfig)
    registration: NodeSpec | None = None
    """Of the etcd backend: what to declare of this host's node if nobody has declared it."""


async def open_backend(config: BackendConfig) -> Backend:
    """The backend, ready for use and to be closed by the caller; several are joined to one.

    ``ConfigError`` for one that there is not, and for flags of no use. A store that cannot be
    reached is no error here: the backend says so when it is used.
    """
    if not config.others:
        return await _open_one(config)
    async with AsyncExitStack() as opened:
        stores: dict[str, Backend] = {}
        for kind in (config.kind, *config.others):
            stores[kind] = await _open_one(replace(config, kind=kind, others=()))
            opened.push_async_callback(stores[kind].close)
        opened.pop_all()
    return JoinedBackend(stores)


async def _open_one(config: BackendConfig) -> Backend:
    if config.kind not in BACKENDS:
        raise ConfigError(f"--backend={config.kind}: is not one of {', '.join(BACKENDS)}")
    require_client(config.kind)
    match config.kind:
        case "kubernetes":
            return await _open_kubernetes(config)
        case "etcd":
            return _open_etcd(config)
    return _open_file(config)


def require_client(kind: str) -> None:
    """``ConfigError`` where a package that this store needs is not installed; imports none."""
    missing = [package for package in CLIENTS.get(kind, ()) if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"--backend={kind}: the package {missing[0]} is not installed;"
            f" pip install 'kilo-mesh[{kind}]' brings it"
        )


@asynccontextmanager
async def open_store(config: BackendConfig) -> AsyncIterator[Backend]:
    """The backend that was chosen, closed at the end; see ``open_backend``."""
    backend = await open_backend(config)
    try:
        yield backend
    finally:
        await backend.close()


# Imported where it is chosen: whoever chooses another store must not load this one's library.


def _open_file(config: BackendConfig) -> Backend:
    from kilo.backends.file.backend import FileBackend  # noqa: PLC0415 - see above

    return FileBackend(config.directory, topology_label=config.topology_label)


async def _open_kubernetes(config: BackendConfig) -> Backend:
    from kilo.backends.kubernetes.backend import KubernetesBackend  # noqa: PLC0415 - see above
    from kilo.backends.kubernetes.client import Access, Client  # noqa: PLC0415 - see above
    from kilo.backends.kubernetes.credentials import check_access  # noqa: PLC0415 - see above

    access = Access(kubeconfig=config.kubeconfig, master=config.master)
    await asyncio.to_thread(check_access, access)  # blocks: reads files
    return KubernetesBackend(Client(access), topology_label=config.topology_label)


def _open_etcd(config: BackendConfig) -> Backend:
    from kilo.backends.etcd.backend import EtcdBackend  # noqa: PLC0415 - see above
    from kilo.backends.etcd.client import Client  # noqa: PLC0415 - see above
    from kilo.backends.etcd.endpoints import read_prefix  # noqa: PLC0415 - see above
    from kilo.backends.etcd.keys import Keys  # noqa: PLC0415 - see above
    from kilo.backends.etcd.registration import Registrar  # noqa: PLC0415 - see above

    client, keys = Client(config.etcd), Keys(read_prefix(config.etcd.prefix))
    return EtcdBackend(client, keys, registration=Registrar(client, keys, config.registration))
