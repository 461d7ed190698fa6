"""Spec section 4.3: the i-th segment gets the i-th address of every Kilo subnet."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from kilo.errors import MeshError
from kilo.mesh.addressing import allocate, count_addresses, host_network
from tests.mesh.fleets import interfaces, nets


@pytest.mark.parametrize(
    ("subnet", "count"),
    [
        pytest.param("10.4.0.0/16", 65534, id="neither the network's nor the broadcast address"),
        pytest.param("10.4.0.0/30", 2, id="the smallest useful IPv4 subnet"),
        pytest.param("10.4.0.0/31", 0, id="nothing between first and last"),
        pytest.param("10.4.0.0/32", 0, id="one address, which is the network's"),
        pytest.param("fd00:4::/126", 3, id="IPv6 has no broadcast address"),
        pytest.param("fd00:4::/128", 0, id="one IPv6 address, which is the network's"),
    ],
)
def test_a_subnet_serves(subnet: str, count: int) -> None:
    assert count_addresses(ip_network(subnet)) == count


def test_addresses_count_up_in_every_subnet_and_keep_its_prefix_length() -> None:
    assert allocate(nets("10.4.0.0/16 fd00:4::/64"), 2) == [
        interfaces("10.4.0.1/16 fd00:4::1/64"),
        interfaces("10.4.0.2/16 fd00:4::2/64"),
    ]


def test_the_256th_segment_gets_the_next_block() -> None:
    assert allocate(nets("10.4.0.0/16"), 256)[-1] == interfaces("10.4.1.0/16")


def test_the_last_address_of_a_subnet_is_given_out_and_no_more() -> None:
    assert allocate(nets("10.4.0.0/30"), 2)[-1] == interfaces("10.4.0.2/30")
    with pytest.raises(MeshError, match=r"10\.4\.0\.0/30 has 2 addresses for 3 segments"):
        allocate(nets("10.4.0.0/30"), 3)


def test_no_segments_fit_any_subnet() -> None:
    assert allocate(nets("10.4.0.0/32"), 0) == []


def test_a_host_network_holds_one_address() -> None:
    assert host_network(ip_address("10.4.0.1")) == ip_network("10.4.0.1/32")
    assert host_network(ip_address("fd00::1")) == ip_network("fd00::1/128")
