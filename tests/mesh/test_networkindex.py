"""What is found among many networks, compared with looking at every one of them."""

from __future__ import annotations

import time
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.mesh.model import IPNetwork, Peer, Settings
from kilo.mesh.networkindex import NetworkIndex
from kilo.mesh.topology import build_topology
from tests.builders import make_key
from tests.mesh.fleets import make_node, make_peer

# Few addresses, so that many networks meet; both families, which never do.
NETWORKS = st.builds(
    lambda low, length: IPv4Network((0x0A020000 + low, length), strict=False),
    st.integers(0, 255),
    st.integers(20, 32) | st.just(0),
) | st.builds(
    lambda low, length: IPv6Network((0xFD << 120 | low, length), strict=False),
    st.integers(0, 255),
    st.integers(118, 128) | st.just(0),
)


def contains(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and other.subnet_of(one)  # type: ignore[arg-type]  # of one family


@settings(deadline=None, max_examples=500)
@given(st.lists(NETWORKS, max_size=12, unique=True), NETWORKS)
def test_it_finds_what_looking_at_each_finds(networks: list[IPNetwork], asked: IPNetwork) -> None:
    index = NetworkIndex((network, f"owner of {network}") for network in networks)
    covers = [network for network in networks if contains(network, asked)]
    overlapping = {*covers, *(network for network in networks if contains(asked, network))}

    cover, overlap = index.find_cover(asked), index.find_overlap(asked)

    narrowest = max(covers, key=lambda network: network.prefixlen, default=None)
    assert cover == (None if narrowest is None else (narrowest, f"owner of {narrowest}"))
    assert (overlap is None) == (not overlapping)
    assert overlap is None or overlap[0] in overlapping


def test_the_last_owner_of_a_network_counts_and_what_comes_later_is_found() -> None:
    network, wide = ip_network("10.2.1.0/24"), ip_network("10.2.0.0/16")
    index = NetworkIndex([(network, "a")])
    assert index.find_overlap(wide) == (network, "a")
    index.add(network, "b")
    index.add(ip_network("10.2.0.0/24"), "c")
    assert index.find_cover(network) == (network, "b")
    assert index.find_overlap(wide) == (ip_network("10.2.0.0/24"), "c")


def test_a_network_is_found_whatever_else_it_says() -> None:
    zoned = ip_network("fd00:2::%x/64")
    index = NetworkIndex([(zoned, "a")])
    assert index.find_overlap(ip_network("fd00::/16")) == (zoned, "a")


@pytest.mark.parametrize("prefix", ["10", "fd00"])
def test_who_claims_thousands_of_addresses_holds_nobody_up(prefix: str) -> None:
    """An annotation may hold 15,000 of them and a Peer 60,000: no reason to be deaf for minutes."""
    claims = {
        where: " ".join(_list_addresses(prefix, block, 8000)) for block, where in enumerate("ewp")
    }
    nodes = [
        make_node(name, location=name, internal=f"192.168.{number}.1/24", location_ips=claims[name])
        for number, name in enumerate("ew")
    ]
    peer: Peer = make_peer("p", claims["p"])
    begin = time.monotonic()

    topology = build_topology(nodes, [peer], Settings())

    assert time.monotonic() - begin < 20.0  # 0.5 s; by comparing each with each, minutes
    assert topology.refusals == ()
    assert [len(one.allowed_location_ips) for one in topology.segments] == [8000, 8000]
    assert topology.peers[0].public_key == make_key("p")


def _list_addresses(prefix: str, block: int, count: int) -> list[str]:
    if prefix == "10":
        return [f"10.{block + 100}.{i >> 8}.{i & 255}/32" for i in range(count)]
    return [f"fd00:{block + 100}::{i:x}/128" for i in range(count)]
