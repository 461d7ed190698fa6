"""WireGuard in the kernel: its generic netlink family, as in ``linux/wireguard.h``.

Encoding and decoding are pure; ``KernelDriver`` sends and receives. The private key that the
kernel hands out with every dump is never looked at: the public one comes beside it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from kilo.dataplane.nlsocket import (
    NETLINK_GENERIC,
    KernelRefusalError,
    NetlinkSocket,
    open_socket,
    pack_attribute,
    pack_nested,
    pack_text,
    split_attributes,
)
from kilo.dataplane.wireguard_device import (
    NO_KEY,
    DeviceRecord,
    DeviceUpdate,
    MissingDeviceError,
    PeerRecord,
    PeerUpdate,
    RefusedError,
    make_endpoint,
    make_preshared_key,
)
from kilo.errors import DataplaneError
from kilo.mesh.keys import KEY_BYTES, PublicKey
from kilo.mesh.model import Endpoint, IPNetwork
from kilo.mesh.shared import share_network

GENERIC = struct.Struct("=BBxx")
"""``struct genlmsghdr``: command, version."""
CONTROL = 0x10
"""GENL_ID_CTRL, the family that knows the others' numbers."""
CONTROL_GET_FAMILY = 3
CONTROL_FAMILY_ID, CONTROL_FAMILY_NAME = 1, 2

FAMILY = "wireguard"
VERSION = 1
CMD_GET_DEVICE = 0
CMD_SET_DEVICE = 1

DEVICE_IFNAME = 2
DEVICE_PRIVATE_KEY = 3
DEVICE_PUBLIC_KEY = 4
DEVICE_LISTEN_PORT = 6
DEVICE_PEERS = 8

PEER_PUBLIC_KEY = 1
PEER_PRESHARED_KEY = 2
PEER_FLAGS = 3
PEER_ENDPOINT = 4
PEER_KEEPALIVE = 5
PEER_LAST_HANDSHAKE = 6
PEER_RX_BYTES = 7
PEER_TX_BYTES = 8
PEER_ALLOWED_IPS = 9

FLAG_REMOVE_ME = 1
FLAG_UPDATE_ONLY = 4

ALLOWED_IP_FAMILY = 1
ALLOWED_IP_ADDRESS = 2
ALLOWED_IP_PREFIX = 3

PART_IPS = 256
"""Allowed IPs a peer's attribute holds; 40 bytes each, and a nested attribute ends at 64 KiB."""
MESSAGE_BYTES = 24 << 10
"""A message is closed beyond this. With one more part it stays below 64 KiB."""


class KernelDriver:
    """The device behind the kernel's generic netlink family."""

    def __init__(self, link: str) -> None:
        self._link = link

    def read(self) -> DeviceRecord:
        """See ``Driver``."""
        request = GENERIC.pack(CMD_GET_DEVICE, VERSION) + pack_text(DEVICE_IFNAME, self._link)
        with _open() as (netlink, family):
            # Copies: views would keep the whole dump, and the private key in it.
            return decode_device(netlink.dump(family, request, lambda b: bytes(b[GENERIC.size :])))

    def configure(self, update: DeviceUpdate) -> None:
        """See ``Driver``. As many messages as it takes, each of them atomic to others' eyes."""
        parking = PublicKey.from_bytes(os.urandom(KEY_BYTES))
        with _open() as (netlink, family):
            for request in encode_update(self._link, update, parking):
                netlink.ask(family, 0, GENERIC.pack(CMD_SET_DEVICE, VERSION) + request)


@contextmanager
def _open() -> Iterator[tuple[NetlinkSocket, int]]:
    """A socket and the number of WireGuard's family; errors become those of ``Driver``."""
    try:
        with open_socket(NETLINK_GENERIC) as netlink:
            yield netlink, find_family(netlink, FAMILY)
    except KernelRefusalError as error:
        reason = os.strerror(error.number)
        if error.number == errno.ENODEV:
            raise MissingDeviceError(reason) from error
        raise RefusedError(reason, number=error.number) from error


def find_family(netlink: NetlinkSocket, name: str) -> int:
    """The number of a generic netlink family; ``KernelRefusalError`` with ENOENT for none."""
    request = GENERIC.pack(CONTROL_GET_FAMILY, 1) + pack_text(CONTROL_FAMILY_NAME, name)
    (answer,) = netlink.ask(CONTROL, 0, request)
    found = dict(split_attributes(answer, GENERIC.size))
    return int.from_bytes(found[CONTROL_FAMILY_ID], sys.byteorder)


def encode_update(link: str, update: DeviceUpdate, parking: PublicKey) -> Iterator[bytes]:
    """The messages, in order, that apply an update; ``parking`` as in ``DeviceUpdate.sequence``."""
    name = pack_text(DEVICE_IFNAME, link)
    head = name + encode_device(update)
    peers = bytearray()
    for peer in update.sequence(parking):
        for part in split_peer(peer):
            peers += pack_nested(0, encode_peer(part))
            if len(peers) > MESSAGE_BYTES:
                yield head + pack_nested(DEVICE_PEERS, bytes(peers))
                head = name
                peers.clear()
    if peers:
        yield head + pack_nested(DEVICE_PEERS, bytes(peers))
    elif head != name:
        yield head


def encode_device(update: DeviceUpdate) -> bytes:
    """The attributes of the device itself."""
    attributes = b""
    if update.private_key is not None:
        attributes += pack_attribute(DEVICE_PRIVATE_KEY, update.private_key.raw)
    if update.listen_port is not None:
        attributes += pack_attribute(DEVICE_LISTEN_PORT, struct.pack("=H", update.listen_port))
    return attributes


def split_peer(peer: PeerUpdate) -> Iterator[PeerUpdate]:
    """The update in parts that fit an attribute. The later ones only add to what is there."""
    yield replace(peer, added_ips=peer.added_ips[:PART_IPS])
    for start in range(PART_IPS, len(peer.added_ips), PART_IPS):
        yield PeerUpdate(
            public_key=peer.public_key,
            only_if_there=True,
            added_ips=peer.added_ips[start : start + PART_IPS],
        )


def encode_peer(peer: PeerUpdate) -> bytes:
    """The attributes of one peer, or of one part of it."""
    flags = FLAG_REMOVE_ME * peer.remove | FLAG_UPDATE_ONLY * peer.only_if_there
    attributes = pack_attribute(PEER_PUBLIC_KEY, peer.public_key.to_bytes())
    if flags:
        attributes += pack_attribute(PEER_FLAGS, struct.pack("=I", flags))
    if peer.preshared_key is not None:
        attributes += pack_attribute(PEER_PRESHARED_KEY, peer.preshared_key.raw)
    if peer.endpoint is not None:
        attributes += pack_attribute(PEER_ENDPOINT, encode_endpoint(peer.endpoint))
    if peer.keepalive_seconds is not None:
        attributes += pack_attribute(PEER_KEEPALIVE, struct.pack("=H", peer.keepalive_seconds))
    if peer.added_ips:
        networks = b"".join(map(encode_allowed_ip, peer.added_ips))
        attributes += pack_nested(PEER_ALLOWED_IPS, networks)
    return attributes


def encode_allowed_ip(network: IPNetwork) -> bytes:
    """One allowed IP: family, address, prefix length."""
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return pack_nested(
        0,
        pack_attribute(ALLOWED_IP_FAMILY, struct.pack("=H", family))
        + pack_attribute(ALLOWED_IP_ADDRESS, network.network_address.packed)
        + pack_attribute(ALLOWED_IP_PREFIX, bytes([network.prefixlen])),
    )


def encode_endpoint(endpoint: Endpoint) -> bytes:
    """A struct sockaddr_in or sockaddr_in6; ``RefusedError`` for a name."""
    address = endpoint.ip
    if address is None:
        raise RefusedError(f"endpoint {endpoint}: is not an address")
    port = struct.pack("!H", endpoint.port)
    if isinstance(address, IPv4Address):
        return struct.pack("=H", socket.AF_INET) + port + address.packed + bytes(8)
    return struct.pack("=H", socket.AF_INET6) + port + bytes(4) + address.packed + bytes(4)


def decode_device(messages: Iterable[bytes]) -> DeviceRecord:
    """The device in the messages of a dump; ``DataplaneError`` if they are none.

    A peer with many allowed IPs is spread over messages; each repeats its public key.
    """
    public: PublicKey | None = None
    port = 0
    peers: list[PeerRecord] = []
    for message in messages:
        for kind, content in split_attributes(message):
            if kind == DEVICE_PUBLIC_KEY:
                public = decode_public_key(content)
            elif kind == DEVICE_LISTEN_PORT:
                (port,) = unpack("=H", content)
            elif kind == DEVICE_PEERS:
                for _, attributes in split_attributes(content):
                    add_peer(peers, decode_peer(attributes))
    return DeviceRecord(public_key=public, listen_port=port, peers=tuple(peers))


def decode_public_key(raw: bytes) -> PublicKey | None:
    """The device's public key, None if it has no private one."""
    if len(raw) != KEY_BYTES:
        raise DataplaneError("wireguard: a public key that is not 32 bytes long")
    return None if raw == NO_KEY else PublicKey.from_bytes(raw)


def add_peer(peers: list[PeerRecord], peer: PeerRecord) -> None:
    """Append a peer, or the rest of the last one to that."""
    if peers and peers[-1].public_key == peer.public_key:
        first = peers[-1]
        peers[-1] = replace(first, allowed_ips=first.allowed_ips | peer.allowed_ips)
    else:
        peers.append(peer)


def decode_peer(attributes: bytes) -> PeerRecord:
    """One peer of a dump, or the part of it that one message holds."""
    found = dict(split_attributes(attributes))
    key = decode_public_key(found.get(PEER_PUBLIC_KEY, b""))
    if key is None:
        raise DataplaneError("wireguard: a peer whose public key is all zeros")
    handshake = read_field(found, PEER_LAST_HANDSHAKE, "=qq")
    return PeerRecord(
        public_key=key,
        preshared_key=make_preshared_key(found.get(PEER_PRESHARED_KEY, NO_KEY)),
        endpoint=read_endpoint(found.get(PEER_ENDPOINT)),
        keepalive_seconds=read_field(found, PEER_KEEPALIVE, "=H")[0],
        allowed_ips=frozenset(
            decode_allowed_ip(content)
            for _, content in split_attributes(found.get(PEER_ALLOWED_IPS, b""))
        ),
        latest_handshake=handshake[0] + handshake[1] / 1e9,
        received_bytes=read_field(found, PEER_RX_BYTES, "=Q")[0],
        sent_bytes=read_field(found, PEER_TX_BYTES, "=Q")[0],
    )


def read_field(found: Mapping[int, bytes], kind: int, layout: str) -> tuple[int, ...]:
    """The numbers of an attribute, zeros where it is missing."""
    return unpack(layout, found.get(kind, bytes(struct.calcsize(layout))))


def unpack(layout: str, content: bytes) -> tuple[int, ...]:
    """``struct.unpack`` of numbers; ``DataplaneError`` if the size is wrong."""
    try:
        return struct.unpack(layout, content)
    except struct.error:
        raise DataplaneError("wireguard: a number of the wrong size in the dump") from None


def read_endpoint(content: bytes | None) -> Endpoint | None:
    """The endpoint in a struct sockaddr; None if there is none."""
    if not content:
        return None
    family = content[:2]
    if family == struct.pack("=H", socket.AF_INET) and len(content) >= 8:
        address = str(IPv4Address(content[4:8]))
    elif family == struct.pack("=H", socket.AF_INET6) and len(content) >= 24:
        address = str(IPv6Address(content[8:24]))
    else:
        raise DataplaneError("wireguard: an endpoint that is no socket address")
    return make_endpoint(address, int.from_bytes(content[2:4], "big"))


@lru_cache(maxsize=1 << 16)
def decode_allowed_ip(attributes: bytes) -> IPNetwork:
    """One allowed IP. Remembered: every read names the same ones, and parsing is its main cost."""
    found = dict(split_attributes(attributes))
    (family,) = read_field(found, ALLOWED_IP_FAMILY, "=H")
    (prefix,) = read_field(found, ALLOWED_IP_PREFIX, "=B")
    version, size = (4, 4) if family == socket.AF_INET else (6, 16)
    address = found.get(ALLOWED_IP_ADDRESS, b"")
    try:
        if len(address) == size:
            return share_network(version, int.from_bytes(address, "big"), prefix)
    except ValueError:
        pass
    raise DataplaneError("wireguard: an allowed IP that is no network")
