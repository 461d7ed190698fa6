"""Many networks, each with a note of whose it is, looked up without looking at all of them.

Any two networks are apart, or one lies inside the other. So whatever overlaps a network contains
it, or begins inside it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from kilo.mesh.model import IPNetwork
from kilo.mesh.shared import make_network

Owner = TypeVar("Owner")

_Start = tuple[int, int, int, IPNetwork]
"""Version, first address and prefix length of a network, and itself."""


class NetworkIndex(Generic[Owner]):
    """Of both families. Anyone may claim thousands of networks, and all agents compare them."""

    def __init__(
        self, claims: Mapping[IPNetwork, Owner] | Iterable[tuple[IPNetwork, Owner]] = ()
    ) -> None:
        """``claims`` are networks and whose they are."""
        self._owners: dict[IPNetwork, Owner] = dict(claims)
        self._sizes = {(network.version, network.prefixlen) for network in self._owners}
        """Version and prefix length of all: few in practice."""
        self._starts: list[_Start] = []
        """Sorted when it is looked at, and made then: most are never asked for what lies inside."""
        self._unsorted: list[IPNetwork] = list(self._owners)

    def add(self, network: IPNetwork, owner: Owner) -> None:
        """A network that is there already has this owner from now on."""
        if network not in self._owners:
            self._sizes.add((network.version, network.prefixlen))
            self._unsorted.append(network)
        self._owners[network] = owner

    def find_cover(self, network: IPNetwork) -> tuple[IPNetwork, Owner] | None:
        """The narrowest network that contains this one, itself included, and whose it is."""
        version, own = network.version, network.prefixlen
        lengths = (length for ip, length in self._sizes if ip == version and length <= own)
        for length in sorted(lengths, reverse=True):
            spare = network.max_prefixlen - length
            around = make_network(version, int(network.network_address) >> spare << spare, length)
            if around in self._owners:
                return around, self._owners[around]
        return None

    def find_overlap(self, network: IPNetwork) -> tuple[IPNetwork, Owner] | None:
        """What ``find_cover`` finds, else the first network inside this one, and whose it is."""
        return self.find_cover(network) or self._find_inside(network)

    def _find_inside(self, network: IPNetwork) -> tuple[IPNetwork, Owner] | None:
        if self._unsorted:
            self._starts += (
                (n.version, int(n.network_address), n.prefixlen, n) for n in self._unsorted
            )
            self._starts.sort()
            self._unsorted.clear()
        first = (network.version, int(network.network_address), 0)
        place = bisect_left(self._starts, first)
        if place == len(self._starts):
            return None
        version, start, _, inside = self._starts[place]
        if version != network.version or start > int(network.broadcast_address):
            return None
        return inside, self._owners[inside]
