"""One object for each network and address, whoever speaks of it: the store, the mesh, the kernel.

The standard library compares and hashes them in Python, thousands in every pass. Two that are one
object need not be compared; and what is held once takes its room once.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

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


@lru_cache(maxsize=MOST_SHARED)
def share_network(version: int, first: int, length: int) -> IPNetwork:
    """The network of that first address and prefix length; ``ValueError`` if there is none."""
    return _IPv4Network((first, length)) if version == 4 else _IPv6Network((first, length))


@lru_cache(maxsize=MOST_SHARED)
def share_address(version: int, number: int) -> IPAddress:
    """The address of that number; ``ValueError`` if there is none."""
    return _IPv4Address(number) if version == 4 else _IPv6Address(number)


def share(network: IPNetwork) -> IPNetwork:
    """The one that is equal to this."""
    return share_network(network.version, int(network.network_address), network.prefixlen)
