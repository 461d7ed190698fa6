"""WireGuard addresses: the i-th segment gets the i-th address of every Kilo subnet."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_interface

from kilo.errors import MeshError
from kilo.mesh.model import IPAddress, IPInterface, IPNetwork
from kilo.mesh.shared import share_network


def count_addresses(subnet: IPNetwork) -> int:
    """How many segments a subnet can serve: all but its first and, in IPv4, its last address."""
    return max(0, subnet.num_addresses - (2 if subnet.version == 4 else 1))


def allocate(subnets: Sequence[IPNetwork], count: int) -> list[tuple[IPInterface, ...]]:
    """The addresses of ``count`` segments, each with its subnet's prefix length.

    ``MeshError`` names the subnet that is too small.
    """
    for subnet in subnets:
        if count > count_addresses(subnet):
            raise MeshError(
                f"subnet {subnet} has {count_addresses(subnet)} addresses"
                f" for {count} segments: the network stays as it is"
            )
    return [tuple(_address(subnet, index) for subnet in subnets) for index in range(1, count + 1)]


def _address(subnet: IPNetwork, index: int) -> IPInterface:
    return ip_interface(f"{subnet.network_address + index}/{subnet.prefixlen}")


def host_network(address: IPAddress) -> IPNetwork:
    """The network of exactly one address, a /32 or /128; of an interface, that of its address."""
    return share_network(address.version, int(address), address.max_prefixlen)
