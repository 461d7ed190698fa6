"""Netlink, as far as WireGuard needs it: messages, attributes, one request at a time.

Hand-packed, because a library that builds an object for every attribute takes a hundred times
as long for a thousand peers. Formats are those of ``linux/netlink.h``, ``linux/genetlink.h`` and
``linux/rtnetlink.h``. Packing and parsing are pure; only ``RequestSocket`` touches a socket.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Self

from kilo.dataplane.nlsocket import (
    ATTRIBUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP_INTR,
    NLM_F_EXCL,
    NLMSG_DONE,
    NLMSG_ERROR,
    RECEIVE_BYTES,
    TIMEOUT_SECONDS,
    pack_attribute,
    pack_message,
    parse_error,
    split_messages,
)
from kilo.dataplane.wireguard_device import MissingDeviceError, RefusedError
from kilo.errors import DataplaneError

GENERIC = struct.Struct("=BBxx")
"""struct genlmsghdr: command, version."""
INTERFACE = struct.Struct("=BxHiII")
"""struct ifinfomsg: family, type, index, flags, change mask."""

NESTED = 0x8000
TYPE_MASK = 0x3FFF

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
IFLA_IFNAME = 3
IFLA_LINKINFO = 18
IFLA_INFO_KIND = 1

NETLINK_GENERIC = 16
"""Missing in ``socket``."""
GENL_ID_CTRL = 0x10
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID = 1
CTRL_ATTR_FAMILY_NAME = 2


class InterruptedDumpError(Exception):
    """Something was changed during a dump: it may contradict itself and must be repeated."""


def pack_nested(kind: int, payload: bytes) -> bytes:
    """An attribute made of attributes."""
    return pack_attribute(kind | NESTED, payload)


def pack_text(kind: int, text: str) -> bytes:
    """An attribute that is a zero-terminated string."""
    return pack_attribute(kind, text.encode() + b"\0")


def iterate_attributes(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and content of each attribute, of which a list has many of one type.

    ``DataplaneError`` if one does not fit.
    """
    offset = 0
    while offset + ATTRIBUTE.size <= len(payload):
        length, kind = ATTRIBUTE.unpack_from(payload, offset)
        if length < ATTRIBUTE.size or offset + length > len(payload):
            raise DataplaneError("netlink: an attribute does not fit its message")
        yield kind & TYPE_MASK, payload[offset + ATTRIBUTE.size : offset + length]
        offset += length + -length % 4
    if offset < len(payload):
        raise DataplaneError("netlink: bytes left over after the last attribute")


class RequestSocket:
    """A netlink socket of the calling thread's network namespace; every wait is bounded.

    Unlike the one for routes it is for any family, sends one request at a time and lets the
    kernel's refusal through as an ``OSError``, because what to do next depends on which it is.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        self._socket.settimeout(TIMEOUT_SECONDS)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, kind: int, flags: int, payload: bytes) -> list[bytes]:
        """Send one request, wait for its acknowledgement, return the payloads that came before.

        Raises ``OSError`` with the kernel's reason, ``TimeoutError`` if it does not answer.
        """
        self._sequence += 1
        self._socket.send(pack_message(kind, flags | NLM_F_ACK, self._sequence, payload))
        answers: list[bytes] = []
        while not self._receive(answers):
            pass
        return answers

    def _receive(self, answers: list[bytes]) -> bool:
        """Take one datagram; true once the request is acknowledged or the dump is done."""
        for message in split_messages(self._socket.recv(RECEIVE_BYTES)):
            if message.sequence != self._sequence:
                continue
            if message.flags & NLM_F_DUMP_INTR:
                raise InterruptedDumpError
            if message.type in {NLMSG_ERROR, NLMSG_DONE}:
                if code := parse_error(message.body):
                    raise OSError(code, os.strerror(code))
                return True
            # A copy: a view would keep the whole dump, and the private key in it.
            answers.append(bytes(message.body))
        return False


def explain(error: OSError) -> str:
    """Why the kernel did not do what it was asked, in a few words."""
    if isinstance(error, TimeoutError):
        return f"the kernel does not answer within {TIMEOUT_SECONDS:g} s"
    return error.strerror or str(error)


def translate_error(error: OSError) -> DataplaneError:
    """What went wrong with a WireGuard device, as one of the errors of ``Driver``."""
    if error.errno == errno.ENODEV:
        return MissingDeviceError(explain(error))
    if error.errno is None:
        return DataplaneError(explain(error))
    return RefusedError(explain(error), number=error.errno)


def read_link_kind(link: str) -> str | None:
    """The kind of a link (``wireguard``, ``tun``, ``""`` for hardware); None if there is none."""
    request = INTERFACE.pack(0, 0, 0, 0, 0) + pack_text(IFLA_IFNAME, link)
    try:
        with RequestSocket(socket.NETLINK_ROUTE) as netlink:
            answers = netlink.ask(RTM_GETLINK, 0, request)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise DataplaneError(f"interface {link}: {explain(error)}") from error
    return decode_link_kind(answers[0]) if answers else None


def decode_link_kind(payload: bytes) -> str:
    """The kind in an RTM_NEWLINK message, empty if it has none."""
    for kind, content in iterate_attributes(payload[INTERFACE.size :]):
        if kind == IFLA_LINKINFO:
            for inner, text in iterate_attributes(content):
                if inner == IFLA_INFO_KIND:
                    return text.rstrip(b"\0").decode("ascii", "replace")
    return ""


def create_link(link: str, kind: str) -> None:
    """Make a link of that kind; raises ``OSError``: EOPNOTSUPP if the kernel has no such kind."""
    info = pack_nested(IFLA_LINKINFO, pack_text(IFLA_INFO_KIND, kind))
    request = INTERFACE.pack(0, 0, 0, 0, 0) + pack_text(IFLA_IFNAME, link) + info
    with RequestSocket(socket.NETLINK_ROUTE) as netlink:
        netlink.ask(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, request)


def delete_link(link: str) -> None:
    """Remove a link; one that is not there is no error. Other refusals: ``DataplaneError``."""
    request = INTERFACE.pack(0, 0, 0, 0, 0) + pack_text(IFLA_IFNAME, link)
    try:
        with RequestSocket(socket.NETLINK_ROUTE) as netlink:
            netlink.ask(RTM_DELLINK, 0, request)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise DataplaneError(f"- interface {link}: {explain(error)}") from error


def find_family(netlink: RequestSocket, name: str) -> int:
    """The number of a generic netlink family; ``OSError`` with ENOENT if there is none."""
    request = GENERIC.pack(CTRL_CMD_GETFAMILY, 1) + pack_text(CTRL_ATTR_FAMILY_NAME, name)
    for answer in netlink.ask(GENL_ID_CTRL, 0, request):
        for kind, content in iterate_attributes(answer[GENERIC.size :]):
            if kind == CTRL_ATTR_FAMILY_ID:
                return int.from_bytes(content[:2], sys.byteorder)
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
