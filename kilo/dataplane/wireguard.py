"""The WireGuard device, in the kernel or outside it, behind one face.

Which of the two it is, is found out by looking, at every call: a device can be replaced, and a
userspace one can die, behind our back. What is not there is no error to a reader.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from kilo.dataplane.links import create_link, delete_link, find_link
from kilo.dataplane.nlsocket import KernelRefusalError, open_socket
from kilo.dataplane.wireguard_device import (
    DeviceRecord,
    DeviceUpdate,
    Driver,
    Identity,
    MissingDeviceError,
    PeerRecord,
    RefusedError,
    join_updates,
)
from kilo.dataplane.wireguard_kernel import KernelDriver
from kilo.dataplane.wireguard_plan import plan_steps
from kilo.dataplane.wireguard_process import (
    CROSSING_SECONDS,
    start_userspace,
    wait_until,
)
from kilo.dataplane.wireguard_uapi import AllowedIPs, UserspaceDriver
from kilo.errors import DataplaneError
from kilo.keyfile import public_key
from kilo.mesh.diff import Change
from kilo.mesh.keys import PrivateKey, PublicKey
from kilo.mesh.model import IPNetwork
from kilo.mesh.state import PeerStats, WireGuardDevice, WireGuardPeer
from kilo.portowner import Protocol, describe_owner

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

KERNEL_KIND = "wireguard"
SOCKETS = Path("/run/wireguard")
"""Where every userspace WireGuard puts its sockets: https://www.wireguard.com/xplatform/."""


class WireGuard:
    """One WireGuard interface of the network namespace that this program runs in.

    ``create`` false: the interface is made by somebody else. The private key is written to the
    device only by ``apply``, and only where the device has another one.

    Every method blocks in a thread: on netlink and UAPI sockets, on starting wireguard-go, on the
    kernel, which waits for other processors when it removes a peer or a link. Each wait is bounded
    by a timeout of its own. The thread is the object's own: calls come one after another, and slow
    name lookups, which can occupy all of the event loop's threads, do not hold them up.
    """

    def __init__(self, link: str, private_key: PrivateKey, *, create: bool = True) -> None:
        self._link = link
        self._identity = Identity(private_key, public_key(private_key))
        self._create = create
        self._socket = SOCKETS / f"{link}.sock"
        self._salt = os.urandom(16)
        self._allowed_ips: AllowedIPs = {}
        self._packed: dict[frozenset[IPNetwork], bytes] = {}
        self._look: asyncio.Future[DeviceRecord | None] | None = None
        """One that was asked for and has not begun."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"wireguard-{link}")

    async def ensure(self) -> bool:
        """Make the interface if it is missing; true if this made it.

        ``DataplaneError`` if it must not or cannot be made, or the name is taken by another kind.
        """
        return await self._block(self._ensure)

    async def read(self) -> tuple[WireGuardDevice | None, frozenset[WireGuardPeer]]:
        """The device and its peers; None and none if there is no such device."""
        return self._describe(await self._measure())

    async def read_marked(
        self,
    ) -> tuple[WireGuardDevice | None, frozenset[WireGuardPeer], bytes | None]:
        """What ``read`` and ``fingerprint`` say, both of the same moment."""
        record = await self._measure()
        return (*self._describe(record), self._digest(record))

    def _describe(
        self, record: DeviceRecord | None
    ) -> tuple[WireGuardDevice | None, frozenset[WireGuardPeer]]:
        if record is None:
            return None, frozenset()
        device = WireGuardDevice(
            link=self._link, public_key=record.public_key, listen_port=record.listen_port
        )
        return device, frozenset(make_peer(self._link, peer) for peer in record.peers)

    async def observe(self) -> Mapping[PublicKey, PeerStats]:
        """What the device has measured of each peer; empty if there is no such device."""
        record = await self._measure()
        return {peer.public_key: make_stats(peer) for peer in record.peers} if record else {}

    async def apply(self, steps: Sequence[Change]) -> None:
        """Carry out steps about the device and its peers, at once where the device takes them.

        Everything is tried; what failed is raised together, as in ``Dataplane.apply``.
        """
        if not steps:
            return
        failures = await self._block(self._apply, steps)
        if failures:
            raise ExceptionGroup(f"wireguard {self._link}", failures)

    async def delete(self) -> None:
        """Remove the interface, and the wireguard-go behind it; absent is no error."""
        await self._block(self._delete)

    async def fingerprint(self) -> bytes | None:
        """A digest of what is configured, not of what is measured; None if there is no device.

        Comparable only with others of the same object. Endpoints are left out: they roam.
        """
        return self._digest(await self._measure())

    def _digest(self, record: DeviceRecord | None) -> bytes | None:
        return digest_record(record, self._salt, self._packed) if record else None

    async def _measure(self) -> DeviceRecord | None:
        """What all are told who ask before the look begins."""
        if self._look is None or self._look.done():  # done: an event loop ended before it began
            self._look = asyncio.ensure_future(self._look_soon())
            self._look.add_done_callback(_take_note)
        return await asyncio.shield(self._look)

    async def _look_soon(self) -> DeviceRecord | None:
        await asyncio.sleep(0)  # others may be about to ask
        self._look = None  # who asks from now on is to be told of a later moment
        return await self._block(self._read)

    async def _block(self, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, work, *arguments)

    def _read_kind(self) -> str | None:
        """The kind of the link there is, "" for hardware; None if there is none."""
        with open_socket() as netlink:
            link = find_link(netlink, self._link)
        return link.kind if link else None

    def _probe(self) -> Driver | None:
        """The driver that fits the link there is, if any."""
        kind = self._read_kind()
        if kind is None:
            return None
        if kind == KERNEL_KIND:
            return KernelDriver(self._link)
        return UserspaceDriver(self._socket, self._identity, self._allowed_ips)

    def _read(self) -> DeviceRecord | None:
        driver = self._probe()
        try:
            return driver.read() if driver else None
        except MissingDeviceError:
            return None
        except DataplaneError as error:
            raise DataplaneError(f"wireguard {self._link}: {error}") from error

    def _exists(self) -> bool:
        return self._read() is not None

    def _ensure(self) -> bool:
        # A tun without a socket may be a wireguard-go that is still starting, or ending.
        wait_until(lambda: self._exists() or self._read_kind() != "tun", CROSSING_SECONDS)
        if self._exists():
            return False
        kind = self._read_kind()
        if kind is not None:
            raise DataplaneError(
                f"interface {self._link} exists, of kind {kind or 'hardware'}, "
                f"and no WireGuard answers at {self._socket}"
            )
        if not self._create:
            raise DataplaneError(
                f"interface {self._link} does not exist and --create-interface=false"
            )
        return self._make()

    def _make(self) -> bool:
        try:
            with open_socket() as netlink:
                create_link(netlink, self._link, KERNEL_KIND)
        except KernelRefusalError as error:
            if error.number == errno.EEXIST:
                return False
            if error.number != errno.EOPNOTSUPP:
                raise DataplaneError(f"+ {error}") from error
            return self._make_userspace()
        return True

    def _make_userspace(self) -> bool:
        """Start a wireguard-go; false if another program was quicker."""
        if not wait_until(self._socket_is_ours, CROSSING_SECONDS):
            raise DataplaneError(
                f"interface {self._link} does not exist here, but a WireGuard answers at "
                f"{self._socket}: it serves another network namespace"
            )
        if self._exists():
            return False
        try:
            start_userspace(self._link)
        except DataplaneError:
            if not self._exists():
                raise
            return False
        if not wait_until(self._exists):
            raise DataplaneError(f"interface {self._link}: wireguard-go does not answer")
        return True

    def _socket_is_ours(self) -> bool:
        """Whether what answers at the socket has an interface here, or nothing answers."""
        if self._exists():
            return True
        try:
            UserspaceDriver(self._socket, self._identity).read()
        except MissingDeviceError:
            return True
        except DataplaneError:
            return False  # somebody accepts connections there, or is just closing one
        return False

    def _delete(self) -> None:
        driver = self._probe()
        if driver is None or not self._exists():
            return
        with open_socket() as netlink:
            delete_link(netlink, self._link)
        if isinstance(driver, UserspaceDriver) and not wait_until(self._is_gone):
            raise DataplaneError(f"- interface {self._link}: wireguard-go does not end")

    def _is_gone(self) -> bool:
        return self._read_kind() is None and not self._socket.exists()

    def _apply(self, steps: Sequence[Change]) -> list[DataplaneError]:
        """The failures, each naming its step."""
        ordered = sorted(steps, key=rank_step)
        updates = plan_steps(ordered, self._identity)
        try:
            self._configure(join_updates(iter(updates)))
        except RefusedError:
            # The device does not say which part it refused, so each goes alone.
            return self._apply_singly(ordered, updates)
        except DataplaneError as error:
            return [blame(step, error) for step in ordered]
        return []

    def _apply_singly(
        self, steps: Sequence[Change], updates: Sequence[DeviceUpdate]
    ) -> list[DataplaneError]:
        failures: list[DataplaneError] = []
        lost: DataplaneError | None = None
        for step, update in zip(steps, updates, strict=True):
            try:
                if lost is None:
                    self._configure(update)
            except RefusedError as error:
                failures.append(blame(step, error))
            except DataplaneError as error:
                # Gone or hanging: asking it again would wait for every remaining step.
                lost = error
            if lost is not None:
                failures.append(blame(step, lost))
        return failures

    def _configure(self, update: DeviceUpdate) -> None:
        driver = self._probe()
        if driver is None:
            raise MissingDeviceError("interface does not exist")
        driver.configure(update)


def _take_note(look: asyncio.Future[DeviceRecord | None]) -> None:
    """Of how it ended: those who asked may have given up meanwhile."""
    if not look.cancelled():
        look.exception()


def make_peer(link: str, record: PeerRecord) -> WireGuardPeer:
    """The configured part of a peer."""
    return WireGuardPeer(
        link=link,
        public_key=record.public_key,
        allowed_ips=record.allowed_ips,
        endpoint=record.endpoint,
        keepalive_seconds=record.keepalive_seconds,
        preshared_key=record.preshared_key,
    )


def make_stats(record: PeerRecord) -> PeerStats:
    """The measured part of a peer."""
    return PeerStats(
        endpoint=record.endpoint,
        latest_handshake=record.latest_handshake,
        received_bytes=record.received_bytes,
        sent_bytes=record.sent_bytes,
    )


def rank_step(step: Change) -> int:
    """The device before its peers, and what goes after what takes its place."""
    if step.new is None:
        return 2
    return 0 if isinstance(step.resource, WireGuardDevice) else 1


def blame(step: Change, error: DataplaneError) -> DataplaneError:
    """The failure of one step, in the words of the contract."""
    reason = f"{step}: {error}"
    if isinstance(error, RefusedError) and error.number == errno.EADDRINUSE:
        reason += describe_conflict(step)
    failure = DataplaneError(reason)
    failure.__cause__ = error
    return failure


def describe_conflict(step: Change) -> str:
    """Who has the port that a device was to listen on, as the end of a message."""
    if not isinstance(step.new, WireGuardDevice):
        return ""
    owner = describe_owner(Protocol.UDP, step.new.listen_port)
    return f": UDP port {step.new.listen_port} is held by {owner}" if owner else ""


def digest_record(
    record: DeviceRecord, salt: bytes, packed: dict[frozenset[IPNetwork], bytes]
) -> bytes:
    """The same for equal configurations, in whatever order the device lists them.

    A real digest: the hashes of Python's networks collide (10.4.0.0/16 and 10.4.128.0/17).
    ``packed`` has peers' networks of the digest before; afterwards, of this one.
    """
    before = dict(packed)
    packed.clear()
    digest = hashlib.blake2b(f"{record.public_key} {record.listen_port}".encode(), salt=salt)
    for peer in sorted(record.peers, key=lambda peer: peer.public_key):
        digest.update(f"\n{peer.public_key} {peer.keepalive_seconds} ".encode())
        digest.update(peer.preshared_key.raw if peer.preshared_key else b"-")
        networks = peer.allowed_ips
        packed[networks] = before.get(networks) or pack_networks(networks)
        digest.update(packed[networks])
    return digest.digest()


def pack_networks(networks: Iterable[IPNetwork]) -> bytes:
    """The same for the same networks, in whatever order, and for no others."""
    each = sorted(
        network.network_address.packed + bytes([network.prefixlen]) for network in networks
    )
    return b"".join(bytes([len(network)]) + network for network in each)
