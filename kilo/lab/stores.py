"""Where a lab's mesh is written down: the seam between the lab and the backends its agents use.

Every lab begins as a directory of documents (``meshdir``). Agents of ``--backend=file`` read just
that; for other backends the documents are what the store is filled with, once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from kilo.lab import meshdir
from kilo.mesh.model import Peer, Snapshot

FILE, KUBERNETES = "file", "kubernetes"
STORES = (FILE, KUBERNETES)
"""The backends that a lab's agents can run on."""


class Store(Protocol):
    """What a lab asks of the store that all its agents share.

    Every method raises ``LabError`` or ``BackendError`` when the store cannot be used.
    """

    def build(self) -> None:
        """Make the store and put the mesh into it; the lab's networks stand, its hosts do not.

        Raises ``ConfigError`` for a mesh that the store cannot hold.
        """
        ...

    def flags(self, host: str) -> tuple[str, ...]:
        """What the agent of a host is told of the store."""
        ...

    def read_snapshot(self) -> Snapshot:
        """The mesh as an agent that starts now would read it, reports included.

        While a store with a life of its own is away: as it was last read.
        """
        ...

    def set_settings(self, **fields: object) -> None:
        """Change fields of the mesh's Settings document, which is made if there is none."""
        ...

    def put_peer(self, peer: Peer) -> None:
        """Let a new peer in."""
        ...

    def describe(self) -> str:
        """What it is and how it does, in one line."""
        ...


class DirectoryStore:
    """The directory of documents itself, which every host sees at the same path."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def build(self) -> None:
        """Nothing to do: the directory is the store."""

    def flags(self, host: str) -> tuple[str, ...]:  # noqa: ARG002 - one directory for all
        return (f"--backend={FILE}", f"--directory={self._directory}")

    def read_snapshot(self) -> Snapshot:
        return meshdir.read_snapshot(self._directory)

    def set_settings(self, **fields: object) -> None:
        meshdir.set_settings(self._directory, **fields)

    def put_peer(self, peer: Peer) -> None:
        meshdir.add_peer(self._directory, peer)

    def describe(self) -> str:
        return f"the directory {self._directory}"
