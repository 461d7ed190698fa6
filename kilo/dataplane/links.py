"""Links as the kernel lists them and speaks of them in its notifications."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, field
from socket import AF_INET

from kilo.dataplane.nlsocket import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    U32,
    KernelRefusalError,
    NetlinkSocket,
    pack_attribute,
    pack_nested,
    pack_text,
    parse_attributes,
    read_name,
    read_u32,
    unpack,
)
from kilo.errors import DataplaneError

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19

LINK_HEADER = struct.Struct("=BxHiII")
"""``struct ifinfomsg``: family, hardware type, index, flags, mask of changed flags."""

_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_AF_SPEC = 3, 4, 18, 20, 26
_IFLA_EXT_MASK = 29
_IFLA_INFO_KIND = 1
_IFLA_INET_CONF = 1
_PROMOTE_SECONDARIES = 20  # IPV4_DEVCONF_PROMOTE_SECONDARIES of linux/ip.h
_SKIP_STATISTICS = 8  # RTEXT_FILTER_SKIP_STATS: they are most of a link's listing
_IFF_UP = 1
_NO_HEADER = LINK_HEADER.pack(0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEntry:
    """What matters to us about one of the host's links."""

    family: int
    """0; 7 (AF_BRIDGE) where a bridge speaks of one of its ports."""
    index: int
    name: str
    mtu: int
    kind: str
    up: bool
    alias: str = field(compare=False)
    """A note that anybody may leave on a link, and change: where the link cannot bear our name,
    our mark."""


def read_links(netlink: NetlinkSocket) -> list[LinkEntry]:
    """Every link, in the kernel's order. Raises ``DataplaneError``."""
    request = LINK_HEADER.pack(0, 0, 0, 0, 0)
    request += pack_attribute(_IFLA_EXT_MASK, U32.pack(_SKIP_STATISTICS))
    return netlink.dump(RTM_GETLINK, request, decode_link)


def read_link_names(netlink: NetlinkSocket) -> dict[int, str]:
    """Index -> name of every link. Raises ``DataplaneError``."""
    return {link.index: link.name for link in read_links(netlink)}


def find_link(netlink: NetlinkSocket, name: str) -> LinkEntry | None:
    """The link of that name; None if there is none. Raises ``DataplaneError``."""
    try:
        (answer,) = _ask_by_name(netlink, RTM_GETLINK, name)
    except KernelRefusalError as error:
        if error.number == errno.ENODEV:
            return None
        raise
    return decode_link(memoryview(answer))


def create_link(netlink: NetlinkSocket, name: str, kind: str) -> None:
    """Make a link of that kind.

    Raises ``KernelRefusalError``, with EOPNOTSUPP if the kernel has no such kind.
    """
    info = pack_nested(_IFLA_LINKINFO, pack_text(_IFLA_INFO_KIND, kind))
    _ask_by_name(netlink, RTM_NEWLINK, name, flags=NLM_F_CREATE | NLM_F_EXCL, more=info)


def delete_link(netlink: NetlinkSocket, name: str) -> None:
    """Remove a link; one that is not there is no error. Raises ``DataplaneError``."""
    try:
        _ask_by_name(netlink, RTM_DELLINK, name)
    except KernelRefusalError as error:
        if error.number != errno.ENODEV:
            raise


def set_link(netlink: NetlinkSocket, name: str, *, mtu: int, up: bool, alias: str) -> None:
    """Give a link an MTU (bytes), a state and an alias, at once. Raises ``DataplaneError``."""
    settings = pack_attribute(_IFLA_MTU, U32.pack(mtu)) + pack_text(_IFLA_IFALIAS, alias)
    header = LINK_HEADER.pack(0, 0, 0, _IFF_UP if up else 0, _IFF_UP)
    _ask_by_name(netlink, RTM_SETLINK, name, header=header, more=settings)


def _ask_by_name(
    netlink: NetlinkSocket,
    message_type: int,
    name: str,
    *,
    flags: int = 0,
    header: bytes = _NO_HEADER,
    more: bytes = b"",
) -> list[bytes]:
    """The answers to a request about the link of that name, which a refusal names."""
    body = header + pack_text(_IFLA_IFNAME, name) + more
    try:
        return netlink.ask(message_type, flags, body)
    except KernelRefusalError as error:
        raise KernelRefusalError(f"interface {name}", error.number) from error


def decode_link(body: memoryview) -> LinkEntry:
    """A listed link; ``DataplaneError`` for a body that no kernel writes."""
    family, _, index, flags, _ = unpack(LINK_HEADER, body)
    attributes = parse_attributes(body, LINK_HEADER.size)
    info = parse_attributes(attributes.get(_IFLA_LINKINFO, memoryview(b"")), 0)
    return LinkEntry(
        family=family,
        index=index,
        name=read_name(attributes.get(_IFLA_IFNAME, memoryview(b""))),
        mtu=read_u32(attributes[_IFLA_MTU]) if _IFLA_MTU in attributes else 0,
        kind=read_name(info.get(_IFLA_INFO_KIND, memoryview(b""))),
        up=bool(flags & _IFF_UP),
        alias=read_name(attributes.get(_IFLA_IFALIAS, memoryview(b""))),
    )


def promote_secondaries(netlink: NetlinkSocket, index: int) -> None:
    """Let the link's other IPv4 addresses of a subnet live on when their first one goes.

    By default the kernel deletes them with it, and the link's routes with the last one, so that
    no order of adding and deleting could replace an address without a gap. Said by netlink, as
    /proc/sys is read-only in many containers. Raises ``DataplaneError``.
    """
    setting = pack_attribute(_PROMOTE_SECONDARIES, U32.pack(1))
    family = pack_attribute(AF_INET, pack_attribute(_IFLA_INET_CONF, setting))
    body = LINK_HEADER.pack(0, 0, index, 0, 0) + pack_attribute(_IFLA_AF_SPEC, family)
    (code,) = netlink.request([(RTM_SETLINK, 0, body)])
    if code:
        raise DataplaneError(f"promote_secondaries of link {index}: {os.strerror(code)}")
