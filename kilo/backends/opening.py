"""The one list of backends in the program. Each is imported only when it is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kilo.backends.base import Backend
from kilo.backends.documents import DEFAULT_TOPOLOGY_LABEL
from kilo.errors import ConfigError

BACKENDS = ("kubernetes", "etcd", "file")
DEFAULT_DIRECTORY = Path("/etc/kilo/mesh")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """Which store, and where it is."""

    kind: str
    directory: Path = DEFAULT_DIRECTORY
    """Of the file backend."""
    topology_label: str = DEFAULT_TOPOLOGY_LABEL
    """The label of a Kubernetes Node that holds its location."""


async def open_backend(config: BackendConfig) -> Backend:
    """The backend, ready for use and to be closed by the caller.

    ``ConfigError`` for one that there is not. A store that cannot be reached is no error
    here: the backend says so when it is used.
    """
    if config.kind not in BACKENDS:
        raise ConfigError(f"--backend={config.kind}: is not one of {', '.join(BACKENDS)}")
    if config.kind != "file":
        raise ConfigError(
            f"--backend={config.kind} comes with a later release; --backend=file works"
        )
    # Imported here: whoever chooses another store must not need this one's library.
    from kilo.backends.file.backend import FileBackend  # noqa: PLC0415 - imported only when chosen

    return FileBackend(config.directory, topology_label=config.topology_label)
