"""The schema: what each field accepts, what each refuses and in which words, and round trips."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.backends.documents import (
    API_VERSION,
    Reading,
    make_node_document,
    make_peer_document,
    make_report_document,
    make_settings_document,
    read_document,
)
from kilo.backends.objects import DeclaredNode, DeclaredSettings, ReportedNode, StoredObject
from kilo.backends.yamltext import load_documents
from kilo.mesh.model import (
    Encapsulation,
    Endpoint,
    Granularity,
    NodeReport,
    NodeSpec,
    PartialSettings,
    Peer,
)
from tests.backends import strategies
from tests.builders import interfaces, make_key, make_peer, make_preshared_key, networks

KEY = str(make_key("a"))
PRESHARED = make_preshared_key("a").reveal()


def read(kind: str, spec: object, *, name: str = "x") -> Reading:
    document = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
    return read_document(document, source="mesh.yaml")


def value_of(reading: Reading) -> StoredObject:
    (found,) = reading.found
    return found.value


def texts(reading: Reading) -> list[str]:
    """Of the problems, without what is the same in all."""
    return [str(problem).removeprefix("mesh.yaml: ") for problem in reading.problems]


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
        )
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
    ],
)
def test_a_bad_setting_counts_as_unset(spec: dict[str, object], message: str) -> None:
    reading = read("Settings", {"serviceCIDRs": "10.43.0.0/16"} | spec)
    (text,) = texts(reading)
    assert message in text
    assert value_of(reading) == DeclaredSettings(
        settings=PartialSettings(service_cidrs=networks("10.43.0.0/16"))
    )


# Lists, and objects that are none of ours.


def test_lists_are_read_item_by_item_and_one_bad_item_stops_no_other() -> None:
    good = make_peer_document(make_peer("good"))
    document = {"apiVersion": "v1", "kind": "List", "items": [7, good, {"kind": "Pod"}]}
    reading = read_document(document, source="dump.yaml")
    assert [(found.source, found.name) for found in reading.found] == [
        ("dump.yaml, item 2", "good")
    ]
    assert list(map(str, reading.problems)) == [
        "dump.yaml, item 1: '7' is not an object (a mapping); left out",
        f"dump.yaml, item 3: apiVersion: is not {API_VERSION} (or v1); the document is left out",
    ]


def test_the_items_of_a_typed_list_need_not_repeat_their_kind() -> None:
    peer = make_peer_document(make_peer("a"))
    bare = {"metadata": peer["metadata"], "spec": peer["spec"]}
    document = {"apiVersion": API_VERSION, "kind": "PeerList", "items": [bare]}
    assert [found.name for found in read_document(document, source="s").found] == ["a"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "'[]' is not an object (a mapping); left out"),
        ("text", "'text' is not an object (a mapping); left out"),
        ({}, f"apiVersion: is not {API_VERSION} (or v1)"),
        (
            {"apiVersion": "kilo.squat.ai/v2"},
            f"apiVersion: 'kilo.squat.ai/v2' is not {API_VERSION}",
        ),
        ({"apiVersion": ["v1"]}, "apiVersion: '[…]' is not"),
        (
            {"apiVersion": API_VERSION, "kind": "Pear"},
            f"kind: 'Pear' is not a kind of {API_VERSION}: Node, NodeReport, Peer, Settings",
        ),
        ({"apiVersion": "v1", "kind": "Pod"}, "kind: 'Pod' is not a kind of v1: Node"),
        ({"apiVersion": API_VERSION, "kind": ["Peer"]}, "kind: '[…]' is not a kind of"),
        ({"apiVersion": API_VERSION, "kind": "Peer"}, "Peer: metadata.name: is missing"),
        (
            {"apiVersion": API_VERSION, "kind": "Peer", "metadata": "x"},
            "Peer: metadata: 'x' is not a mapping",
        ),
        (
            {"apiVersion": API_VERSION, "kind": "Peer", "metadata": {"name": "A_b"}},
            "Peer: metadata.name: 'A_b' is not a name",
        ),
        (
            {"apiVersion": API_VERSION, "kind": "Peer", "metadata": {"name": "../x"}},
            "Peer: metadata.name: '../x' is not a name",
        ),
        (
            {"apiVersion": "v1", "kind": "List", "items": {}},
            "items: '{}' of this List is not a list",
        ),
        (
            {
                "apiVersion": "v1",
                "kind": "List",
                "items": [{"apiVersion": "v1", "kind": "List", "items": []}],
            },
            "items[0]: is a list in a list",
        ),
    ],
)
def test_what_is_no_object_of_ours_is_one_message(document: object, message: str) -> None:
    reading = read_document(document, source="mesh.yaml")
    (text,) = texts(reading)
    assert text.startswith(message)
    assert reading.found == []


def test_an_unknown_field_beside_the_spec_is_named_and_the_object_is_used() -> None:
    document = make_node_document("x", NodeSpec()) | {"sepc": {}}
    reading = read_document(document, source="mesh.yaml")
    assert texts(reading) == [
        "Node x: sepc: '{}' is not a field; known are apiVersion, kind, metadata, spec; ignored"
    ]
    assert len(reading.found) == 1


def test_what_kubernetes_adds_to_metadata_is_no_problem() -> None:
    document = make_peer_document(make_peer("x"))
    document["metadata"] = {"name": "x", "uid": "1", "labels": {}, "managedFields": [{"a": 1}]}
    assert read_document(document, source="mesh.yaml").problems == []


# Kubernetes' own nodes.


def read_kubernetes(
    annotations: dict[str, object],
    *,
    labels: dict[str, str] | None = None,
    spec: dict[str, object] | None = None,
    topology_label: str = "topology.kubernetes.io/region",
) -> Reading:
    document = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "x",
            "labels": labels or {},
            "annotations": {f"kilo.squat.ai/{name}": value for name, value in annotations.items()},
        },
        "spec": spec or {},
        "status": {"whatever": []},
    }
    return read_document(document, source="mesh.yaml", topology_label=topology_label)


def test_a_kubernetes_node_with_all_its_annotations_is_read() -> None:
    discovered = json.dumps({KEY: {"IP": "203.0.113.7", "Port": 4500, "Zone": ""}})
    reading = read_kubernetes(
        {
            "force-endpoint": "forced.example.com:51820",
            "force-internal-ip": "192.168.0.9/24",
            "leader": "false",
            "location": "oregon",
            "persistent-keepalive": "25",
            "allowed-location-ips": "192.168.9.1/32,192.168.9.2/32",
            "endpoint": "198.51.100.1:51820",
            "internal-ip": "192.168.0.1/24",
            "key": KEY,
            "last-seen": "1700000000",
            "wireguard-ip": "10.4.0.1/16",
            "discovered-endpoints": discovered,
            "granularity": "location",
            "cni-compatibility-ip": "",
        },
        labels={"topology.kubernetes.io/region": "not this"},
        spec={"podCIDR": "10.2.1.0/24", "podCIDRs": ["10.2.1.0/24", "fd00:2::/64"]},
    )
    assert texts(reading) == []
    assert value_of(reading) == DeclaredNode(
        name="x",
        spec=NodeSpec(
            location="oregon",
            endpoint=Endpoint(host="forced.example.com", port=51820),
            internal_ips=interfaces("192.168.0.9/24"),
            leader=True,  # present with any value, even "false"
            persistent_keepalive_seconds=25,
            allowed_location_ips=networks("192.168.9.1/32", "192.168.9.2/32"),
            pod_subnets=networks("10.2.1.0/24", "fd00:2::/64"),
        ),
        report=NodeReport(
            name="x",
            public_key=make_key("a"),
            endpoint=Endpoint(host="198.51.100.1", port=51820),
            internal_ips=interfaces("192.168.0.1/24"),
            wireguard_ips=interfaces("10.4.0.1/16"),
            discovered_endpoints=((make_key("a"), Endpoint(host="203.0.113.7", port=4500)),),
            granularity=Granularity.LOCATION,
        ),
        last_seen=1_700_000_000,
    )


@pytest.mark.parametrize(
    ("annotations", "labels", "location"),
    [
        ({}, {}, ""),
        ({}, {"topology.kubernetes.io/region": "lisbon"}, "lisbon"),
        ({"location": "oregon"}, {"topology.kubernetes.io/region": "lisbon"}, "oregon"),
        ({"location": ""}, {"topology.kubernetes.io/region": "lisbon"}, ""),
    ],
)
def test_the_location_annotation_wins_over_the_label(
    annotations: dict[str, object], labels: dict[str, str], location: str
) -> None:
    value = value_of(read_kubernetes(annotations, labels=labels))
    assert isinstance(value, DeclaredNode)
    assert value.spec.location == location


def test_the_topology_label_can_be_another_one() -> None:
    value = value_of(read_kubernetes({}, labels={"rack": "r7"}, topology_label="rack"))
    assert isinstance(value, DeclaredNode)
    assert value.spec.location == "r7"


@pytest.mark.parametrize("none", ["", "-"])
def test_a_forced_internal_ip_may_be_none(none: str) -> None:
    value = value_of(read_kubernetes({"force-internal-ip": none}))
    assert isinstance(value, DeclaredNode)
    assert value.spec.internal_ips == ()


@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        ("force-endpoint", "10.0.0.1", "is not host:port"),
        ("force-internal-ip", "10.0.0.1", "is not a CIDR"),
        ("persistent-keepalive", "ten", "is not a whole number"),
        ("persistent-keepalive", "-5", "is not a whole number"),
        ("persistent-keepalive", "70000", "is outside 0-65535"),
        ("key", "short", "is not base64"),
        ("endpoint", "here", "is not host:port"),
        ("internal-ip", "10.0.0.0/99", "is not a CIDR"),
        ("wireguard-ip", "x", "is not a CIDR"),
        ("granularity", "half", "is not one of location, full, cross"),
        ("last-seen", "soon", "is not a whole number"),
        ("discovered-endpoints", "{", "is not a JSON object"),
        ("discovered-endpoints", "[" * 100_000, "is not a JSON object"),
        ("location", 5, "is not a string"),
    ],
)
def test_a_bad_annotation_is_one_message_and_counts_as_absent(
    name: str, bad: object, reason: str
) -> None:
    reading = read_kubernetes({name: bad}, spec={"podCIDR": "10.2.1.0/24"})
    (text,) = texts(reading)
    assert text.startswith(f"Node x: metadata.annotations[kilo.squat.ai/{name}]: '")
    assert reason in text
    assert len(text) < 250
    value = value_of(reading)
    assert value == DeclaredNode(name="x", spec=NodeSpec(pod_subnets=networks("10.2.1.0/24")))


@pytest.mark.parametrize(
    "entry",
    [{"IP": "x", "Port": 1}, {"IP": "fe80::1%a", "Port": 1}, {"IP": "1.2.3.4"}, {"Port": 1}, 7, {}],
)
def test_a_bad_discovered_endpoint_leaves_the_others(entry: object) -> None:
    good = {"IP": "203.0.113.7", "Port": 4500}
    other = str(make_key("other"))
    entries = json.dumps({KEY: good, other: entry})
    reading = read_kubernetes({"key": KEY, "discovered-endpoints": entries})
    assert len(reading.problems) == 1
    value = value_of(reading)
    assert isinstance(value, DeclaredNode)
    assert value.report
    assert [key for key, _ in value.report.discovered_endpoints] == [make_key("a")]


# Round trips: through the document, through YAML, through JSON.


def reread(document: dict[str, object]) -> StoredObject:
    values = []
    for text, as_json in (
        (yaml.safe_dump(document, sort_keys=False, allow_unicode=True), False),
        (json.dumps(document), True),
    ):
        (loaded,) = load_documents(text, as_json=as_json)
        assert loaded.fault == ""
        reading = read_document(loaded.value, source="s")
        assert reading.problems == []
        values.append(value_of(reading))
    assert values[0] == values[1] == value_of(read_document(document, source="s"))
    return values[0]


@settings(deadline=None)
@given(strategies.names, strategies.specs)
def test_a_node_survives_being_written_and_read(name: str, spec: NodeSpec) -> None:
    assert reread(make_node_document(name, spec)) == DeclaredNode(name=name, spec=spec)


@settings(deadline=None)
@given(strategies.reports, st.none() | st.integers(0, 2**40))
def test_a_report_survives_being_written_and_read(report: NodeReport, seen: int | None) -> None:
    document = make_report_document(report, last_seen=seen)
    assert reread(document) == ReportedNode(report=report, last_seen=seen)


@settings(deadline=None)
@given(strategies.peers)
def test_a_peer_survives_being_written_and_read(peer: Peer) -> None:
    assert reread(make_peer_document(peer)) == peer


@settings(deadline=None)
@given(strategies.partial_settings)
def test_settings_survive_being_written_and_read(some: PartialSettings) -> None:
    assert reread(make_settings_document(some)) == DeclaredSettings(settings=some)
