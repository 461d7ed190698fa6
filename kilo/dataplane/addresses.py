"""Addresses as the kernel lists them and speaks of them in its notifications."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from socket import AF_INET

from kilo.dataplane.nlsocket import NetlinkSocket, parse_attributes, read_u32, unpack
from kilo.dataplane.routes import METRICS
from kilo.errors import DataplaneError
from kilo.mesh.model import IPInterface

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
ADDRESS_HEADER = struct.Struct("=BBBBI")
"""``struct ifaddrmsg``: family, prefix length, flags, scope, index."""

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_HOST = 0, 253, 254
_TEMPORARY, _DAD_FAILED, _DEPRECATED, _TENTATIVE = 0x01, 0x08, 0x20, 0x40
_UNFIT = _TEMPORARY | _DAD_FAILED | _DEPRECATED | _TENTATIVE
"""IPv6 only. In IPv4 the first bit means "secondary", which is as good as any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressEntry:
    """An address of more than link scope, as the kernel lists it."""

    index: int
    interface: IPInterface
    is_global: bool
    """Of no narrower scope than the world; IPv6's ``site`` is one."""
    fit: bool
    """Whether others may be told of it: it is no temporary, tentative or failed one."""


def read_address_entries(netlink: NetlinkSocket) -> list[AddressEntry]:
    """Every address of more than link scope, in the kernel's order. Raises ``DataplaneError``."""
    return netlink.dump(RTM_GETADDR, ADDRESS_HEADER.pack(0, 0, 0, 0, 0), decode_address)


def decode_address(body: memoryview) -> AddressEntry | None:
    """A listed address; None for one of link or host scope, or of another family.

    Raises ``DataplaneError`` for a body that no kernel writes.
    """
    family, length, flags, scope, index = unpack(ADDRESS_HEADER, body)
    if family not in METRICS or scope in (_SCOPE_LINK, _SCOPE_HOST):
        return None
    attributes = parse_attributes(body, ADDRESS_HEADER.size)
    if IFA_FLAGS in attributes:
        flags = read_u32(attributes[IFA_FLAGS])
    # On a point-to-point link IFA_ADDRESS is the other end's.
    packed = bytes(attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS) or b"")
    fit = family == AF_INET or not flags & _UNFIT
    return AddressEntry(
        index=index,
        interface=_make_interface(packed, length),
        is_global=scope == _SCOPE_UNIVERSE,
        fit=fit,
    )


def _make_interface(packed: bytes, length: int) -> IPInterface:
    try:
        if len(packed) == 4:
            return IPv4Interface((packed, length))
        return IPv6Interface((packed, length))
    except ValueError as error:
        raise DataplaneError(f"netlink: an address {packed.hex()}/{length}") from error
