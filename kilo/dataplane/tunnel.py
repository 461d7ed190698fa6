"""The IPIP link: one for the whole host, which the kernel itself may have made.

Loading the kernel's module makes a ``tunl0`` in every network namespace, down and without
addresses, that nobody can delete; other programs make theirs, or use that one. So ours is marked
by its alias, and one that somebody else uses is used as it is and never changed.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable
from functools import partial

from kilo.dataplane.links import LinkEntry, create_link, delete_link, find_link, set_link
from kilo.dataplane.netlink import read_addresses
from kilo.dataplane.netlinkchanges import apply_step
from kilo.dataplane.nlsocket import KernelRefusalError, NetlinkSocket, run_with_socket
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.state import Address, Tunnel

KIND = "ipip"
MARK = "kilo"
"""The alias of ours."""
UNUSED_MTU = 1480
"""Bytes: what the kernel gives its own when it makes it."""


def find_busy_tunnels(links: Iterable[LinkEntry], addressed: Collection[str]) -> frozenset[str]:
    """The IPIP links that others use: up, or among the ``addressed``, and not marked as ours."""
    return frozenset(
        link.name
        for link in links
        if link.kind == KIND and link.alias != MARK and (link.up or link.name in addressed)
    )


async def read_tunnel(name: str) -> Tunnel | None:
    """The link of that name if it is ours. Raises ``DataplaneError``."""
    entry = await run_with_socket(partial(find_link, name=name))
    if entry is None or entry.kind != KIND or entry.alias != MARK:
        return None
    addresses = await read_addresses(name)
    return Tunnel(
        name=name,
        mtu=entry.mtu,
        up=entry.up,
        addresses=frozenset(address.interface for address in addresses),
    )


async def put_tunnel(tunnel: Tunnel) -> None:
    """Make the link as wanted; ``DataplaneError`` if the kernel has none, or others use it."""
    present = {address.interface for address in await read_addresses(tunnel.name)}
    await run_with_socket(partial(_take, tunnel=tunnel, has_addresses=bool(present)))
    for interface in tunnel.addresses - present:
        await apply_step(Change(new=Address(link=tunnel.name, interface=interface)))
    for interface in present - tunnel.addresses:
        await apply_step(Change(old=Address(link=tunnel.name, interface=interface)))


async def remove_tunnel(tunnel: Tunnel) -> None:
    """Delete the link, or leave the kernel's own as it was; one that is not ours is left alone."""
    current = await read_tunnel(tunnel.name)
    if current is None:
        return
    await run_with_socket(partial(delete_link, name=tunnel.name))
    current = await read_tunnel(tunnel.name)
    if current is None:
        return
    for interface in current.addresses:
        await apply_step(Change(old=Address(link=tunnel.name, interface=interface)))
    await run_with_socket(partial(set_link, name=tunnel.name, mtu=UNUSED_MTU, up=False, alias=""))


def _take(netlink: NetlinkSocket, *, tunnel: Tunnel, has_addresses: bool) -> None:
    """Find or make the link, mark it, and set it up."""
    entry = find_link(netlink, tunnel.name)
    if entry is None:
        _create(netlink, tunnel.name)
    elif entry.kind != KIND:
        raise DataplaneError(f"a link of kind {entry.kind or 'hardware'} bears its name")
    elif entry.alias != MARK and (entry.up or has_addresses):
        raise DataplaneError("somebody else uses it")
    set_link(netlink, tunnel.name, mtu=tunnel.mtu, up=tunnel.up, alias=MARK)


def _create(netlink: NetlinkSocket, name: str) -> None:
    try:
        create_link(netlink, name, KIND)
    except KernelRefusalError as error:
        if error.number == errno.EOPNOTSUPP:
            raise DataplaneError("this kernel has no IPIP (module ipip)") from error
        # Loading the module has just made the kernel's own of that name.
        if error.number != errno.EEXIST:
            raise
