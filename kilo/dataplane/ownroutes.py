"""Our routes and barriers as the kernel lists them, in one listing, pass after pass.

Every pass reads all of them, thousands, and mostly the kernel says word for word what it said the
time before. What it says in the same words means the same, so only what is new is decoded.
Everything here blocks: run it in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping

from kilo.dataplane.barriers import decode_barrier
from kilo.dataplane.links import read_link_names
from kilo.dataplane.nlsocket import NetlinkSocket
from kilo.dataplane.routes import (
    METRICS,
    ROUTE_HEADER,
    ROUTE_PROTOCOL,
    RTM_GETROUTE,
    RouteKey,
    decode_entry,
)
from kilo.mesh.state import Barrier, Route

_PROTOCOL = slice(5, 6)
"""Of ``ROUTE_HEADER``: to take all of it apart, for each of thousands, would take longer."""
_OURS = bytes([ROUTE_PROTOCOL])

_Meaning = Route | Barrier | None


class OwnRoutes:
    """Reads them; used by one thread at a time."""

    def __init__(self) -> None:
        self._names: Mapping[int, str] = {}
        """The links' names when they were last read: a route means its link by a number."""
        self._meanings: dict[bytes, _Meaning] = {}
        """The messages of the last listing, and what they mean; no others."""
        self._found: tuple[frozenset[Route], frozenset[Barrier]] = (frozenset(), frozenset())
        """What they mean all together."""
        self.places: frozenset[RouteKey] = frozenset()
        """Where the routes were that were read last."""

    def read(self, netlink: NetlinkSocket) -> tuple[frozenset[Route], frozenset[Barrier]]:
        """Of all tables and both families. Raises ``DataplaneError``."""
        names = read_link_names(netlink)
        known = self._meanings if names == self._names else {}
        messages = [
            message
            for family in METRICS
            for message in netlink.dump(RTM_GETROUTE, _make_request(family), _copy_if_ours)
        ]
        meanings = {
            message: known[message] if message in known else decode_own(memoryview(message), names)
            for message in messages
        }
        if known is not self._meanings or meanings.keys() != known.keys():
            self._found = routes, _ = _sort_out(meanings)
            self.places = frozenset((route.table, route.destination) for route in routes)
        self._names, self._meanings = names, meanings
        return self._found


def _make_request(family: int) -> bytes:
    return ROUTE_HEADER.pack(family, 0, 0, 0, 0, ROUTE_PROTOCOL, 0, 0, 0)


def _copy_if_ours(body: memoryview) -> bytes | None:
    """Kernels before 4.20 list what others have, too: on a router, a million routes."""
    return bytes(body) if body[_PROTOCOL] == _OURS else None


def decode_own(body: memoryview, names: Mapping[int, str]) -> Route | Barrier | None:
    """What a listed route is of ours; None if it is nothing that we would make.

    Raises ``DataplaneError`` for a body that no kernel writes.
    """
    entry = decode_entry(body, names)
    if entry is not None and entry.route is not None and entry.protocol == ROUTE_PROTOCOL:
        return entry.route
    return decode_barrier(body)


def _sort_out(meanings: Mapping[bytes, _Meaning]) -> tuple[frozenset[Route], frozenset[Barrier]]:
    return (
        frozenset(one for one in meanings.values() if isinstance(one, Route)),
        frozenset(one for one in meanings.values() if isinstance(one, Barrier)),
    )
