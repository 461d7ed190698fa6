"""What is read from and written to a WireGuard device, whichever driver speaks to it.

A secret in these values is a ``Secret``: whatever is printed, it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol

from kilo.errors import DataplaneError
from kilo.mesh.keys import KEY_BYTES, PresharedKey, PrivateKey, PublicKey
from kilo.mesh.model import Endpoint, IPNetwork

NO_KEY = bytes(KEY_BYTES)
"""How both drivers say that there is no preshared or private key."""


class MissingDeviceError(DataplaneError):
    """There is no WireGuard device of that name (any more)."""


class RefusedError(DataplaneError):
    """The device is there and does not accept the setting; the text is the system's reason."""

    def __init__(self, reason: str, *, number: int = 0) -> None:
        super().__init__(reason)
        self.number = number
        """The system's error number, 0 if the reason is our own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRecord:
    """One peer as the device reports it, measurements included."""

    public_key: PublicKey
    preshared_key: PresharedKey | None = None
    endpoint: Endpoint | None = None
    keepalive_seconds: int = 0
    allowed_ips: frozenset[IPNetwork] = frozenset()
    latest_handshake: float = 0.0
    """Unix seconds; 0.0 if there was none."""
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """A device as it reports itself. Its private key is left behind in the driver."""

    public_key: PublicKey | None = None
    listen_port: int = 0
    peers: tuple[PeerRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerUpdate:
    """Changes to one peer; a field that is None or empty stays as it is."""

    public_key: PublicKey
    remove: bool = False
    only_if_there: bool = False
    """Do not make the peer if the device does not have it."""
    endpoint: Endpoint | None = None
    keepalive_seconds: int | None = None
    preshared_key: PresharedKey | None = None
    """All zeros takes it away."""
    added_ips: tuple[IPNetwork, ...] = ()
    """Taken from whichever peer has them, in one move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUpdate:
    """Changes to a device, least first: what is not mentioned is not touched."""

    private_key: PrivateKey | None = None
    """All zeros takes it away."""
    listen_port: int | None = None
    peers: tuple[PeerUpdate, ...] = ()
    revoked_ips: tuple[IPNetwork, ...] = ()
    """Allowed IPs that no peer shall have afterwards."""
    removed: tuple[PublicKey, ...] = ()

    def sequence(self, parking: PublicKey) -> Iterator[PeerUpdate]:
        """Every peer's update, in the order in which the device must see them.

        Few kernels can take one allowed IP from a peer, and replacing a peer's list leaves it
        for a moment with none. So revoked IPs are parked: given, each in one move, to a peer
        that nobody has the private key of, which is then removed. ``parking`` is its public
        key, random and new. One left by a crash is an unknown peer to the next pass.
        """
        yield from self.peers
        if self.revoked_ips:
            yield PeerUpdate(public_key=parking, added_ips=self.revoked_ips)
            yield PeerUpdate(public_key=parking, remove=True)
        for key in self.removed:
            yield PeerUpdate(public_key=key, remove=True)


def join_updates(updates: Iterator[DeviceUpdate]) -> DeviceUpdate:
    """One update that does what all of them do; of two device settings the last one counts."""
    private_key: PrivateKey | None = None
    listen_port: int | None = None
    peers: list[PeerUpdate] = []
    revoked: list[IPNetwork] = []
    removed: list[PublicKey] = []
    for update in updates:
        private_key = private_key if update.private_key is None else update.private_key
        listen_port = listen_port if update.listen_port is None else update.listen_port
        peers += update.peers
        revoked += update.revoked_ips
        removed += update.removed
    return DeviceUpdate(
        private_key=private_key,
        listen_port=listen_port,
        peers=tuple(peers),
        revoked_ips=tuple(revoked),
        removed=tuple(removed),
    )


class Driver(Protocol):
    """One way of speaking to a device. Calls block, each for a bounded time.

    They raise ``MissingDeviceError`` if the device is not there, ``RefusedError`` if it does not
    accept the configuration (what came before the refused part may be in force) and
    ``DataplaneError`` if it cannot be understood or does not answer.
    """

    def read(self) -> DeviceRecord:
        """The device's configuration and measurements."""
        ...

    def configure(self, update: DeviceUpdate) -> None:
        """Apply the update, and nothing but it."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Our private key with its public key, so that it need not be derived at every read."""

    private: PrivateKey = field(repr=False)
    public: PublicKey


def make_preshared_key(raw: bytes) -> PresharedKey | None:
    """A preshared key as a device reports it: all zeros is none."""
    return None if raw == NO_KEY else PresharedKey(raw)


def make_endpoint(address: str, port: int) -> Endpoint:
    """An endpoint as the mesh writes it: no scope, and IPv4 as IPv4. ``ValueError`` if it is none.

    The scope of a link-local address means something on this host only, so it cannot be compared
    with what a mesh says.
    """
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port} is outside 0-65535")
    return Endpoint(host=str(ip), port=port)
