"""Many networks -> the fewest that hold the same addresses.

As ``ipaddress.collapse_addresses`` has it, but by numbers: of thousands of networks few are left,
and only of those is an object made.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from kilo.mesh.model import IPNetwork

_Block = tuple[int, int]
"""First address and prefix length."""


def collapse(networks: Iterable[IPNetwork]) -> frozenset[IPNetwork]:
    """The fewest networks that hold the same addresses: none overlaps another."""
    blocks: dict[int, set[_Block]] = {4: set(), 6: set()}
    for network in networks:
        blocks[network.version].add((int(network.network_address), network.prefixlen))
    ipv4 = map(IPv4Network, _join_blocks(sorted(blocks[4]), bits=32))
    ipv6 = map(IPv6Network, _join_blocks(sorted(blocks[6]), bits=128))
    return frozenset((*ipv4, *ipv6))


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
