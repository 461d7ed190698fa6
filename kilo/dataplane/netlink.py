"""Our link, its addresses and our policy rules: a handful of objects, through pyroute2.

Of the link's addresses all those of global scope are ours. Of the rules, those with our protocol
number and a priority of our range. Every operation opens a socket of its own (0.3 ms), so that
nothing here has a state that could go stale.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_interface, ip_network
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kilo.dataplane.links import find_link, promote_secondaries
from kilo.dataplane.nlsocket import run_with_socket
from kilo.dataplane.routes import FAMILIES, ROUTE_PROTOCOL
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.model import IPNetwork
from kilo.mesh.state import Address, Link, Rule

RULE_PROTOCOL = ROUTE_PROTOCOL
RULE_PRIORITIES = range(11070, 11080)
"""Before table main's 32766. Ours take the first; the others are for when somebody else's same
rule is there, which some kernels do not tell from ours."""

_TO_TABLE = 1  # FR_ACT_TO_TBL: not a "goto", "blackhole" or "prohibit"
_UNIVERSE = 0
_NO_DAD = 0x02


async def read_link(name: str) -> Link | None:
    """The link of that name, if there is one. Raises ``DataplaneError``."""
    entry = await run_with_socket(partial(find_link, name=name))
    return Link(name=name, mtu=entry.mtu, up=entry.up) if entry else None


async def read_addresses(link: str) -> frozenset[Address]:
    """The link's addresses of global scope; none if there is no such link."""
    async with _open(f"addresses of {link}") as ipr:
        found = set()
        for index in await ipr.link_lookup(ifname=link):
            async for message in await ipr.get_addr(index=index):
                if message["index"] == index and message["scope"] == _UNIVERSE:
                    # Point to point, IFA_ADDRESS is the other end; IPv6 mostly has nothing else.
                    own = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
                    interface = ip_interface(f"{own}/{message['prefixlen']}")
                    found.add(Address(link=link, interface=interface))
        return frozenset(found)


async def read_rules() -> frozenset[Rule]:
    """Ours, of both families."""
    async with _open("rules") as ipr:
        return frozenset([rule async for rule, _ in _list_rules(ipr)])


async def apply_step(step: Change) -> None:
    """Carry out one step about a link that exists, an address or a rule.

    Raises ``DataplaneError`` beginning with the step.
    """
    async with _open(str(step)) as ipr:
        match step.resource:
            case Link() as link:
                await _set_link(ipr, link)
            case Address() as address if step.new is None:
                await _delete_address(ipr, address)
            case Address() as address:
                await _add_address(ipr, address)
            case Rule() as rule if step.new is None:
                await _delete_rule(ipr, rule)
            case Rule() as rule:
                await _add_rule(ipr, rule)
            case resource:
                raise TypeError(f"{resource} is not for this driver")


@asynccontextmanager
async def _open(what: str) -> AsyncIterator[Any]:
    try:
        async with AsyncIPRoute() as ipr:
            yield ipr
    except NetlinkError as error:
        raise DataplaneError(f"{what}: {error.args[1]}") from error
    except OSError as error:
        raise DataplaneError(f"{what}: {error.strerror or error}") from error
    except DataplaneError as error:
        raise DataplaneError(f"{what}: {error}") from error


async def _find_index(ipr: Any, name: str) -> int:
    for index in await ipr.link_lookup(ifname=name):
        return int(index)
    raise NetlinkError(errno.ENODEV, "No such device")


async def _set_link(ipr: Any, link: Link) -> None:
    state = "up" if link.up else "down"
    await ipr.link("set", index=await _find_index(ipr, link.name), mtu=link.mtu, state=state)


async def _add_address(ipr: Any, address: Address) -> None:
    index = await _find_index(ipr, address.link)
    extra = {}
    if address.interface.version == 4:
        await run_with_socket(partial(promote_secondaries, index=index))
    else:
        # Nobody else on a tunnel can have the address, and a tentative one cannot be a source.
        extra = {"flags": _NO_DAD}
    try:
        await _call_address(ipr, "add", index, address, **extra)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


async def _delete_address(ipr: Any, address: Address) -> None:
    try:
        index = await _find_index(ipr, address.link)
        await _call_address(ipr, "del", index, address)
    except NetlinkError as error:
        if error.code not in (errno.EADDRNOTAVAIL, errno.ENODEV):
            raise


async def _call_address(ipr: Any, command: str, index: int, address: Address, **extra: int) -> None:
    interface = address.interface
    await ipr.addr(
        command,
        index=index,
        family=FAMILIES[interface.version],
        address=str(interface.ip),
        prefixlen=interface.network.prefixlen,
        **extra,
    )


async def _list_rules(ipr: Any) -> AsyncIterator[tuple[Rule, int]]:
    """Our rules with their priorities."""
    for family in FAMILIES.values():
        async for message in await ipr.get_rules(family=family):
            priority = message.get_attr("FRA_PRIORITY", 0)
            ours = message.get_attr("FRA_PROTOCOL") == RULE_PROTOCOL and priority in RULE_PRIORITIES
            if message["family"] == family and ours:
                rule = _decode_rule(message)
                if rule is not None:
                    yield rule, priority


def _decode_rule(message: Any) -> Rule | None:
    destination = _decode_network(message, "FRA_DST", "dst_len")
    if destination is None or message["action"] != _TO_TABLE:
        return None  # not one that this driver writes
    return Rule(
        destination=destination,
        table=message.get_attr("FRA_TABLE"),
        source=_decode_network(message, "FRA_SRC", "src_len"),
        input_link=message.get_attr("FRA_IIFNAME") or "",
    )


def _decode_network(message: Any, attribute: str, length: str) -> IPNetwork | None:
    address = message.get_attr(attribute)
    return None if address is None else ip_network(f"{address}/{message[length]}", strict=False)


async def _add_rule(ipr: Any, rule: Rule) -> None:
    for priority in RULE_PRIORITIES:
        try:
            await _call_rule(ipr, "add", rule, priority)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            if rule in [found async for found, _ in _list_rules(ipr)]:
                return
        else:
            return
    raise NetlinkError(errno.EEXIST, "File exists")


async def _delete_rule(ipr: Any, rule: Rule) -> None:
    """At each priority that it has, so that no double stays behind."""
    for priority in [priority async for found, priority in _list_rules(ipr) if found == rule]:
        try:
            await _call_rule(ipr, "del", rule, priority)
        except NetlinkError as error:
            if error.code != errno.ENOENT:
                raise


async def _call_rule(ipr: Any, command: str, rule: Rule, priority: int) -> None:
    selectors = {"src": str(rule.source)} if rule.source else {}
    if rule.input_link:
        selectors["iifname"] = rule.input_link
    await ipr.rule(
        command,
        family=FAMILIES[rule.destination.version],
        dst=str(rule.destination),
        table=rule.table,
        priority=priority,
        protocol=RULE_PROTOCOL,
        **selectors,
    )
