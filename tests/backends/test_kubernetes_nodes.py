"""Kubernetes' own nodes, by their annotations, as Kilo's agents and users write them."""

from __future__ import annotations

import json

import pytest

from kilo.backends.documents import (
    Reading,
    read_document,
)
from kilo.backends.objects import DeclaredNode
from kilo.mesh.model import (
    Endpoint,
    Granularity,
    NodeReport,
    NodeSpec,
)
from tests.backends.document_reading import KEY, texts, value_of
from tests.builders import interfaces, make_key, networks


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
