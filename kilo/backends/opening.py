"""The one list of backends in the program. Each is imported only when it is chosen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from kilo.backends.base import Backend
from kilo.backends.documents import DEFAULT_TOPOLOGY_LABEL
from kilo.errors import ConfigError
from kilo.mesh.model import NodeSpec

BACKENDS = ("kubernetes", "etcd", "file")
DEFAULT_DIRECTORY = Path("/etc/kilo/mesh")
DEFAULT_ETCD_ENDPOINTS = ("http://127.0.0.1:2379",)
DEFAULT_ETCD_PREFIX = "/kilo"


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """Where an etcd is, and who asks it."""

    endpoints: tuple[str, ...] = DEFAULT_ETCD_ENDPOINTS
    """Its members: ``http://host:port``, ``https://host:port``, or ``host:port``."""
    prefix: str = DEFAULT_ETCD_PREFIX
    """What all keys begin with."""
    cacert: Path | None = None
    """PEM; None: the system's authorities."""
    cert: Path | None = None
    key: Path | None = None
    username: str = ""
    password_file: Path | None = None


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
    etcd: EtcdConfig = EtcdConfig()
    registration: NodeSpec | None = None
    """Of the etcd backend: what to declare of this host's node if nobody has declared it."""


async def open_backend(config: BackendConfig) -> Backend:
    """The backend, ready for use and to be closed by the caller.

    ``ConfigError`` for one that there is not, and for flags of no use. A store that cannot be
    reached is no error here: the backend says so when it is used.
    """
    if config.kind not in BACKENDS:
        raise ConfigError(f"--backend={config.kind}: is not one of {', '.join(BACKENDS)}")
    match config.kind:
        case "kubernetes":
            return await _open_kubernetes(config)
        case "file":
            return _open_file(config)
    raise ConfigError(
        f"--backend={config.kind} comes with a later release;"
        " --backend=kubernetes and --backend=file work"
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
