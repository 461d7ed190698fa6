"""Our link, its addresses and our policy rules: a handful of objects, read by hand at each pass.

Of the link's addresses all those of global scope are ours. Of the rules, those with our protocol
number and a priority of our range. Every operation opens a socket of its own, in a thread, so that
nothing here has a state that could go stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from kilo.dataplane.addresses import read_address_entries
from kilo.dataplane.links import find_link
from kilo.dataplane.nlsocket import (
    NetlinkSocket,
    parse_attributes,
    read_name,
    read_u32,
    run_with_socket,
    unpack,
)
from kilo.dataplane.routes import METRICS, ROUTE_HEADER, ROUTE_PROTOCOL, read_network
from kilo.mesh.diff import Change
from kilo.mesh.model import IPNetwork
from kilo.mesh.state import Address, Link, Rule

RULE_PROTOCOL = ROUTE_PROTOCOL
RULE_PRIORITIES = range(11070, 11080)
"""Before table main's 32766. Ours take the first; the others are for when somebody else's same
rule is there, which some kernels do not tell from ours."""

_RTM_GETRULE = 34
_RULE_HEADER = ROUTE_HEADER
"""``struct fib_rule_hdr``: family, dst_len, src_len, tos, table, two unused, action, flags."""
_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_TABLE, _FRA_PROTOCOL = 1, 2, 3, 6, 15, 21
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
        if entry is not None and address.index == entry.index
    )


async def read_rules() -> frozenset[Rule]:
    """Ours, of both families. Raises ``DataplaneError``."""
    return frozenset(rule for rule, _ in await list_rules())


async def list_rules() -> list[tuple[Rule, int]]:
    """Likewise, with their priorities; one that is there twice is listed twice."""
    return await run_with_socket(lambda netlink: list(_list_rules(netlink)))


async def apply_step(step: Change) -> None:
    """Set up a link that is there, or add or delete an address or rule; idempotent.

    Raises ``DataplaneError`` beginning with the step.
    """
    # Loaded with the first change: it takes 10 MB and 0.1 s, and an agent that starts on a host
    # where all is in place changes nothing.
    from kilo.dataplane import netlinkchanges  # noqa: PLC0415 - see above

    await netlinkchanges.apply_step(step)


def _list_rules(netlink: NetlinkSocket) -> Iterator[tuple[Rule, int]]:
    for family in METRICS:
        yield from netlink.dump(
            _RTM_GETRULE, _RULE_HEADER.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), _decode_rule
        )


def _decode_rule(body: memoryview) -> tuple[Rule, int] | None:
    """None for a rule that we have not written.

    Raises ``DataplaneError`` for a body that no kernel writes.
    """
    family, length, source_length, _, table, _, _, action, _ = unpack(_RULE_HEADER, body)
    attributes = parse_attributes(body, _RULE_HEADER.size)
    priority = read_u32(attributes[_FRA_PRIORITY]) if _FRA_PRIORITY in attributes else 0
    is_ours = bytes(attributes.get(_FRA_PROTOCOL, b"")) == bytes([RULE_PROTOCOL])
    if not is_ours or priority not in RULE_PRIORITIES or family not in METRICS:
        return None
    destination = _read_network(family, attributes.get(_FRA_DST), length)
    if destination is None or action != _TO_TABLE:
        return None
    rule = Rule(
        destination=destination,
        table=read_u32(attributes[_FRA_TABLE]) if _FRA_TABLE in attributes else table,
        source=_read_network(family, attributes.get(_FRA_SRC), source_length),
        input_link=read_name(attributes.get(_FRA_IIFNAME, memoryview(b""))),
    )
    return rule, priority


def _read_network(family: int, packed: memoryview | None, length: int) -> IPNetwork | None:
    return None if packed is None else read_network(family, bytes(packed), length)
