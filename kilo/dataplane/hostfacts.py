"""What the host is like: all its links and addresses, its default routes, its own name.

Read afresh each time; only the name's addresses are remembered, because a resolver may take
its time and must never hold anything up.
"""

from __future__ import annotations

import errno
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from kilo.dataplane.addresses import read_address_entries
from kilo.dataplane.links import read_links
from kilo.dataplane.nlsocket import (
    KernelRefusalError,
    NetlinkSocket,
    parse_attributes,
    read_u32,
    run_with_socket,
    unpack,
)
from kilo.dataplane.routes import (
    METRICS,
    ROUTE_HEADER,
    RTM_GETROUTE,
    UNICAST,
)
from kilo.dataplane.tunnel import find_busy_tunnels
from kilo.errors import DataplaneError
from kilo.mesh.host import HostAddress, HostFacts
from kilo.mesh.model import IPAddress
from kilo.mesh.state import MAIN_TABLE
from kilo.resolver import look_up, sort_addresses

LOOKUP_SECONDS = 300.0
"""How long an answer is good, if no address changes meanwhile."""
RETRY_SECONDS = 30.0
"""How long to leave a resolver alone that did not answer."""

_RTA_OIF, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = 4, 6, 9, 15
_NEXTHOP = struct.Struct("=HBBi")
"""``struct rtnexthop``: length, flags, hops, index."""


async def read_facts(hostname: HostnameLookup) -> HostFacts:
    """The host now, and what its name resolves to as far as is known; ``sysctls.py`` adds the
    kernel's settings. Raises ``DataplaneError``.
    """

    def read(netlink: NetlinkSocket) -> HostFacts:
        links = read_links(netlink)
        names = {link.index: link.name for link in links}
        addresses = tuple(_read_addresses(netlink, names))
        return HostFacts(
            addresses=addresses,
            busy_tunnels=find_busy_tunnels(links, {address.link for address in addresses}),
            default_links=tuple(_read_default_links(netlink, names)),
            mtus=MappingProxyType({link.name: link.mtu for link in links}),
            kinds=MappingProxyType({link.name: link.kind for link in links}),
            down_links=frozenset(link.name for link in links if not link.up),
        )

    facts = await run_with_socket(read)
    return replace(facts, hostname_addresses=hostname.get_addresses(facts.addresses))


def _read_addresses(netlink: NetlinkSocket, names: dict[int, str]) -> Iterator[HostAddress]:
    for entry in read_address_entries(netlink):
        if entry.fit and entry.index in names:
            yield HostAddress(link=names[entry.index], interface=entry.interface)


def _read_default_links(netlink: NetlinkSocket, names: dict[int, str]) -> list[str]:
    """Links of the main table's default routes: IPv4 first, then by metric, each once."""
    found: dict[str, None] = {}
    for family in METRICS:
        # Strict checking lets the kernel leave out the other tables, and our barriers.
        request = ROUTE_HEADER.pack(family, 0, 0, 0, MAIN_TABLE, 0, 0, UNICAST, 0)
        decode = partial(decode_default, family=family)
        try:
            defaults = netlink.dump(RTM_GETROUTE, request, decode)
        except KernelRefusalError as error:
            if error.number != errno.ENOENT:
                raise
            defaults = []  # not even the table: beside policy rules it is made with its first route
        for _, indexes in sorted(defaults, key=lambda default: default[0]):
            found.update((names[index], None) for index in indexes if index in names)
    return list(found)


def decode_default(body: memoryview, family: int) -> tuple[int, list[int]] | None:
    """Metric, and the link's index of every nexthop; None if it is no default route of table main.

    Raises ``DataplaneError`` for a default route that no kernel writes.
    """
    # First one byte alone, the destination's length: a router may list a million routes here.
    if any(body[1:2]):
        return None
    found_family, _, source_length, _, table, _, _, kind, _ = unpack(ROUTE_HEADER, body)
    if source_length or kind != UNICAST or found_family != family:
        return None
    attributes = parse_attributes(body, ROUTE_HEADER.size)
    if _RTA_TABLE in attributes:
        table = read_u32(attributes[_RTA_TABLE])
    if table != MAIN_TABLE:
        return None
    metric = read_u32(attributes[_RTA_PRIORITY]) if _RTA_PRIORITY in attributes else 0
    indexes = list(_decode_nexthops(attributes.get(_RTA_MULTIPATH, memoryview(b""))))
    if _RTA_OIF in attributes:
        indexes.insert(0, read_u32(attributes[_RTA_OIF]))
    return metric, indexes


def _decode_nexthops(value: memoryview) -> Iterator[int]:
    while value:
        length, _, _, index = unpack(_NEXTHOP, value)
        if not _NEXTHOP.size <= length <= len(value):
            raise DataplaneError(f"netlink: a nexthop of {length} bytes in {len(value)}")
        yield index
        value = value[(length + 3) & ~3 :]


def resolve_hostname(hostname: str) -> tuple[IPAddress, ...]:
    """What the host's resolver says, each address once; ``OSError`` if it does not answer.

    Sorted, because name servers like to turn their answers round.
    """
    return tuple(sort_addresses(look_up(hostname)))


class HostnameLookup:
    """What the host's name resolves to, found out by a thread of its own.

    Kilo waits up to 10 s for a missing resolver at its start (spec section 14); here nobody
    waits. The thread is a daemon: the program ends without it.
    """

    def __init__(
        self,
        hostname: str,
        *,
        on_change: Callable[[], None],
        resolve: Callable[[str], tuple[IPAddress, ...]] = resolve_hostname,
    ) -> None:
        """``on_change`` is called in that thread when there is another answer."""
        self._hostname = hostname
        self._on_change = on_change
        self._resolve = resolve
        self._addresses: tuple[IPAddress, ...] = ()
        self._basis: object = None
        self._due_at = 0.0
        self._thread: threading.Thread | None = None

    def get_addresses(self, basis: object) -> tuple[IPAddress, ...]:
        """The last good answer, () before there is one. Never blocks.

        Asks anew now and then, and when ``basis`` (the host's addresses) is not what it was.
        """
        due = time.monotonic() >= self._due_at or basis != self._basis
        if due and (self._thread is None or not self._thread.is_alive()):
            self._basis = basis
            self._due_at = time.monotonic() + RETRY_SECONDS
            self._thread = threading.Thread(target=self._ask, daemon=True, name="hostname")
            self._thread.start()
        return self._addresses

    def _ask(self) -> None:
        # Blocks for as long as the host's resolver pleases.
        try:
            addresses = self._resolve(self._hostname)
        except (OSError, UnicodeError):
            return  # the last answer stands, and the facts are complete without one
        self._due_at = time.monotonic() + LOOKUP_SECONDS
        if addresses != self._addresses:
            self._addresses = addresses
            self._on_change()
