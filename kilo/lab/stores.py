"""Where a lab's mesh is written down: the seam between the lab and the backends its agents use.

Every lab begins as a directory of documents (``meshdir``). Agents of ``--backend=file`` read just
that; for other backends the documents are what the store is filled with, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from kilo.backends.documents import API_VERSION, Reading, read_document
from kilo.backends.objects import DeclaredSettings
from kilo.errors import ConfigError
from kilo.lab import meshdir
from kilo.mesh.model import PartialSettings, Peer, Snapshot

FILE, KUBERNETES, ETCD = "file", "kubernetes", "etcd"
HYBRID = "hybrid"
"""Kubernetes and etcd, read as one mesh."""
STORES = (FILE, KUBERNETES, ETCD, HYBRID)
"""The backends that a lab's agents can run on."""

A = TypeVar("A")


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

    def befall(self, word: str, members: Sequence[str]) -> None:
        """Let that happen to the store, or to these members of it: ``kill``, ``start``, …

        Raises ``ConfigError`` for what cannot happen to it.
        """
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

    def befall(self, word: str, members: Sequence[str]) -> None:  # noqa: ARG002 - to nobody
        raise ConfigError(f"store {word}: the store is {self.describe()}")

    def describe(self) -> str:
        return f"the directory {self._directory}"


def choose_action(word: str, actions: Mapping[str, A]) -> A:
    """The one of that name; raises ``ConfigError`` naming those there are."""
    if word not in actions:
        raise ConfigError(f"store {word!r}: is not one of {', '.join(actions)}")
    return actions[word]


def parse_settings(fields: Mapping[str, object]) -> PartialSettings:
    """Fields as a Settings document has them; raises ``ConfigError`` naming one that is bad."""
    document = {
        "apiVersion": API_VERSION,
        "kind": "Settings",
        "metadata": {"name": "mesh"},
        "spec": dict(fields),
    }
    reading = read_document(document, source="settings")
    if reading.problems:
        raise ConfigError(str(reading.problems[0]))
    return find_settings(reading)


def find_settings(reading: Reading) -> PartialSettings:
    """The settings among what was read; empty if there are none."""
    values = [one.value for one in reading.found]
    found = (value.settings for value in values if isinstance(value, DeclaredSettings))
    return next(found, PartialSettings())
