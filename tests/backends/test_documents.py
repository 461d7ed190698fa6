"""The schema: what each field accepts, what each refuses and in which words, and round trips."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from kilo.backends.documents import make_settings_document, read_document
from kilo.backends.objects import DeclaredNode, DeclaredSettings, ReportedNode
from kilo.mesh.model import (
    Encapsulation,
    Endpoint,
    Granularity,
    NodeReport,
    NodeSpec,
    PartialSettings,
    Peer,
    SubnetPool,
)
from tests.backends.document_reading import KEY, PRESHARED, read, texts, value_of
from tests.builders import interfaces, make_key, make_preshared_key, networks

# Nodes.


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, NodeSpec()),
        ({}, NodeSpec()),
        ({"location": "oregon"}, NodeSpec(location="oregon")),
        ({"location": None}, NodeSpec()),
        (
            {"endpoint": "198.51.100.1:51820"},
            NodeSpec(endpoint=Endpoint(host="198.51.100.1", port=51820)),
        ),
        (
            {"endpoint": "[2001:db8::1]:51820"},
            NodeSpec(endpoint=Endpoint(host="2001:db8::1", port=51820)),
        ),
        (
            {"endpoint": "a.example.com:1"},
            NodeSpec(endpoint=Endpoint(host="a.example.com", port=1)),
        ),
        (
            {"internalIP": "192.168.0.7/24"},
            NodeSpec(internal_ips=interfaces("192.168.0.7/24")),
        ),
        (
            {"internalIP": "192.168.0.7/24, 2001:db8::7/64"},
            NodeSpec(internal_ips=interfaces("192.168.0.7/24", "2001:db8::7/64")),
        ),
        ({"internalIP": ""}, NodeSpec(internal_ips=())),
        ({"internalIP": "-"}, NodeSpec(internal_ips=())),
        ({"leader": True}, NodeSpec(leader=True)),
        ({"persistentKeepalive": 25}, NodeSpec(persistent_keepalive_seconds=25)),
        (
            {"allowedLocationIPs": ["192.168.9.1/32"]},
            NodeSpec(allowed_location_ips=networks("192.168.9.1/32")),
        ),
        (
            {"allowedLocationIPs": "192.168.9.1/32, 192.168.8.0/24"},
            NodeSpec(allowed_location_ips=networks("192.168.9.1/32", "192.168.8.0/24")),
        ),
        # Host bits would make the network differ from the kernel's on every pass.
        (
            {"allowedLocationIPs": ["192.168.9.1/24", "192.168.9.0/24"]},
            NodeSpec(allowed_location_ips=networks("192.168.9.0/24")),
        ),
        (
            {"podSubnets": ["10.2.1.0/24", "fd00:2::/64"]},
            NodeSpec(pod_subnets=networks("10.2.1.0/24", "fd00:2::/64")),
        ),
        ({"publicKey": KEY}, NodeSpec(public_key=make_key("a"))),
    ],
)
def test_each_field_of_a_node_is_read(spec: object, expected: NodeSpec) -> None:
    reading = read("Node", spec)
    assert texts(reading) == []
    assert value_of(reading) == DeclaredNode(name="x", spec=expected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"location": 1}, "spec.location: '1' is not a string (put it in quotes)"),
        ({"location": True}, "spec.location: 'true' is not a string (put it in quotes)"),
        ({"location": ["a"]}, "spec.location: '[…]' is not a string (put it in quotes)"),
        ({"location": "a\nb"}, "spec.location: 'a\ufffdb' has characters that cannot be printed"),
        ({"endpoint": "198.51.100.1"}, "spec.endpoint: '198.51.100.1' is not host:port"),
        ({"endpoint": "a:0"}, "spec.endpoint: 'a:0' has a port outside 1-65535"),
        ({"endpoint": "a:65536"}, "spec.endpoint: 'a:65536' has a port outside 1-65535"),
        (
            {"endpoint": "2001:db8::1:51820"},
            "spec.endpoint: '2001:db8::1:51820' has an IPv6 address without brackets",
        ),
        ({"endpoint": "300.1.1.1:1"}, "spec.endpoint: '300.1.1.1:1' has a malformed address"),
        ({"endpoint": 51820}, "spec.endpoint: '51820' is not a string"),
        ({"endpoint": {"ip": "a"}}, "spec.endpoint: '{…}' is not a string"),
        ({"internalIP": "192.168.0.7"}, "spec.internalIP: '192.168.0.7' is not a CIDR"),
        (
            {"internalIP": "192.168.0.7/24,192.168.0.8/24"},
            "spec.internalIP: '192.168.0.7/24,192.168.0.8/24' has more than one of a family",
        ),
        ({"leader": "yes"}, "spec.leader: 'yes' is not true or false"),
        ({"leader": 1}, "spec.leader: '1' is not true or false"),
        ({"persistentKeepalive": "25"}, "spec.persistentKeepalive: '25' is not a whole number"),
        ({"persistentKeepalive": -1}, "spec.persistentKeepalive: '-1' is outside 0-65535"),
        ({"persistentKeepalive": 65536}, "spec.persistentKeepalive: '65536' is outside 0-65535"),
        ({"persistentKeepalive": 2.5}, "spec.persistentKeepalive: '2.5' is not a whole number"),
        ({"persistentKeepalive": True}, "spec.persistentKeepalive: 'true' is not a whole number"),
        ({"allowedLocationIPs": 7}, "spec.allowedLocationIPs: '7' is not a list"),
        ({"podSubnets": ["10.2.1.0"]}, "spec.podSubnets[0]: '10.2.1.0' is not a CIDR"),
        ({"podSubnets": ["10.2.1.0/33"]}, "spec.podSubnets[0]: '10.2.1.0/33' is not a CIDR"),
        ({"podSubnets": ["10.2.1.0/255.255.255.0"]}, "'10.2.1.0/255.255.255.0' is not a CIDR"),
        ({"podSubnets": ["fe80::1%eth0/64"]}, "'fe80::1%eth0/64' is not a CIDR"),
        ({"podSubnets": [None]}, "spec.podSubnets[0]: is not a string"),
        ({"publicKey": "abc"}, "spec.publicKey: 'abc' is not base64"),
        ({"publicKey": "AAAA"}, "spec.publicKey: 'AAAA' is 3 bytes long"),
        ({"colour": "red"}, "spec.colour: 'red' is not a field; known are location, endpoint"),
        ({"Location": "x"}, "spec.Location: 'x' is not a field; known are location, endpoint"),
    ],
)
def test_a_bad_field_of_a_node_is_one_message_and_counts_as_absent(
    spec: dict[str, object], message: str
) -> None:
    reading = read("Node", {"podSubnets": ["10.2.9.0/24"]} | spec)
    (text,) = texts(reading)
    assert text.startswith("Node x: spec.")
    assert message in text
    assert text.endswith(("; counts as absent", "; left out", "; ignored"))
    value = value_of(reading)
    subnets = () if "podSubnets" in spec else networks("10.2.9.0/24")
    assert value == DeclaredNode(name="x", spec=NodeSpec(pod_subnets=subnets))


def test_one_bad_network_of_a_node_leaves_the_others() -> None:
    reading = read("Node", {"allowedLocationIPs": "10.9.0.0/16,oops,10.8.0.0/16"})
    assert texts(reading) == [
        "Node x: spec.allowedLocationIPs[1]: 'oops' is not a CIDR (address/prefix length); left out"
    ]
    assert value_of(reading) == DeclaredNode(
        name="x", spec=NodeSpec(allowed_location_ips=networks("10.9.0.0/16", "10.8.0.0/16"))
    )


def test_a_spec_that_is_no_mapping_leaves_the_node_out() -> None:
    reading = read("Node", ["location"])
    assert texts(reading) == ["Node x: spec: '[…]' is not a mapping; the Node is left out"]


# Reports.


def test_a_report_is_read_with_its_stamp() -> None:
    reading = read(
        "NodeReport",
        {
            "publicKey": KEY,
            "endpoint": "198.51.100.1:51820",
            "internalIPs": ["192.168.0.1/24"],
            "wireguardIPs": ["10.4.0.1/16"],
            "discoveredEndpoints": [{"publicKey": KEY, "endpoint": "203.0.113.7:4500"}],
            "granularity": "cross",
            "cniCompatibilityIP": "10.2.1.77/32",
            "agent": "kg 1.0.0",
            "lastSeen": 1_700_000_000,
        },
    )
    assert texts(reading) == []
    assert value_of(reading) == ReportedNode(
        report=NodeReport(
            name="x",
            public_key=make_key("a"),
            endpoint=Endpoint(host="198.51.100.1", port=51820),
            internal_ips=interfaces("192.168.0.1/24"),
            wireguard_ips=interfaces("10.4.0.1/16"),
            discovered_endpoints=((make_key("a"), Endpoint(host="203.0.113.7", port=4500)),),
            granularity=Granularity.CROSS,
            cni_compatibility_ip=ip_interface("10.2.1.77/32"),
            agent="kg 1.0.0",
        ),
        last_seen=1_700_000_000,
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"lastSeen": "yesterday"}, "spec.lastSeen: 'yesterday' is not a whole number"),
        ({"lastSeen": -1}, "spec.lastSeen: '-1' is outside 0-9007199254740992"),
        ({"granularity": "half"}, "'half' is not one of location, full, cross"),
        ({"internalIPs": ["10.0.0.1/8", "10.0.0.2/8"]}, "has more than one of a family"),
        (
            {"discoveredEndpoints": [{"publicKey": KEY}]},
            "spec.discoveredEndpoints[0].endpoint: is missing; left out",
        ),
        ({"discoveredEndpoints": {}}, "spec.discoveredEndpoints: '{}' is not a list"),
    ],
)
def test_a_bad_field_of_a_report_counts_as_absent(spec: dict[str, object], message: str) -> None:
    reading = read("NodeReport", {"publicKey": KEY} | spec)
    (text,) = texts(reading)
    assert message in text
    assert value_of(reading) == ReportedNode(
        report=NodeReport(name="x", public_key=make_key("a")), last_seen=None
    )


def test_a_report_without_key_is_left_out() -> None:
    reading = read("NodeReport", {"lastSeen": 1})
    assert texts(reading) == [
        "NodeReport x: spec.publicKey: is missing; the NodeReport is left out"
    ]


# Peers.


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, {}),
        ({"persistentKeepalive": 10}, {"persistent_keepalive_seconds": 10}),
        ({"presharedKey": PRESHARED}, {"preshared_key": make_preshared_key("a")}),
        (
            {"endpoint": {"dnsOrIP": {"dns": "host.example.com"}, "port": 51820}},
            {"endpoint": Endpoint(host="host.example.com", port=51820)},
        ),
        (
            {"endpoint": {"dnsOrIP": {"ip": "2001:DB8::7"}, "port": 1}},
            {"endpoint": Endpoint(host="2001:db8::7", port=1)},
        ),
        # Kilo's rule: the address wins.
        (
            {"endpoint": {"dnsOrIP": {"dns": "a.example.com", "ip": "203.0.113.7"}, "port": 1}},
            {"endpoint": Endpoint(host="203.0.113.7", port=1)},
        ),
        (
            {"endpoint": {"dnsOrIP": {"dns": "a.example.com", "ip": ""}, "port": 1}},
            {"endpoint": Endpoint(host="a.example.com", port=1)},
        ),
    ],
)
def test_each_field_of_a_peer_is_read(more: dict[str, object], expected: dict[str, Any]) -> None:
    reading = read("Peer", {"publicKey": KEY, "allowedIPs": ["10.5.0.1/32"]} | more)
    assert texts(reading) == []
    assert value_of(reading) == Peer(
        name="x", public_key=make_key("a"), allowed_ips=networks("10.5.0.1/32"), **expected
    )


def test_allowed_ips_lose_host_bits_and_doubles() -> None:
    reading = read("Peer", {"publicKey": KEY, "allowedIPs": ["10.5.0.9/24", "10.5.0.0/24"]})
    value = value_of(reading)
    assert isinstance(value, Peer)
    assert value.allowed_ips == (ip_network("10.5.0.0/24"),)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"publicKey": None}, "spec.publicKey: is missing"),
        ({"publicKey": "not a key"}, "spec.publicKey: 'not a key' is not base64"),
        ({"allowedIPs": None}, "spec.allowedIPs: is missing"),
        ({"allowedIPs": []}, "spec.allowedIPs: '[]' names no network"),
        ({"allowedIPs": "10.5.0.1/32"}, "spec.allowedIPs: '10.5.0.1/32' is not a list"),
        ({"allowedIPs": ["10.5.0.1"]}, "spec.allowedIPs[0]: '10.5.0.1' is not a CIDR"),
        (
            {"allowedIPs": ["10.5.0.1/32", "10.5.0.300/32"]},
            "spec.allowedIPs[1]: '10.5.0.300/32' is not a CIDR",
        ),
        # Without its preshared key the peer would be let in with less than was asked for.
        ({"presharedKey": "short"}, "spec.presharedKey: is not base64"),
        ({"presharedKey": 7}, "spec.presharedKey: is not a string"),
    ],
)
def test_a_peer_without_what_it_needs_is_left_out_whole(
    spec: dict[str, object], message: str
) -> None:
    reading = read("Peer", {"publicKey": KEY, "allowedIPs": ["10.5.0.1/32"]} | spec)
    (text,) = texts(reading)
    assert text.startswith(f"Peer x: {message}")
    assert text.endswith("; the Peer is left out")
    assert reading.found == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"persistentKeepalive": "x"}, "spec.persistentKeepalive: 'x' is not a whole number"),
        ({"endpoint": "host:1"}, "spec.endpoint: 'host:1' is not a mapping"),
        ({"endpoint": {"port": 1}}, "spec.endpoint.dnsOrIP: is missing"),
        ({"endpoint": {"dnsOrIP": {}, "port": 1}}, "spec.endpoint.dnsOrIP: '{}' names neither"),
        ({"endpoint": {"dnsOrIP": {"dns": "a"}}}, "spec.endpoint.port: is missing"),
        (
            {"endpoint": {"dnsOrIP": {"dns": "a"}, "port": 0}},
            "spec.endpoint.port: '0' is outside 1-65535",
        ),
        (
            {"endpoint": {"dnsOrIP": {"dns": "a", "host": "b"}, "port": 1}},
            "spec.endpoint.dnsOrIP.host: 'b' is not a field; known are dns, ip",
        ),
        ({"privateKey": "x"}, "spec.privateKey: is not a field; known are publicKey"),
    ],
)
def test_a_peer_can_do_without_its_endpoint_and_keepalive(
    spec: dict[str, object], message: str
) -> None:
    reading = read("Peer", {"publicKey": KEY, "allowedIPs": ["10.5.0.1/32"]} | spec)
    (text,) = texts(reading)
    assert text.startswith(f"Peer x: {message}")
    value = value_of(reading)
    assert isinstance(value, Peer)


# Settings.


def test_settings_hold_what_is_set() -> None:
    reading = read(
        "Settings",
        {
            "subnets": ["10.4.0.0/16", "fd00:4::/64"],
            "granularity": "full",
            "port": 51821,
            "mtu": "auto",
            "encapsulation": "crosssubnet",
            "serviceCIDRs": ["10.43.0.0/16"],
            "resyncPeriod": "1m30s",
            "podSubnetPools": [
                {"cidr": "10.2.0.0/16", "nodePrefixLength": 24},
                {"cidr": "fd00:2::/48", "nodePrefixLength": 64},
            ],
        },
        name="anything",
    )
    assert texts(reading) == []
    assert value_of(reading) == DeclaredSettings(
        settings=PartialSettings(
            subnets=networks("10.4.0.0/16", "fd00:4::/64"),
            granularity=Granularity.FULL,
            port=51821,
            mtu=None,
            encapsulation=Encapsulation.CROSSSUBNET,
            service_cidrs=networks("10.43.0.0/16"),
            resync_period_seconds=90.0,
            pod_subnet_pools=(
                SubnetPool(network=ip_network("10.2.0.0/16"), node_prefix_length=24),
                SubnetPool(network=ip_network("fd00:2::/48"), node_prefix_length=64),
            ),
        )
    )


def test_pools_survive_being_written_and_read() -> None:
    pools = (
        SubnetPool(network=ip_network("fd00:2::/48"), node_prefix_length=64),
        SubnetPool(network=ip_network("10.2.0.0/24"), node_prefix_length=24),
    )
    document = make_settings_document(PartialSettings(pod_subnet_pools=pools))
    reading = read_document(document, source="s")
    assert texts(reading) == []
    assert value_of(reading) == DeclaredSettings(settings=PartialSettings(pod_subnet_pools=pools))


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({}, "'10.4.0.0/17' overlaps 10.4.0.0/16 of the Kilo subnets"),
        ({"subnets": ["10.0.0.0/8"]}, "'10.4.0.0/17' overlaps 10.0.0.0/8 of the Kilo subnets"),
        (
            {"subnets": ["10.6.0.0/16"], "serviceCIDRs": ["10.4.7.0/24"]},
            "'10.4.0.0/17' overlaps 10.4.7.0/24 of the service CIDRs",
        ),
    ],
)
def test_a_pool_of_the_meshs_own_addresses_is_left_out_and_the_others_stay(
    mesh: dict[str, object], message: str
) -> None:
    pools = [
        {"cidr": "fd00:2::/48", "nodePrefixLength": 64},
        {"cidr": "10.4.0.0/17", "nodePrefixLength": 24},
    ]
    reading = read("Settings", mesh | {"podSubnetPools": pools})
    assert texts(reading) == [f"Settings x: spec.podSubnetPools[1].cidr: {message}; left out"]
    value = value_of(reading)
    assert isinstance(value, DeclaredSettings)
    assert value.settings["pod_subnet_pools"] == (
        SubnetPool(network=ip_network("fd00:2::/48"), node_prefix_length=64),
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"subnets": ["10.4.0.0/16", "10.6.0.0/16"]}, "has more than one of a family"),
        ({"subnets": []}, "spec.subnets: '[]' names no network"),
        ({"subnets": "10.4.0.0"}, "spec.subnets[0]: '10.4.0.0' is not a CIDR"),
        ({"granularity": "Full"}, "'Full' is not one of location, full, cross"),
        ({"port": "abc"}, "spec.port: 'abc' is not a whole number"),
        ({"port": 70000}, "spec.port: '70000' is outside 1-65535"),
        ({"mtu": 12}, "spec.mtu: '12' is outside 576-65535"),
        ({"mtu": "big"}, "spec.mtu: 'big' is neither a whole number nor auto"),
        ({"encapsulation": "sometimes"}, "is not one of never, crosssubnet, always"),
        ({"resyncPeriod": 30}, "spec.resyncPeriod: '30' is not a string"),
        ({"resyncPeriod": "30"}, "spec.resyncPeriod: '30' is not a duration"),
        ({"resyncPeriod": "0s"}, "spec.resyncPeriod: '0s' is not above zero"),
        ({"podSubnetPools": {}}, "spec.podSubnetPools: '{}' is not a list"),
        ({"podSubnetPools": ["10.2.0.0/16"]}, "podSubnetPools[0]: '10.2.0.0/16' is not a mapping"),
        (
            {"podSubnetPools": [{"cidr": "10.2.0.0/16"}]},
            "spec.podSubnetPools[0].nodePrefixLength: is missing",
        ),
        (
            {"podSubnetPools": [{"cidr": "10.2.0.0", "nodePrefixLength": 24}]},
            "spec.podSubnetPools[0].cidr: '10.2.0.0' is not a CIDR",
        ),
        (
            {"podSubnetPools": [{"cidr": "10.2.0.0/16", "nodePrefixLength": 8}]},
            "spec.podSubnetPools[0].nodePrefixLength: '8' is outside 16-32",
        ),
        (
            {"podSubnetPools": [{"cidr": "fd00:2::/48", "nodePrefixLength": "64"}]},
            "spec.podSubnetPools[0].nodePrefixLength: '64' is not a whole number",
        ),
        (
            {
                "podSubnetPools": [
                    {"cidr": "10.2.0.0/16", "nodePrefixLength": 24},
                    {"cidr": "10.3.0.0/16", "nodePrefixLength": 24},
                ]
            },
            "spec.podSubnetPools: '10.2.0.0/16, 10.3.0.0/16' has more than one of a family",
        ),
    ],
)
def test_a_bad_setting_counts_as_unset(spec: dict[str, object], message: str) -> None:
    reading = read("Settings", {"serviceCIDRs": "10.43.0.0/16"} | spec)
    (text,) = texts(reading)
    assert message in text
    assert value_of(reading) == DeclaredSettings(
        settings=PartialSettings(service_cidrs=networks("10.43.0.0/16"))
    )
