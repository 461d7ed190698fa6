"""Many networks, each with a note of whose it is, looked up without looking at all of them.

Any two networks are apart, or one lies inside the other. So whatever overlaps a network contains
it, or begins inside it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from kilo.mesh.model import IPNetwork

Key = tuple[int, int, int]
"""A network: version, prefix length and the bits of the prefix."""


class NetworkIndex:
    """Of both families. Anyone may claim thousands of networks, and all agents compare them."""

    def __init__(self, claims: Iterable[tuple[IPNetwork, str]] = ()) -> None:
        """``claims`` are networks and whose they are."""
        self._found: dict[Key, tuple[IPNetwork, str]] = {}
        self._lengths: dict[int, set[int]] = {4: set(), 6: set()}
        """The prefix lengths there are: few in practice."""
        self._starts: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        """First address and prefix length; sorted when it is looked at."""
        self._is_sorted = True
        for network, owner in claims:
            self.add(network, owner)

    def add(self, network: IPNetwork, owner: str) -> None:
        """A network that is there already has this owner from now on."""
        length = network.prefixlen
        key = make_key(network, length)
        if key not in self._found:
            self._lengths[network.version].add(length)
            self._starts[network.version].append((int(network.network_address), length))
            self._is_sorted = False
        self._found[key] = network, owner

    def find_cover(self, network: IPNetwork) -> tuple[IPNetwork, str] | None:
        """The narrowest network that contains this one, itself included, and whose it is."""
        lengths = (n for n in self._lengths[network.version] if n <= network.prefixlen)
        keys = (make_key(network, length) for length in sorted(lengths, reverse=True))
        return next((self._found[key] for key in keys if key in self._found), None)

    def find_overlap(self, network: IPNetwork) -> tuple[IPNetwork, str] | None:
        """What ``find_cover`` finds, else the first network inside this one, and whose it is."""
        return self.find_cover(network) or self._find_inside(network)

    def _find_inside(self, network: IPNetwork) -> tuple[IPNetwork, str] | None:
        if not self._is_sorted:
            for each in self._starts.values():
                each.sort()
            self._is_sorted = True
        starts = self._starts[network.version]
        place = bisect_left(starts, (int(network.network_address), 0))
        if place == len(starts) or starts[place][0] > int(network.broadcast_address):
            return None
        start, length = starts[place]
        return self._found[network.version, length, start >> (network.max_prefixlen - length)]


def make_key(network: IPNetwork, length: int) -> Key:
    """That of the network of this prefix length around it."""
    bits = int(network.network_address) >> (network.max_prefixlen - length)
    return network.version, length, bits
