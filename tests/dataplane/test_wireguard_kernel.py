"""The kernel's WireGuard messages: what is written, what is understood, what is refused."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.dataplane.links import decode_link
from kilo.dataplane.nlsocket import pack_attribute, pack_nested
from kilo.dataplane.wireguard_device import (
    DeviceRecord,
    DeviceUpdate,
    PeerRecord,
    PeerUpdate,
    RefusedError,
)
from kilo.dataplane.wireguard_kernel import (
    DEVICE_LISTEN_PORT,
    DEVICE_PEERS,
    DEVICE_PRIVATE_KEY,
    DEVICE_PUBLIC_KEY,
    PEER_ALLOWED_IPS,
    PEER_ENDPOINT,
    PEER_KEEPALIVE,
    PEER_LAST_HANDSHAKE,
    PEER_PRESHARED_KEY,
    PEER_PUBLIC_KEY,
    PEER_RX_BYTES,
    PEER_TX_BYTES,
    decode_device,
    encode_allowed_ip,
    encode_endpoint,
    encode_update,
)
from kilo.errors import DataplaneError
from kilo.mesh.keys import PresharedKey, PrivateKey, PublicKey
from kilo.mesh.model import Endpoint, IPNetwork

KEY = PublicKey.from_bytes(b"\x01" * 32)
OTHER = PublicKey.from_bytes(b"\x02" * 32)
PARKING = PublicKey.from_bytes(b"\xff" * 32)
PSK = PresharedKey(b"\x07" * 32)
V4, V6 = ip_network("10.2.1.0/24"), ip_network("fd00:2::/64")


def dump_peer(key: PublicKey, *networks: IPNetwork, more: bytes = b"") -> bytes:
    ips = b"".join(map(encode_allowed_ip, networks))
    return pack_nested(
        0,
        pack_attribute(PEER_PUBLIC_KEY, key.to_bytes()) + more + pack_nested(PEER_ALLOWED_IPS, ips),
    )


MEASURED = (
    pack_attribute(PEER_PRESHARED_KEY, PSK.raw)
    + pack_attribute(PEER_ENDPOINT, encode_endpoint(Endpoint(host="192.168.0.2", port=4242)))
    + pack_attribute(PEER_KEEPALIVE, struct.pack("=H", 25))
    + pack_attribute(PEER_LAST_HANDSHAKE, struct.pack("=qq", 1700000000, 500000000))
    + pack_attribute(PEER_RX_BYTES, struct.pack("=Q", 34))
    + pack_attribute(PEER_TX_BYTES, struct.pack("=Q", 12))
)
DUMP = [
    pack_attribute(DEVICE_PRIVATE_KEY, b"\x40" * 32)
    + pack_attribute(DEVICE_PUBLIC_KEY, OTHER.to_bytes())
    + pack_attribute(DEVICE_LISTEN_PORT, struct.pack("=H", 51820))
    + pack_nested(DEVICE_PEERS, dump_peer(KEY, V4, more=MEASURED)),
    pack_nested(DEVICE_PEERS, dump_peer(KEY, V6) + dump_peer(OTHER)),
]


@pytest.mark.skipif(struct.pack("=H", 1) != b"\1\0", reason="written for little-endian machines")
def test_an_update_is_these_bytes() -> None:
    update = DeviceUpdate(
        listen_port=51820,
        peers=(
            PeerUpdate(
                public_key=KEY,
                only_if_there=True,
                endpoint=Endpoint(host="192.168.0.2", port=4242),
                keepalive_seconds=25,
                added_ips=(V4,),
            ),
        ),
    )
    (message,) = encode_update("kilo0", update, PARKING)
    assert message.hex(" ", 4) == (
        "0a000200 6b696c6f 30000000"  # interface kilo0
        " 06000600 6cca0000"  # port 51820
        " 70000880 6c000080"  # peers: one
        f" 24000100 {' '.join(['01010101'] * 8)}"
        " 08000300 04000000"  # update only
        " 14000400 02001092 c0a80002 00000000 00000000"  # endpoint 192.168.0.2:4242
        " 06000500 19000000"  # every 25 s
        " 20000980 1c000080"  # allowed IPs: one
        " 06000100 02000000 08000200 0a020100 05000300 18000000"  # 10.2.1.0/24
    )


def test_a_dump_is_read_and_a_peer_that_spans_messages_is_one() -> None:
    assert decode_device(DUMP) == DeviceRecord(
        public_key=OTHER,
        listen_port=51820,
        peers=(
            PeerRecord(
                public_key=KEY,
                preshared_key=PSK,
                endpoint=Endpoint(host="192.168.0.2", port=4242),
                keepalive_seconds=25,
                allowed_ips=frozenset({V4, V6}),
                latest_handshake=1700000000.5,
                received_bytes=34,
                sent_bytes=12,
            ),
            PeerRecord(public_key=OTHER),
        ),
    )


ADDRESSES = st.ip_addresses(v=4) | st.ip_addresses(v=6)


@st.composite
def peer_updates(draw: st.DrawFn) -> PeerUpdate:
    """A new peer, which a device would report as it was set."""
    address = draw(ADDRESSES)
    count = draw(st.sampled_from([0, 1, 3, 700]))
    start = draw(st.integers(0, 1000))
    return PeerUpdate(
        public_key=PublicKey.from_bytes(draw(st.binary(min_size=32, max_size=32))),
        endpoint=draw(st.none() | st.just(Endpoint(host=str(address), port=4242))),
        keepalive_seconds=draw(st.integers(0, 65535)),
        preshared_key=draw(st.none() | st.just(PSK)),
        added_ips=tuple(ip_network(f"fd00::{start + i:x}/128") for i in range(count)),
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(peer_updates(), max_size=80, unique_by=lambda peer: peer.public_key))
def test_what_is_written_reads_back_the_same_however_many_messages(
    peers: list[PeerUpdate],
) -> None:
    # The attributes of a peer are the same ones in both directions.
    update = DeviceUpdate(listen_port=4000, peers=tuple(peers))
    messages = list(encode_update("kilo0", update, PARKING))
    assert all(len(message) < 65536 for message in messages)
    expected = {
        (peer.public_key, peer.keepalive_seconds, peer.preshared_key, frozenset(peer.added_ips))
        for peer in peers
    }
    device = decode_device(messages)
    assert device.listen_port == 4000
    assert len(device.peers) == len(peers)
    assert expected == {
        (peer.public_key, peer.keepalive_seconds, peer.preshared_key, peer.allowed_ips)
        for peer in device.peers
    }


def test_the_private_key_and_the_port_are_in_the_first_message_only() -> None:
    peers = tuple(
        PeerUpdate(public_key=PublicKey.from_bytes(os.urandom(32)), added_ips=(V4, V6))
        for _ in range(1000)
    )
    secret = PrivateKey(b"\x40" * 32)
    update = DeviceUpdate(private_key=secret, listen_port=4000, peers=peers)
    first, *others = encode_update("kilo0", update, PARKING)
    assert secret.raw in first
    assert others
    assert not any(secret.raw in message for message in others)


def test_an_update_of_nothing_is_no_message() -> None:
    assert list(encode_update("kilo0", DeviceUpdate(), PARKING)) == []


def test_an_endpoint_that_is_a_name_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"host\.example\.com:1: is not an address"):
        encode_endpoint(Endpoint(host="host.example.com", port=1))


@pytest.mark.parametrize(
    "message",
    [
        b"\x00",
        b"\x00\x00\x00\x00",
        b"\xff\x00\x06\x00",
        pack_attribute(DEVICE_LISTEN_PORT, b"\x01"),
        pack_attribute(DEVICE_PUBLIC_KEY, b"\x01" * 31),
        pack_nested(DEVICE_PEERS, pack_nested(0, b"")),
        pack_nested(DEVICE_PEERS, dump_peer(KEY, more=pack_attribute(PEER_ENDPOINT, b"\x02"))),
        pack_nested(DEVICE_PEERS, dump_peer(KEY, more=pack_attribute(PEER_RX_BYTES, b"\x02"))),
    ],
)
def test_a_broken_dump_is_refused(message: bytes) -> None:
    with pytest.raises(DataplaneError):
        decode_device([message])


def decode_or_refuse(message: bytes) -> None:
    with suppress(DataplaneError):
        decode_device([message])
    with suppress(DataplaneError):
        decode_link(memoryview(message))


@settings(deadline=None)
@given(st.integers(0, len(DUMP[0])), st.binary(max_size=8))
def test_a_truncated_or_damaged_dump_is_read_or_refused(cut: int, damage: bytes) -> None:
    decode_or_refuse(DUMP[0][:cut] + damage)
    decode_or_refuse(DUMP[0][:cut] + damage + DUMP[0][cut + len(damage) :])


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(message: bytes) -> None:
    decode_or_refuse(message)
