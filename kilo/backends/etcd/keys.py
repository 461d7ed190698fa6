"""Under which keys of an etcd the mesh is written down."""

from __future__ import annotations

from dataclasses import dataclass

from kilo.backends.documents import check_object_name
from kilo.errors import BackendError

KINDS = {"nodes": "Node", "reports": "NodeReport", "peers": "Peer"}
"""Of the keys below each of these: what they hold."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys below a prefix, which ends in a slash."""

    prefix: str

    @property
    def settings(self) -> str:
        """Of the mesh's settings."""
        return f"{self.prefix}settings"

    @property
    def subnets(self) -> str:
        """What the keys of subnets that were given to nodes begin with."""
        return f"{self.prefix}subnets/"

    @property
    def nodes(self) -> str:
        """What the keys of declared nodes begin with."""
        return f"{self.prefix}nodes/"

    @property
    def reports(self) -> str:
        """What the keys of reports begin with."""
        return f"{self.prefix}reports/"

    def node(self, name: str) -> str:
        """Of what is declared of the node. ``BackendError`` for a name that is none."""
        return self._find("nodes", name)

    def report(self, name: str) -> str:
        """Of what the node's agent found out. ``BackendError`` for a name that is none."""
        return self._find("reports", name)

    def peer(self, name: str) -> str:
        """Of the peer. ``BackendError`` for a name that is none."""
        return self._find("peers", name)

    def _find(self, folder: str, name: str) -> str:
        try:
            check_object_name(KINDS[folder], name)
        except ValueError as error:
            raise BackendError(f"etcd: {error}") from error
        return f"{self.prefix}{folder}/{name}"
