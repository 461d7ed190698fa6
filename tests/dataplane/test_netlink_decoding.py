"""Netlink messages, good and bad: whatever a kernel may send ends in a value or one clear error."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.dataplane.addresses import decode_address
from kilo.dataplane.drift import Relevance
from kilo.dataplane.hostfacts import decode_default
from kilo.dataplane.links import decode_link
from kilo.dataplane.nlsocket import (
    Message,
    pack_attribute,
    pack_message,
    parse_attributes,
    split_messages,
)
from kilo.dataplane.owndoing import OwnDoing
from kilo.dataplane.routes import (
    ROUTE_HEADER,
    ROUTE_PROTOCOL,
    RouteEntry,
    decode_entry,
    encode_route,
)
from kilo.errors import DataplaneError
from kilo.mesh.state import Route

NAMES = {3: "kilo0"}
AF_INET = 2


@st.composite
def routes(draw: st.DrawFn) -> Route:
    addresses = st.ip_addresses(v=draw(st.sampled_from((4, 6))))
    address = draw(addresses)
    prefix = draw(st.integers(0, address.max_prefixlen))
    return Route(
        destination=ip_network((int(address), prefix), strict=False)
        if address.version == 4
        else ip_network((int(address).to_bytes(16), prefix), strict=False),
        link="kilo0",
        gateway=draw(st.none() | addresses),
        onlink=draw(st.booleans()),
        source=draw(st.none() | addresses),
        table=draw(st.integers(1, 2**32 - 1)),
    )


@settings(deadline=None)
@given(routes())
def test_what_is_encoded_is_decoded_to_the_same_route(route: Route) -> None:
    body = memoryview(encode_route(route, 3))

    assert decode_entry(body, NAMES) == RouteEntry(
        key=(route.table, route.destination), protocol=ROUTE_PROTOCOL, route=route
    )


def test_a_route_as_bytes() -> None:
    route = Route(
        destination=ip_network("10.2.1.0/24"),
        link="kilo0",
        gateway=ip_address("10.4.0.2"),
        onlink=True,
    )

    assert encode_route(route, 3) == b"".join(
        (
            bytes((2, 24, 0, 0, 0, ROUTE_PROTOCOL, 0, 1)),  # AF_INET /24, universe, unicast
            bytes((4, 0, 0, 0)),  # RTNH_F_ONLINK
            bytes((8, 0, 1, 0, 10, 2, 1, 0)),  # RTA_DST
            bytes((8, 0, 15, 0, 254, 0, 0, 0)),  # RTA_TABLE
            bytes((8, 0, 6, 0, 0, 0, 0, 0)),  # RTA_PRIORITY
            bytes((8, 0, 4, 0, 3, 0, 0, 0)),  # RTA_OIF
            bytes((8, 0, 5, 0, 10, 4, 0, 2)),  # RTA_GATEWAY
        )
    )


def test_messages_are_padded_and_split_again() -> None:
    datagram = pack_message(24, 0, 7, b"odd") + pack_message(25, 0, 8, b"four")

    found = [(m.type, m.sequence, bytes(m.body)) for m in split_messages(datagram)]

    assert found == [(24, 7, b"odd"), (25, 8, b"four")]


@pytest.mark.parametrize(
    ("datagram", "complaint"),
    [
        (b"\x10\x00\x00", "3 bytes are too few"),
        (pack_message(24, 0, 1, b"")[:-1], "too few"),
        (b"\x00" * 16, "a message of 0 bytes"),
        (pack_message(24, 0, 1, b"12345678")[:20], "a message of 24 bytes in 20"),
    ],
)
def test_a_datagram_cut_short_is_an_error(datagram: bytes, complaint: str) -> None:
    with pytest.raises(DataplaneError, match=complaint):
        list(split_messages(datagram))


@pytest.mark.parametrize("length", [0, 3, 9])
def test_an_attribute_of_an_impossible_length_is_an_error(length: int) -> None:
    attribute = bytes((length, 0, 1, 0, 1, 2, 3, 4))

    with pytest.raises(DataplaneError, match="attribute"):
        parse_attributes(memoryview(attribute), 0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        ROUTE_HEADER.pack(AF_INET, 24, 0, 0, 254, 107, 0, 1, 0)[:-1],
        ROUTE_HEADER.pack(AF_INET, 33, 0, 0, 254, 107, 0, 1, 0) + pack_attribute(1, bytes(4)),
        ROUTE_HEADER.pack(AF_INET, 24, 0, 0, 254, 107, 0, 1, 0) + pack_attribute(1, bytes(3)),
        ROUTE_HEADER.pack(AF_INET, 24, 0, 0, 254, 107, 0, 1, 0) + pack_attribute(6, bytes(2)),
    ],
)
def test_a_route_that_no_kernel_writes_is_an_error(body: bytes) -> None:
    with pytest.raises(DataplaneError):
        decode_entry(memoryview(body), NAMES)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_ends_in_values_or_an_error_never_in_anything_else(garbage: bytes) -> None:
    view = memoryview(garbage)
    decoders = (
        lambda: list(split_messages(garbage)),
        lambda: parse_attributes(view, 0),
        lambda: decode_entry(view, NAMES),
        lambda: decode_link(view),
        lambda: decode_address(view),
        lambda: decode_default(view, AF_INET),
    )
    for decode in decoders:
        try:
            decode()
        except DataplaneError:
            continue


@settings(deadline=None)
@given(st.integers(0, 2**16 - 1), st.binary(max_size=120))
def test_any_notification_can_be_judged(message_type: int, body: bytes) -> None:
    relevance = Relevance(table="kilo", routes=tuple, own=OwnDoing())
    message = Message(message_type, 0x100, 0, 0, memoryview(body))

    assert relevance.is_about_us(message) in (True, False)
    assert relevance.is_about_table(message) in (True, False)


@settings(deadline=None)
@given(routes(), st.data())
def test_a_route_with_a_flipped_byte_is_decoded_or_refused(
    route: Route, data: st.DataObject
) -> None:
    body = bytearray(encode_route(route, 3))
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] = data.draw(st.integers(0, 255))

    with contextlib.suppress(DataplaneError):
        decode_entry(memoryview(body), NAMES)
