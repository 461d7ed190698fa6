"""Routes, both ways between ``Route`` and the kernel, by the thousand.

Ours bear a protocol number of our own (spec section 5): Kilo's ``static`` cannot be told from
the administrator's. A same route that somebody else left is adopted, that is, given our number in
place; anything else in the way stays. Everything here blocks: run it in a thread.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from socket import AF_INET, AF_INET6

from kilo.dataplane.links import read_link_names
from kilo.dataplane.nlsocket import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    U32,
    NetlinkSocket,
    pack_attribute,
    parse_attributes,
    read_u32,
    unpack,
)
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.model import IPAddress, IPNetwork
from kilo.mesh.shared import share_address, share_network
from kilo.mesh.state import Route

ROUTE_PROTOCOL = 107
"""Free in iproute2's ``rt_protos``, which names up to 99 and 186 to 196; after Kilo's port 1107."""
KERNEL_PROTOCOL = 2
"""RTPROT_KERNEL: what the kernel itself adds for an address; never adopted."""

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26

ROUTE_HEADER = struct.Struct("=BBBBBBBBI")
"""``struct rtmsg``: family, dst_len, src_len, tos, table, protocol, scope, type, flags."""

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA, _RTA_NH_ID = 9, 15, 18, 30
_COMPLEX = frozenset((_RTA_MULTIPATH, _RTA_VIA, _RTA_NH_ID))
"""Attributes of routes that no ``Route`` can say."""


UNICAST = 1
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_ONLINK = 4
_CLONED = 0x200

METRICS: Mapping[int, int] = {AF_INET: 0, AF_INET6: 1024}
"""What a route without a metric has."""
FAMILIES = {4: AF_INET, 6: AF_INET6}
_VERSIONS = {4: 4, 16: 6}
"""The bytes of an address -> its version."""

RouteKey = tuple[int, IPNetwork]
"""Table and destination: ``Route.key``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteEntry:
    """A route as the kernel lists it. ``route`` is None where no ``Route`` can say it."""

    key: RouteKey
    protocol: int
    route: Route | None


def apply_routes(
    netlink: NetlinkSocket, steps: Sequence[Change], *, yielding: Collection[str] = ()
) -> list[DataplaneError]:
    """Carry out steps that are all about routes, of different keys; what failed, step by step.

    Others' routes over the ``yielding`` links give way to ours.

    In the order given, since a route that goes may have stood in the way of one that comes;
    steps of one kind that follow each other are one batch. Raises ``DataplaneError`` only when
    the kernel cannot be talked to at all.
    """
    batch = _Batch(netlink, yielding)
    carry_out = {"+": batch.add, "~": batch.replace, "-": batch.remove}
    for verb, run in groupby(steps, key=lambda step: step.verb):
        carry_out[verb](tuple(run))
    return [DataplaneError(f"{step}: {os.strerror(code)}") for step, code in batch.failures]


class _Batch:
    """The steps of one ``apply_routes`` and what has become of them."""

    def __init__(self, netlink: NetlinkSocket, yielding: Collection[str]) -> None:
        self._netlink = netlink
        self._yielding = yielding
        self._names = read_link_names(netlink)
        self._indexes = {name: index for index, name in self._names.items()}
        self.failures: list[tuple[Change, int]] = []

    def add(self, steps: Sequence[Change]) -> None:
        taken = []
        for step, code in self._request(steps, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL):
            if code == errno.EEXIST:
                taken.append(step)
            elif code:
                self.failures.append((step, code))
        self.replace(taken)

    def replace(self, steps: Sequence[Change]) -> None:
        """In place, without a gap, where what is there is ours, or nobody's, or the same."""
        if not steps:
            return
        holders = self._find_holders({_get_key(step) for step in steps})
        allowed = []
        for step in steps:
            holder = holders.get(_get_key(step))
            if holder is None or self._may_replace(holder, _get_route(step)):
                allowed.append(step)
            else:
                self.failures.append((step, errno.EEXIST))
        # CREATE as well: what was there may have gone since.
        outcomes = self._request(allowed, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
        self.failures += [(step, code) for step, code in outcomes if code]

    def remove(self, steps: Sequence[Change]) -> None:
        gone = (0, errno.ESRCH, errno.ENODEV)  # a link that is gone took its routes with it
        outcomes = self._request(steps, RTM_DELROUTE, 0)
        self.failures += [(step, code) for step, code in outcomes if code not in gone]

    def _request(
        self, steps: Sequence[Change], message_type: int, flags: int
    ) -> list[tuple[Change, int]]:
        """Each step with its errno; a link that is not there is one, too."""
        encode = encode_removal if message_type == RTM_DELROUTE else encode_route
        outcomes: list[tuple[Change, int]] = []
        sent: list[Change] = []
        messages: list[tuple[int, int, bytes]] = []
        for step in steps:
            index = self._indexes.get(_get_route(step).link)
            if index is None:
                outcomes.append((step, errno.ENODEV))
            else:
                sent.append(step)
                messages.append((message_type, flags, encode(_get_route(step), index)))
        codes = self._netlink.request(messages)
        return [*outcomes, *zip(sent, codes, strict=True)]

    def _may_replace(self, holder: RouteEntry, route: Route) -> bool:
        if holder.protocol == ROUTE_PROTOCOL:
            return True
        if holder.route is None:
            return False
        # The kernel's own have no gateway; Cilium gives its routes the same number.
        if holder.protocol == KERNEL_PROTOCOL and holder.route.gateway is None:
            return False
        if holder.route.link in self._yielding:
            return True
        return holder.protocol != KERNEL_PROTOCOL and holder.route == route

    def _find_holders(self, wanted: Collection[RouteKey]) -> dict[RouteKey, RouteEntry]:
        """The first route of each key, which is the one that the kernel would replace."""
        holders: dict[RouteKey, RouteEntry] = {}
        for entry in dump_entries(self._netlink, self._names, wanted=wanted):
            holders.setdefault(entry.key, entry)
        return holders


def _get_route(step: Change) -> Route:
    if not isinstance(step.resource, Route):
        raise TypeError(f"{step} is not about a route")
    return step.resource


def _get_key(step: Change) -> RouteKey:
    route = _get_route(step)
    return (route.table, route.destination)


def encode_route(route: Route, index: int) -> bytes:
    """The body of RTM_NEWROUTE for a route over the link of that index."""
    scope = _SCOPE_LINK if route.gateway is None else _SCOPE_UNIVERSE
    source = _pack_address(_RTA_PREFSRC, route.source)
    flags = _ONLINK if route.onlink else 0
    return _encode_header(route, scope, flags) + _encode_path(route, index) + source


def encode_removal(route: Route, index: int) -> bytes:
    """The body of RTM_DELROUTE: matches no route of another protocol, link or gateway."""
    # Neither the source nor "onlink" is compared: a link's route may have lost them by hand.
    return _encode_header(route, _SCOPE_NOWHERE, 0) + _encode_path(route, index)


def _encode_header(route: Route, scope: int, flags: int) -> bytes:
    destination = route.destination
    return ROUTE_HEADER.pack(
        FAMILIES[destination.version],
        destination.prefixlen,
        0,
        0,
        0,  # RT_TABLE_UNSPEC: the attribute, which has room for every number, says which
        ROUTE_PROTOCOL,
        scope,
        UNICAST,
        flags,
    )


def _encode_path(route: Route, index: int) -> bytes:
    metric = METRICS[FAMILIES[route.destination.version]]
    return b"".join(
        (
            pack_attribute(_RTA_DST, route.destination.network_address.packed),
            pack_attribute(_RTA_TABLE, U32.pack(route.table)),
            pack_attribute(_RTA_PRIORITY, U32.pack(metric)),
            pack_attribute(_RTA_OIF, U32.pack(index)),
            _pack_address(_RTA_GATEWAY, route.gateway),
        )
    )


def _pack_address(attribute: int, address: IPAddress | None) -> bytes:
    return b"" if address is None else pack_attribute(attribute, address.packed)


def dump_entries(
    netlink: NetlinkSocket,
    names: Mapping[int, str],
    *,
    protocol: int = 0,
    wanted: Collection[RouteKey] | None = None,
) -> Iterator[RouteEntry]:
    """Routes as the kernel lists them, of all tables, whose metric is the default one.

    A protocol other than 0 and wanted keys other than None restrict them.
    """
    decode = partial(decode_entry, names=names, wanted=wanted)
    for family in METRICS:
        request = ROUTE_HEADER.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0)
        for entry in netlink.dump(RTM_GETROUTE, request, decode):
            if protocol in (0, entry.protocol):
                yield entry


def decode_entry(
    body: memoryview,
    names: Mapping[int, str],
    wanted: Collection[RouteKey] | None = None,
) -> RouteEntry | None:
    """A listed route; None if none of ours could have its place, or its key is not wanted.

    Raises ``DataplaneError`` for a body that no kernel writes.
    """
    family, length, source_length, tos, table, protocol, _, kind, flags = unpack(ROUTE_HEADER, body)
    if family not in METRICS or source_length or tos or flags & _CLONED:
        return None
    attributes = parse_attributes(body, ROUTE_HEADER.size)
    metric = read_u32(attributes[_RTA_PRIORITY]) if _RTA_PRIORITY in attributes else 0
    if metric != METRICS[family]:
        return None
    if _RTA_TABLE in attributes:
        table = read_u32(attributes[_RTA_TABLE])
    key = (table, read_network(family, bytes(attributes.get(_RTA_DST, b"")), length))
    if wanted is not None and key not in wanted:
        return None
    simple = kind == UNICAST and _COMPLEX.isdisjoint(attributes)
    route = _build_route(key, attributes, names, flags) if simple else None
    return RouteEntry(key=key, protocol=protocol, route=route)


def _build_route(
    key: RouteKey, attributes: Mapping[int, memoryview], names: Mapping[int, str], flags: int
) -> Route | None:
    link = names.get(read_u32(attributes[_RTA_OIF])) if _RTA_OIF in attributes else None
    if link is None:  # it has gone since the links were listed
        return None
    return Route(
        destination=key[1],
        link=link,
        gateway=_read_address(attributes.get(_RTA_GATEWAY)),
        onlink=bool(flags & _ONLINK),
        source=_read_address(attributes.get(_RTA_PREFSRC)),
        table=key[0],
    )


def _read_address(value: memoryview | None) -> IPAddress | None:
    if value is None:
        return None
    version = _VERSIONS.get(len(value))
    if version is None:
        raise DataplaneError(f"netlink: an address of {len(value)} bytes")
    return share_address(version, int.from_bytes(value, "big"))


def read_network(family: int, packed: bytes, length: int) -> IPNetwork:
    """A destination as the kernel writes it; ``DataplaneError`` for one that no kernel writes."""
    version = 4 if family == AF_INET else 6
    if packed and _VERSIONS.get(len(packed)) != version:
        raise _blame(packed, length)
    try:
        return share_network(version, int.from_bytes(packed, "big"), length)
    except ValueError as error:
        raise _blame(packed, length) from error


def _blame(packed: bytes, length: int) -> DataplaneError:
    return DataplaneError(f"netlink: a destination {packed.hex()}/{length}")
