"""One object for each network of the mesh, whoever speaks of it: the store, the mesh, the kernel.

The standard library compares and hashes them in Python, thousands in every pass. Two that are one
object need not be compared; and what is held once takes its room once.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from kilo.mesh.model import IPAddress, IPNetwork

MOST_SHARED = 1 << 16
"""Above which those not spoken of for longest are made anew."""


class _HashedOnce:
    """What is looked up in one table after the other computes its hash once."""

    _hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash


class _IPv4Network(_HashedOnce, IPv4Network):
    pass


class _IPv6Network(_HashedOnce, IPv6Network):
    pass


class _IPv4Address(_HashedOnce, IPv4Address):
    pass


class _IPv6Address(_HashedOnce, IPv6Address):
    pass


def make_network(version: int, first: int, length: int) -> IPNetwork:
    """The network of that first address and prefix length; ``ValueError`` if there is none.

    One that is not shared: for those that perhaps nobody else speaks of.
    """
    return _IPv4Network((first, length)) if version == 4 else _IPv6Network((first, length))


share_network = lru_cache(maxsize=MOST_SHARED)(make_network)
"""The same, the one and only."""


@lru_cache(maxsize=MOST_SHARED)
def share_address(version: int, number: int) -> IPAddress:
    """The address of that number; ``ValueError`` if there is none."""
    return _IPv4Address(number) if version == 4 else _IPv6Address(number)


def share(network: IPNetwork) -> IPNetwork:
    """The one that is equal to this, which has no zone."""
    return share_network(network.version, int(network.network_address), network.prefixlen)


def parse_network(text: str, *, strict: bool = True) -> IPNetwork:
    """The network that a text names, if ``strict`` without host bits; ``ValueError`` if it names
    none, or one with a zone, which means something on one host only.
    """
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    return share(ip_network(text, strict=strict))
