"""Many networks -> the fewest that hold the same addresses.

As ``ipaddress.collapse_addresses`` has it, but by numbers: of thousands of networks few are left,
and only of those is an object made.
"""

from __future__ import annotations

from collections.abc import Iterable

from kilo.mesh.model import IPNetwork
from kilo.mesh.shared import share_network

_Block = tuple[int, int]
"""First address and prefix length."""


def collapse(networks: Iterable[IPNetwork]) -> frozenset[IPNetwork]:
    """The fewest networks that hold the same addresses: none overlaps another."""
    blocks: dict[int, set[_Block]] = {4: set(), 6: set()}
    for network in networks:
        blocks[network.version].add((int(network.network_address), network.prefixlen))
    return frozenset(
        share_network(version, *block)
        for version, bits in ((4, 32), (6, 128))
        for block in _join_blocks(sorted(blocks[version]), bits=bits)
    )


def _join_blocks(blocks: Iterable[_Block], *, bits: int) -> list[_Block]:
    """Of blocks in order: those inside others left out, halves of a whole put together."""
    joined: list[_Block] = []
    end = 0
    for block in blocks:
        if block[0] < end:
            continue
        joined.append(block)
        end = block[0] + (1 << (bits - block[1]))
        while len(joined) > 1 and _are_halves(joined[-2], joined[-1], bits):
            joined.pop()
            start, length = joined[-1]
            joined[-1] = (start, length - 1)
    return joined


def _are_halves(first: _Block, second: _Block, bits: int) -> bool:
    (start, length), (other, other_length) = first, second
    size = 1 << (bits - length)
    return length == other_length and other == start + size and not start & size
