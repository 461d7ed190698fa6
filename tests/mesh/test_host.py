"""Which of its addresses a host shows the mesh (spec section 3, "How the agent finds ...")."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from kilo.mesh.host import (
    AddressPolicy,
    HostFacts,
    find_endpoint_address,
    find_internal_ips,
    find_link,
    find_wireguard_mtu,
    is_private,
)
from tests.mesh.fleets import make_facts, nets

POLICY = AddressPolicy()


def _with_hostname(facts: HostFacts, *addresses: str) -> HostFacts:
    return replace(facts, hostname_addresses=tuple(map(ip_address, addresses)))


@pytest.mark.parametrize(
    ("facts", "policy", "expected"),
    [
        pytest.param(
            make_facts(eth0="198.51.100.1/24", eth1="192.168.1.1/24"),
            POLICY,
            "192.168.1.1/24",
            id="private addresses only, with their real prefix length",
        ),
        pytest.param(
            make_facts(eth0="192.168.2.1/24", eth1="192.168.1.1/24"),
            POLICY,
            "192.168.2.1/24",
            id="the default route's link before the others",
        ),
        pytest.param(
            _with_hostname(make_facts(eth0="192.168.2.1/24", eth1="192.168.1.1/24"), "192.168.1.1"),
            POLICY,
            "192.168.1.1/24",
            id="what the host name resolves to before the default route's link",
        ),
        pytest.param(
            _with_hostname(make_facts(eth0="192.168.2.1/24"), "192.168.7.7"),
            POLICY,
            "192.168.2.1/24",
            id="but not an address that no interface bears",
        ),
        pytest.param(
            _with_hostname(make_facts(eth0="192.168.2.1/24", lo="127.0.1.1/8"), "127.0.1.1"),
            POLICY,
            "192.168.2.1/24",
            id="nor Debian's 127.0.1.1",
        ),
        pytest.param(
            make_facts(eth0="192.168.1.9/24 192.168.1.10/24"),
            POLICY,
            "192.168.1.10/24",
            id="by text, where 1.10 sorts before 1.9",
        ),
        pytest.param(
            make_facts(eth0="fd00:1::1/64 192.168.1.1/24"),
            POLICY,
            "192.168.1.1/24 fd00:1::1/64",
            id="one of each family, IPv4 first",
        ),
        pytest.param(
            _with_hostname(make_facts(eth0="192.168.1.1/24 fd00:1::1/64"), "fd00:1::1"),
            POLICY,
            "fd00:1::1/64 192.168.1.1/24",
            id="IPv6 first where the host name says so, for Kilo would take that one",
        ),
        pytest.param(
            make_facts(eth0="2001:db8::1/64 fd00:1::1/64"),
            POLICY,
            "fd00:1::1/64",
            id="a public IPv6 address is not internal",
        ),
        pytest.param(
            make_facts(eth0="100.64.0.1/10"), POLICY, "", id="carrier NAT's is not private here"
        ),
        pytest.param(
            make_facts(eth0="192.168.1.1/24", eth1="10.20.0.1/24"),
            AddressPolicy(internal_cidrs=nets("10.20.0.0/16 fd00:9::/64")),
            "10.20.0.1/24",
            id="with --internal-cidr only addresses inside it",
        ),
        pytest.param(
            make_facts(eth0="198.51.100.1/24"),
            AddressPolicy(internal_cidrs=nets("198.51.100.0/24")),
            "",
            id="--internal-cidr restricts, it does not make a public address private",
        ),
        pytest.param(
            make_facts(
                eth0="198.51.100.1/24",
                kilo0="10.4.0.1/16",
                tunl0="10.2.1.1/32",
                **{"kube-bridge": "10.2.1.1/24"},
            ),
            POLICY,
            "",
            id="never the Kilo interface, the tunnel or the CNI bridge",
        ),
        pytest.param(
            _with_hostname(
                make_facts(eth0="192.168.1.1/24", kilo0="10.4.0.1/16"), "10.4.0.1", "192.168.1.1"
            ),
            POLICY,
            "192.168.1.1/24",
            id="not even where the host name resolves to them",
        ),
        pytest.param(
            make_facts(eth0="198.51.100.1/24", wg9="10.4.0.1/16"),
            AddressPolicy(ignored_links=frozenset({"wg9"})),
            "",
            id="whatever the Kilo interface is called",
        ),
        pytest.param(
            make_facts(eth0="198.51.100.1/24", lo="127.0.0.1/8 ::1/128", eth1="169.254.3.4/16"),
            POLICY,
            "",
            id="never loopback or link-local",
        ),
        pytest.param(
            make_facts(eth0="198.51.100.1/24", docker0="172.17.0.1/16", virbr0="192.168.122.1/24"),
            POLICY,
            "",
            id="not what containers and virtual machines made",
        ),
        pytest.param(
            replace(
                make_facts(eth0="198.51.100.1/24", vpn="10.20.0.1/24"), kinds={"vpn": "wireguard"}
            ),
            POLICY,
            "",
            id="not another VPN, whatever its name",
        ),
        pytest.param(
            make_facts(docker0="172.17.0.1/16"),
            POLICY,
            "172.17.0.1/16",
            id="unless the default route goes there",
        ),
        pytest.param(HostFacts(), POLICY, "", id="none at all"),
    ],
)
def test_internal_addresses(facts: HostFacts, policy: AddressPolicy, expected: str) -> None:
    assert " ".join(map(str, find_internal_ips(facts, policy))) == expected


@pytest.mark.parametrize(
    ("facts", "policy", "expected"),
    [
        pytest.param(
            make_facts(eth0="192.168.1.1/24", eth1="198.51.100.1/24"),
            POLICY,
            "198.51.100.1",
            id="a public address wherever it is",
        ),
        pytest.param(
            make_facts(eth0="192.168.1.1/24"), POLICY, "192.168.1.1", id="failing that the internal"
        ),
        pytest.param(
            make_facts(eth0="2001:db8::1/64 192.168.1.1/24"),
            POLICY,
            "2001:db8::1",
            id="a public IPv6 address before a private IPv4 address",
        ),
        pytest.param(
            make_facts(eth0="2001:db8::1/64 198.51.100.1/24"),
            POLICY,
            "198.51.100.1",
            id="IPv4 before IPv6",
        ),
        pytest.param(
            make_facts(eth0="198.51.100.1/24", eth1="192.168.1.1/24"),
            AddressPolicy(prioritise_private=True),
            "192.168.1.1",
            id="--prioritise-private-addresses",
        ),
        pytest.param(
            make_facts(eth0="198.51.100.1/24"),
            AddressPolicy(prioritise_private=True),
            "198.51.100.1",
            id="--prioritise-private-addresses without any",
        ),
        pytest.param(
            make_facts(eth0="198.51.100.1/24", eth1="192.168.1.1/24"),
            AddressPolicy(internal_cidrs=nets("10.20.0.0/16")),
            "198.51.100.1",
            id="--internal-cidr does not restrict public addresses",
        ),
    ],
)
def test_the_endpoints_address(facts: HostFacts, policy: AddressPolicy, expected: str) -> None:
    assert str(find_endpoint_address(facts, policy)) == expected


def test_a_host_without_any_address_has_no_endpoint() -> None:
    facts = make_facts(eth0="fe80::1/64", lo="127.0.0.1/8")
    assert find_endpoint_address(facts, POLICY) is None


def test_the_kernels_order_of_addresses_does_not_matter() -> None:
    facts = make_facts(eth0="192.168.1.1/24 192.168.1.2/24 fd00:1::2/64 fd00:1::1/64")
    backwards = replace(facts, addresses=facts.addresses[::-1])
    assert find_internal_ips(facts, POLICY) == find_internal_ips(backwards, POLICY)


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("10.0.0.1", True),
        ("172.31.0.1", True),
        ("172.32.0.1", False),
        ("100.64.0.1", False),
        ("fd12::1", True),
        ("fc00::1", False),
        ("2001:db8::1", False),
    ],
)
def test_private_means_rfc_1918_and_fd00_8(address: str, private: bool) -> None:  # noqa: FBT001 - a column of the table
    assert is_private(ip_address(address)) is private


def test_the_mtu_is_the_default_links_less_80() -> None:
    facts = replace(make_facts(eth0="", eth1=""), mtus={"eth0": 9000, "eth1": 1500})
    assert find_wireguard_mtu(facts) == 8920
    assert find_wireguard_mtu(replace(facts, default_links=("gone", "eth1"))) == 1420


def test_without_a_default_route_the_mtu_is_1420() -> None:
    assert find_wireguard_mtu(HostFacts()) == 1420


def test_an_address_is_on_the_link_that_bears_it() -> None:
    facts = make_facts(eth0="192.168.1.1/24", eth1="fd00::1/64")
    assert find_link(facts, ip_address("fd00::1")) == "eth1"
    assert find_link(facts, ip_address("192.168.9.9")) is None
