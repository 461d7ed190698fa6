"""Changes of our link, its addresses and our policy rules, through pyroute2.

Every operation opens a socket of its own (0.3 ms), so that nothing here has a state.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kilo.dataplane.links import promote_secondaries
from kilo.dataplane.netlink import RULE_PRIORITIES, RULE_PROTOCOL, list_rules
from kilo.dataplane.nlsocket import run_with_socket
from kilo.dataplane.routes import FAMILIES
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.state import Address, Link, Rule

_NO_DAD = 0x02


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


async def _add_rule(ipr: Any, rule: Rule) -> None:
    for priority in RULE_PRIORITIES:
        try:
            await _call_rule(ipr, "add", rule, priority)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            if rule in [found for found, _ in await list_rules()]:
                return
        else:
            return
    raise NetlinkError(errno.EEXIST, "File exists")


async def _delete_rule(ipr: Any, rule: Rule) -> None:
    """At each priority that it has, so that no double stays behind."""
    for priority in [priority for found, priority in await list_rules() if found == rule]:
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
