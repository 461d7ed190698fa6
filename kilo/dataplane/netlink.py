"""Our link, its addresses and our policy rules: a handful of objects, read by hand at each pass.

Of the link's addresses all those of global scope are ours. Of the rules, those with our protocol
number and a priority of our range. Every operation opens a socket of its own, in a thread, so that
nothing here has a state that could go stale.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from ipaddress import ip_network
from typing import TypeVar

from kilo.dataplane.addresses import read_address_entries
from kilo.dataplane.links import find_link
from kilo.dataplane.nlsocket import (
    KernelRefusalError,
    NetlinkSocket,
    parse_attributes,
    read_name,
    read_u32,
    run_with_socket,
    unpack,
)
from kilo.dataplane.routes import METRICS, ROUTE_HEADER, ROUTE_PROTOCOL
from kilo.errors import DataplaneError
from kilo.mesh.model import IPNetwork
from kilo.mesh.state import Address, Link, Rule

Result = TypeVar("Result")

RULE_PROTOCOL = ROUTE_PROTOCOL
RULE_PRIORITIES = range(11070, 11080)
"""Before table main's 32766. Ours take the first; the others are for when somebody else's same
rule is there, which some kernels do not tell from ours."""

_RTM_GETRULE = 34
RULE_HEADER = ROUTE_HEADER
"""``struct fib_rule_hdr``: family, dst_len, src_len, tos, table, two unused, action, flags."""
FRA_TABLE, FRA_PROTOCOL = 15, 21
_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY = 1, 2, 3, 6
_TO_TABLE = 1  # FR_ACT_TO_TBL: not a "goto", "blackhole" or "prohibit"


async def read_link(name: str) -> Link | None:
    """The link's MTU and state; None if there is none of that name. Raises ``DataplaneError``."""
    entry = await run_with_socket(partial(find_link, name=name))
    return Link(name=name, mtu=entry.mtu, up=entry.up) if entry else None


async def read_addresses(link: str) -> frozenset[Address]:
    """The link's addresses of global scope; none if there is no such link."""
    return await run_with_socket(partial(_read_addresses, link=link))


def _read_addresses(netlink: NetlinkSocket, link: str) -> frozenset[Address]:
    entry = find_link(netlink, link)
    return frozenset(
        Address(link=link, interface=address.interface)
        for address in read_address_entries(netlink)
        if entry is not None and address.index == entry.index and address.is_global
    )


async def read_rules() -> frozenset[Rule]:
    """Ours, of both families. Raises ``DataplaneError``."""
    return frozenset(rule for rule, _ in await list_rules())


async def list_rules(families: Iterable[int] = tuple(METRICS)) -> list[tuple[Rule, int]]:
    """Likewise, with their priorities; one that is there twice is listed twice."""
    return await run_with_socket(
        lambda netlink: [*dump_rules(netlink, _decode_rule, families=families)]
    )


def dump_rules(
    netlink: NetlinkSocket,
    decode: Callable[[memoryview], Result | None],
    *,
    families: Iterable[int] = tuple(METRICS),
) -> Iterator[Result]:
    """What ``decode`` makes of every rule, everybody's; None is left out.

    None of a family that the kernel has no rules of: IPv6 may be switched off.
    """
    for family in families:
        request = RULE_HEADER.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        try:
            yield from netlink.dump(_RTM_GETRULE, request, decode)
        except KernelRefusalError as error:
            if error.number != errno.EAFNOSUPPORT:
                raise


def _decode_rule(body: memoryview) -> tuple[Rule, int] | None:
    """None for a rule that we have not written.

    Raises ``DataplaneError`` for a body that no kernel writes.
    """
    family, length, source_length, _, table, _, _, action, _ = unpack(RULE_HEADER, body)
    attributes = parse_attributes(body, RULE_HEADER.size)
    priority = read_u32(attributes[_FRA_PRIORITY]) if _FRA_PRIORITY in attributes else 0
    is_ours = bytes(attributes.get(FRA_PROTOCOL, b"")) == bytes([RULE_PROTOCOL])
    if not is_ours or priority not in RULE_PRIORITIES or family not in METRICS:
        return None
    destination = _read_network(attributes.get(_FRA_DST), length)
    if destination is None or action != _TO_TABLE:
        return None
    rule = Rule(
        destination=destination,
        table=read_u32(attributes[FRA_TABLE]) if FRA_TABLE in attributes else table,
        source=_read_network(attributes.get(_FRA_SRC), source_length),
        input_link=read_name(attributes.get(_FRA_IIFNAME, memoryview(b""))),
    )
    return rule, priority


def _read_network(packed: memoryview | None, length: int) -> IPNetwork | None:
    """Not strictly: of what somebody else writes under our number the kernel keeps all bits."""
    if packed is None:
        return None
    try:
        return ip_network((bytes(packed), length), strict=False)
    except ValueError as error:
        raise DataplaneError(f"netlink: a rule's network {bytes(packed).hex()}/{length}") from error
