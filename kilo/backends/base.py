"""The Backend contract: where the mesh is written down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from kilo.errors import BackendError
from kilo.mesh.model import NodeReport, NodeSpec, PartialSettings, Peer, Snapshot
from kilo.mesh.remarks import Remarks


class Backend(Protocol):
    """A store of nodes, peers and settings.

    Every method raises ``BackendError`` when the store cannot be used. One object that cannot
    be parsed appears in ``Snapshot.problems`` and is left out; it never stops the others.
    All methods may be called at the same time from tasks of one event loop.
    """

    def watch(self) -> AsyncIterator[Snapshot | BackendError]:
        """The snapshot now, and after every change; ends only when closed.

        Reconnects by itself, for ever, with back-off. While the store cannot be heard it yields
        the error, once for each different text, instead of a snapshot, and the snapshot again
        once the store is back, even if that is unchanged. May skip intermediate states, never
        the last. A mere heartbeat (a change of ``last_seen`` only) is yielded too.

        Several stores read as one yield the error only while none can be heard. While one is away
        they go on with the others: ``Snapshot.away`` names it and says why, once for each different
        text, and what stands in it is as this watch last heard it. ``Snapshot.parts`` has no part
        of one that this watch has not heard at all: the snapshot is not the whole mesh then.
        """
        ...

    async def snapshot(self) -> Snapshot:
        """What the store holds now, read afresh."""
        ...

    async def publish(self, report: NodeReport) -> None:
        """Write what the local agent found out about its node, and stamp it as seen now.

        Replaces the last report of that name; what an operator declared is never touched. A store
        whose machines are registered by somebody else (Kubernetes' kubelets) raises for a name
        that is not registered.
        """
        ...

    async def withdraw(self, name: str) -> None:
        """Take the report of that node back; absent is not an error."""
        ...

    async def put_peer(self, peer: Peer) -> None:
        """Create the peer or replace the one of its name."""
        ...

    async def delete_peer(self, name: str) -> None:
        """Remove the peer; absent is not an error."""
        ...

    async def declare_node(self, name: str, spec: NodeSpec) -> None:
        """Set what an operator declares of the node, in place of what was declared before.

        A store whose machines are registered by somebody else raises for a name that is not
        registered, and for a field that it has no place for.
        """
        ...

    async def forget_node(self, name: str) -> None:
        """Take back what is declared of the node, its report, and what was allocated to it.

        Absent is not an error. Its agent, if it lives, reports it anew.
        """
        ...

    async def declare_settings(self, settings: PartialSettings) -> None:
        """Set the mesh's settings, in place of those before; of several stores, in the first."""
        ...

    async def forget_settings(self) -> None:
        """Take the mesh's settings away; absent is not an error."""
        ...

    async def remark(self, remarks: Remarks) -> None:
        """Show operators what agents find wrong with objects, and what becomes of peers.

        These are all the remarks there are now; what was shown already is not shown again. A
        store without a place for them does nothing.
        """
        ...

    async def close(self) -> None:
        """End every watch and release what is held; may be called twice."""
        ...
