"""Which part of a pool is free: compared with trying them all, and how seekers spread."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.mesh.model import IPNetwork, Settings, SubnetPool
from kilo.mesh.networkindex import NetworkIndex
from kilo.mesh.pools import find_free_part, find_lacking, find_objection, is_part
from tests.mesh.fleets import nets


def make_pool(text: str, length: int) -> SubnetPool:
    return SubnetPool(network=ip_network(text), node_prefix_length=length)


def index(networks: Iterable[IPNetwork]) -> NetworkIndex[str]:
    return NetworkIndex((network, "somebody") for network in networks)


SMALL = make_pool("10.2.3.0/24", 27)
WIDTHS = st.integers(20, 32)
TAKEN = st.lists(
    st.builds(
        lambda low, length: IPv4Network((0x0A020000 + low, length), strict=False),
        st.integers(0, 0x7FF),
        WIDTHS,
    ),
    max_size=10,
    unique=True,
)


@settings(deadline=None, max_examples=500)
@given(TAKEN, st.text())
def test_what_is_found_is_free_and_something_is_found_if_anything_is(
    taken: list[IPv4Network], seed: str
) -> None:
    parts = IPv4Network(SMALL.network).subnets(new_prefix=27)
    free = [part for part in parts if not any(part.overlaps(one) for one in taken)]
    found = find_free_part(SMALL, index(taken), seed=seed)
    assert found in free if free else found is None


@pytest.mark.parametrize(
    ("pool", "count"),
    [
        pytest.param(make_pool("10.2.0.0/24", 28), 16, id="sixteen parts"),
        pytest.param(make_pool("10.2.0.0/24", 24), 1, id="one part, the pool itself"),
        pytest.param(make_pool("10.2.0.0/29", 32), 8, id="single addresses"),
        pytest.param(make_pool("fd00:2::/60", 64), 16, id="IPv6"),
    ],
)
def test_a_pool_is_given_out_to_the_last_part_and_no_further(pool: SubnetPool, count: int) -> None:
    taken: NetworkIndex[str] = NetworkIndex()
    given_out: list[IPNetwork] = []
    while (found := find_free_part(pool, taken, seed=str(len(given_out)))) is not None:
        given_out.append(found)
        taken.add(found, "a node")
    assert len(set(given_out)) == len(given_out) == count
    assert all(is_part(pool, one) for one in given_out)


def test_who_looks_at_the_same_moment_mostly_finds_something_else() -> None:
    pool = make_pool("10.2.0.0/16", 24)
    found = {find_free_part(pool, NetworkIndex(), seed=f"node-{n}") for n in range(200)}
    # Of 200 drawn from 256 about 139 are expected to differ.
    assert len(found) > 100


def test_a_pool_of_countless_parts_is_searched_at_once() -> None:
    pool = make_pool("fd00::/8", 128)
    # All of it but the very first address, in pieces of every width.
    taken = index(IPv6Network("fd00::/8").address_exclude(IPv6Network("fd00::/128")))
    begin = time.monotonic()
    assert find_free_part(pool, taken, seed="a") == ip_network("fd00::/128")
    taken.add(ip_network("fd00::/128"), "somebody")
    assert find_free_part(pool, taken, seed="a") is None
    assert time.monotonic() - begin < 5.0


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("10.2.3.32/27", True),
        ("10.2.3.0/24", False),
        ("10.2.3.32/28", False),
        ("10.2.4.0/27", False),
        ("fd00::/27", False),
    ],
)
def test_a_part_has_the_length_of_parts_and_lies_in_the_pool(
    network: str,
    expected: bool,  # noqa: FBT001 - a column of the table
) -> None:
    assert is_part(SMALL, ip_network(network)) is expected


def test_a_node_lacks_what_it_has_no_subnet_of_the_family_of() -> None:
    pools = (make_pool("10.2.0.0/16", 24), make_pool("fd00:2::/48", 64))
    assert find_lacking(pools, ()) == pools
    assert find_lacking(pools, nets("10.9.9.0/24")) == pools[1:]
    assert find_lacking(pools, nets("10.9.9.0/24 fd00:9::/64")) == ()


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("10.4.128.0/17", "overlaps 10.4.0.0/16 of the Kilo subnets"),
        ("10.0.0.0/8", "overlaps 10.4.0.0/16 of the Kilo subnets"),
        ("10.96.0.0/16", "overlaps 10.96.0.0/12 of the service CIDRs"),
        ("fd00:4::/64", "overlaps fd00:4::/64 of the Kilo subnets"),
        ("10.2.0.0/16", ""),
        ("fd00:2::/48", ""),
    ],
)
def test_a_pool_must_not_hold_addresses_of_the_mesh_itself(pool: str, expected: str) -> None:
    own = replace(Settings(), subnets=nets("10.4.0.0/16 fd00:4::/64"))
    own = replace(own, service_cidrs=nets("10.96.0.0/12"))
    assert find_objection(make_pool(pool, ip_network(pool).max_prefixlen), own) == expected
