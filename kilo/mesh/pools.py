"""Which part of a pool a node is given for its workloads."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from kilo.mesh.model import IPNetwork, Settings, SubnetPool
from kilo.mesh.networkindex import NetworkIndex


def find_objection(pool: SubnetPool, settings: Settings) -> str:
    """Why the pool cannot be given out: addresses that are the mesh's own. Empty if it can."""
    own = NetworkIndex((subnet, "the Kilo subnets") for subnet in settings.subnets)
    for network in settings.service_cidrs:
        own.add(network, "the service CIDRs")
    found = own.find_overlap(pool.network)
    return f"overlaps {found[0]} of {found[1]}" if found else ""


def find_lacking(
    pools: Sequence[SubnetPool], pod_subnets: Sequence[IPNetwork]
) -> tuple[SubnetPool, ...]:
    """The pools of whose family a node with these pod subnets has none."""
    versions = {subnet.version for subnet in pod_subnets}
    return tuple(pool for pool in pools if pool.network.version not in versions)


def is_part(pool: SubnetPool, network: IPNetwork) -> bool:
    """Whether a node may have got the network from this pool."""
    return (
        network.prefixlen == pool.node_prefix_length
        and NetworkIndex([(pool.network, "")]).find_cover(network) is not None
    )


def find_free_part(pool: SubnetPool, taken: NetworkIndex[str], *, seed: str) -> IPNetwork | None:
    """The next part of the pool that overlaps nothing that is taken; None if there is none left.

    The search goes round once, from where ``seed`` points, so that many who look at the same
    moment do not all find the same.
    """
    count = 1 << (pool.node_prefix_length - pool.network.prefixlen)
    start = int.from_bytes(blake2b(seed.encode(), digest_size=16).digest()) % count
    after = _find_free_among(pool, taken, range(start, count))
    return after or _find_free_among(pool, taken, range(start))


def _find_free_among(
    pool: SubnetPool, taken: NetworkIndex[str], numbers: range
) -> IPNetwork | None:
    number = numbers.start
    while number < numbers.stop:
        part = _make_part(pool, number)
        found = taken.find_overlap(part)
        if found is None:
            return part
        number = _find_number_after(pool, found[0])
    return None


def _make_part(pool: SubnetPool, number: int) -> IPNetwork:
    first = int(pool.network.network_address) + number * _count_addresses(pool)
    return type(pool.network)((first, pool.node_prefix_length))


def _find_number_after(pool: SubnetPool, network: IPNetwork) -> int:
    """That of the first part beyond a network, which may be far wider than a part, or narrower."""
    end = int(network.broadcast_address) + 1 - int(pool.network.network_address)
    return -(-end // _count_addresses(pool))


def _count_addresses(pool: SubnetPool) -> int:
    return 1 << (pool.network.max_prefixlen - pool.node_prefix_length)
