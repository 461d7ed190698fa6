"""The Peer that this host is: found or made in the store, and taken out again if we made it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kilo.backends.base import Backend
from kilo.errors import BackendError, ConfigError, MeshError
from kilo.kgctl.connectplan import Guest, find_own_peer
from kilo.kgctl.storing import UsageError
from kilo.mesh.model import IPNetwork, Peer, Snapshot
from kilo.mesh.survey import Flags, make_survey

FindFlags = Callable[[Snapshot], Flags]
"""What our own flags say of the mesh that a snapshot describes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Says on disk that a Peer of a store is our own making, so that one which was not removed
    because we were killed is removed by the next of us.
    """

    path: Path
    store: str
    """Describes the store; in another one a Peer of the same name is another's."""
    peer: str

    def is_written(self) -> bool:
        """Whether we made that Peer, now or before."""
        return self._read() == self._text

    def find_other(self) -> str:
        """The name of another Peer that one of us has made and not removed; empty if none."""
        text = self._read()
        return text.partition("\n")[0] if text not in ("", self._text) else ""

    def write(self) -> None:
        """Note it; ``ConfigError`` if that cannot be done: better no Peer than one forgotten."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(self._text)
                file.flush()
                os.fsync(descriptor)
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}") from error

    def remove(self) -> None:
        """The Peer has been removed."""
        self.path.unlink(missing_ok=True)

    @property
    def _text(self) -> str:
        return f"{self.peer}\n{self.store}\n"

    def _read(self) -> str:
        try:
            return self.path.read_text()
        except OSError:
            return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPeer:
    """The Peer of a guest, in its store."""

    backend: Backend
    guest: Guest
    receipt: Receipt
    flags: FindFlags

    async def ensure(self, allowed_ips: tuple[IPNetwork, ...]) -> bool:
        """Make the Peer if it is missing, once it is certain that the mesh would let it in; true
        if it was made. No ``allowed_ips``: as they stand in the store.

        ``MeshError`` for one that is not this host's, or that the mesh would refuse; ``UsageError``
        where flags and Peer contradict each other.
        """
        snapshot = await self.backend.snapshot()
        held = find_held(snapshot, self.guest.name)
        if held is None:
            await self._make(snapshot, allowed_ips)
            return True
        if allowed_ips and set(allowed_ips) != set(held.allowed_ips):
            raise UsageError(
                f"--allowed-ip {_join(allowed_ips)!r}: peer {held.name} is there already, with"
                f" allowedIPs {_join(held.allowed_ips)}: leave the flag out, or change the Peer"
            )
        self._check_admission(snapshot)
        return False

    async def _make(self, snapshot: Snapshot, allowed_ips: tuple[IPNetwork, ...]) -> None:
        name = self.guest.name
        if not allowed_ips:
            raise UsageError(f"--allowed-ip: is missing: peer {name} is not there, and to be made")
        broken = [str(one) for one in snapshot.problems if one.object == f"Peer {name}"]
        if broken:
            raise MeshError("; ".join(broken))
        peer = Peer(
            name=name,
            public_key=self.guest.public_key,
            allowed_ips=allowed_ips,
            persistent_keepalive_seconds=self.guest.keepalive_seconds,
        )
        peers = sorted((*snapshot.peers, peer), key=lambda one: one.name)
        self._check_admission(replace(snapshot, peers=tuple(peers)))
        # First: one that is made and then forgotten would stay for ever.
        self.receipt.write()
        try:
            await self.backend.put_peer(peer)
        except BackendError as error:
            raise BackendError(f"peer {name}: cannot be made: {error}") from error

    def _check_admission(self, snapshot: Snapshot) -> None:
        find_own_peer(self.guest, make_survey(snapshot, self.flags(snapshot), wall=time.time()))

    async def remove(self) -> bool:
        """Remove the Peer if we made it, now or before we were killed, and it is still this
        host's; true if it was removed.
        """
        if not self.receipt.is_written():
            return False
        held = find_held(await self.backend.snapshot(), self.guest.name)
        is_ours = held is not None and held.public_key == self.guest.public_key
        if is_ours:
            await self.backend.delete_peer(self.guest.name)
        self.receipt.remove()
        return is_ours


def find_held(snapshot: Snapshot, name: str) -> Peer | None:
    """The Peer of that name."""
    return next((peer for peer in snapshot.peers if peer.name == name), None)


def _join(networks: tuple[IPNetwork, ...]) -> str:
    return ",".join(map(str, networks))
