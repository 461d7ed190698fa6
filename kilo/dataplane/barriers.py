"""Barriers, both ways between ``Barrier`` and the kernel: ``unreachable`` routes of table main.

Their metric is the worst in use, so that every other route to the same network comes first, and
they are never in anybody's way. Everything here blocks: run it in a thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from kilo.dataplane.nlsocket import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    U32,
    NetlinkSocket,
    pack_attribute,
    parse_attributes,
    read_u32,
    unpack,
)
from kilo.dataplane.routes import (
    FAMILIES,
    ROUTE_HEADER,
    ROUTE_PROTOCOL,
    RTM_DELROUTE,
    RTM_NEWROUTE,
    read_network,
)
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.state import MAIN_TABLE, Barrier

METRIC = 4278198272
"""What the kernel's documentation of VRFs recommends for the route that ends a table."""

_UNREACHABLE = 7
_RTA_DST, _RTA_PRIORITY = 1, 6


def apply_barriers(netlink: NetlinkSocket, steps: Sequence[Change]) -> list[DataplaneError]:
    """Carry out steps that are all about barriers; what failed, step by step."""
    codes = netlink.request([_encode_step(step) for step in steps])
    return [
        DataplaneError(f"{step}: {os.strerror(code)}")
        for step, code in zip(steps, codes, strict=True)
        # Whatever is there with that metric, or is not, does what was wanted.
        if code not in (0, errno.ESRCH if step.new is None else errno.EEXIST)
    ]


def _encode_step(step: Change) -> tuple[int, int, bytes]:
    if not isinstance(step.resource, Barrier):
        raise TypeError(f"{step} is not about a barrier")
    body = encode_barrier(step.resource)
    if step.new is None:
        return RTM_DELROUTE, 0, body
    return RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body


def encode_barrier(barrier: Barrier) -> bytes:
    """The body of RTM_NEWROUTE and RTM_DELROUTE."""
    destination = barrier.destination
    family = FAMILIES[destination.version]
    header = ROUTE_HEADER.pack(
        family, destination.prefixlen, 0, 0, MAIN_TABLE, ROUTE_PROTOCOL, 0, _UNREACHABLE, 0
    )
    address = pack_attribute(_RTA_DST, destination.network_address.packed)
    return header + address + pack_attribute(_RTA_PRIORITY, U32.pack(METRIC))


def decode_barrier(body: memoryview) -> Barrier | None:
    """A listed route as a barrier; None if it is none of ours.

    Raises ``DataplaneError`` for a body that no kernel writes.
    """
    family, length, _, _, table, protocol, _, kind, _ = unpack(ROUTE_HEADER, body)
    if (table, protocol, kind) != (MAIN_TABLE, ROUTE_PROTOCOL, _UNREACHABLE):
        return None
    attributes = parse_attributes(body, ROUTE_HEADER.size)
    if _RTA_PRIORITY not in attributes or read_u32(attributes[_RTA_PRIORITY]) != METRIC:
        return None
    destination = bytes(attributes.get(_RTA_DST, b""))
    return Barrier(destination=read_network(family, destination, length))
