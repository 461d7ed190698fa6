"""Kubernetes' own nodes, by their annotations, as Kilo's agents and users write them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.backends.annotations import (
    MAX_DISCOVERED,
    MAX_PROBLEMS,
    PREFIX,
    REPORTED_ANNOTATIONS,
    make_report_annotations,
)
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
from tests.backends import strategies
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


def read_node(
    annotations: dict[str, object], *, spec: dict[str, object] | None = None
) -> DeclaredNode:
    reading = read_kubernetes(annotations, spec=spec)
    assert texts(reading) == []
    value = value_of(reading)
    assert isinstance(value, DeclaredNode)
    return value


def read_report(annotations: dict[str, object]) -> NodeReport:
    report = read_node({"key": KEY} | annotations).report
    assert report
    return report


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
            "cni-compatibility-ip": "192.168.200.1/24",
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
            cni_compatibility_ip=interfaces("192.168.200.1/24")[0],
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
        ("allowed-location-ips", "10.0.0.1", "is not a CIDR"),
        ("pod-subnets", "10.2.1.0", "is not a CIDR"),
        ("internal-ip", "192.168.0.1/24,fd00::1/64", "is not a CIDR"),
        ("internal-ips", "192.168.0.1/24,192.168.0.2/24", "has more than one of a family"),
        ("wireguard-ips", "10.4.0.1", "is not a CIDR"),
        ("agent", "kg\n0.1", "has characters that cannot be printed"),
        ("discovered-endpoints", "{", "is not a JSON object"),
        ("discovered-endpoints", "0", "is not a JSON object"),
        ("discovered-endpoints", "[]", "is not a JSON object"),
        ("discovered-endpoints", "[" * 100_000, "is not a JSON object"),
        ("location", 5, "is not a string"),
        # It names a segment, and stands in all that is said of that.
        ("location", "oregon" * 50, "is longer than 253 characters"),
        ("agent", "kg " * 100, "is longer than 253 characters"),
    ],
)
def test_a_bad_annotation_is_one_message_and_counts_as_absent(
    name: str, bad: object, reason: str
) -> None:
    reading = read_kubernetes({name: bad})
    (text,) = texts(reading)
    assert text.startswith(f"Node x: metadata.annotations[kilo.squat.ai/{name}]")
    assert reason in text
    assert len(text) < 250
    assert value_of(reading) == DeclaredNode(name="x", spec=NodeSpec())


@pytest.mark.parametrize(
    "entry",
    [
        {"IP": "x", "Port": 1},
        {"IP": "fe80::1%a", "Port": 1},
        {"IP": "1.2.3.4"},
        {"Port": 1},
        7,
        {},
        None,
    ],
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


# What Kilo's agents and people leave empty.


@pytest.mark.parametrize(
    "name",
    [
        "force-endpoint",
        "persistent-keepalive",
        "allowed-location-ips",
        "pod-subnets",
        *(name.removeprefix(PREFIX) for name in REPORTED_ANNOTATIONS),
    ],
)
def test_an_empty_annotation_is_an_absent_one_and_no_problem(name: str) -> None:
    assert read_node({name: ""}) == DeclaredNode(name="x", spec=NodeSpec())


@pytest.mark.parametrize("leader", ["", "true", "false", "no"])
def test_the_leader_annotation_counts_with_any_value(leader: str) -> None:
    assert read_node({"leader": leader}).spec.leader


@pytest.mark.parametrize("none", ["{}", "null", ""])
def test_an_agent_of_kilos_that_discovered_nothing_is_read_so(none: str) -> None:
    assert read_report({"discovered-endpoints": none}).discovered_endpoints == ()


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("198.51.100.1:51820", Endpoint(host="198.51.100.1", port=51820)),
        ("[2001:db8::1]:51820", Endpoint(host="2001:db8::1", port=51820)),
        ("a.example.com:51821", Endpoint(host="a.example.com", port=51821)),
    ],
)
def test_an_endpoint_is_an_address_or_a_name(text: str, endpoint: Endpoint) -> None:
    assert read_report({"endpoint": text}).endpoint == endpoint
    assert read_node({"force-endpoint": text}).spec.endpoint == endpoint


def test_a_bad_network_leaves_the_others_of_its_list() -> None:
    reading = read_kubernetes({"allowed-location-ips": "192.168.9.1/32,x,192.168.9.2/32"})
    assert len(texts(reading)) == 1
    value = value_of(reading)
    assert isinstance(value, DeclaredNode)
    assert value.spec.allowed_location_ips == networks("192.168.9.1/32", "192.168.9.2/32")


def test_a_long_list_of_nonsense_is_a_bounded_number_of_messages() -> None:
    nonsense = ",".join(f"x{number}" for number in range(1000))
    texts_of_it = texts(read_kubernetes({"allowed-location-ips": nonsense, "key": "short"}))
    assert len(texts_of_it) == MAX_PROBLEMS
    assert texts_of_it[-1] == f"Node x: has {1001 - MAX_PROBLEMS + 1} more problems, not shown here"


# Pod subnets of clusters that give their nodes none.


def test_an_operator_can_name_the_pod_subnets_of_a_node_without_any() -> None:
    annotations: dict[str, object] = {"pod-subnets": "10.2.7.0/24, fd00:2:7::/64"}
    spec = read_node(annotations).spec
    assert spec.pod_subnets == networks("10.2.7.0/24", "fd00:2:7::/64")


@pytest.mark.parametrize(
    "given_by_cluster", [{"podCIDRs": ["10.2.1.0/24"]}, {"podCIDR": "10.2.1.0/24"}]
)
def test_the_clusters_own_pod_subnets_win_over_the_operators(
    given_by_cluster: dict[str, object],
) -> None:
    node = read_node({"pod-subnets": "10.2.7.0/24"}, spec=given_by_cluster)
    assert node.spec.pod_subnets == networks("10.2.1.0/24")


# What our agents write.

REPORT = NodeReport(
    name="x",
    public_key=make_key("a"),
    endpoint=Endpoint(host="2001:db8::1", port=51820),
    internal_ips=interfaces("192.168.0.1/24", "fd00::1/64"),
    wireguard_ips=interfaces("10.4.0.1/16"),
    discovered_endpoints=(
        (make_key("c"), Endpoint(host="203.0.113.7", port=4500)),
        (make_key("b"), Endpoint(host="2001:db8::7", port=4501)),
    ),
    granularity=Granularity.FULL,
    agent="kg 0.1.0",
)


def test_annotations_are_written_in_kilos_own_forms() -> None:
    assert make_report_annotations(REPORT, last_seen=1_700_000_000) == {
        "kilo.squat.ai/key": KEY,
        "kilo.squat.ai/endpoint": "[2001:db8::1]:51820",
        "kilo.squat.ai/internal-ip": "192.168.0.1/24",
        "kilo.squat.ai/wireguard-ip": "10.4.0.1/16",
        "kilo.squat.ai/discovered-endpoints": (
            f'{{"{make_key("c")}":{{"IP":"203.0.113.7","Port":4500,"Zone":""}},'
            f'"{make_key("b")}":{{"IP":"2001:db8::7","Port":4501,"Zone":""}}}}'
        ),
        "kilo.squat.ai/granularity": "full",
        "kilo.squat.ai/last-seen": "1700000000",
        "kilo.squat.ai/cni-compatibility-ip": "",
        "kilo.squat.ai/internal-ips": "192.168.0.1/24,fd00::1/64",
        "kilo.squat.ai/wireguard-ips": None,
        "kilo.squat.ai/agent": "kg 0.1.0",
    }


def test_what_there_is_nothing_to_say_of_is_empty_as_kilo_leaves_it_and_ours_are_removed() -> None:
    bare = NodeReport(name="x", public_key=make_key("a"))
    assert make_report_annotations(bare, last_seen=7) == {
        "kilo.squat.ai/key": KEY,
        "kilo.squat.ai/endpoint": "",
        "kilo.squat.ai/internal-ip": "",
        "kilo.squat.ai/wireguard-ip": "",
        "kilo.squat.ai/discovered-endpoints": "{}",
        "kilo.squat.ai/granularity": "",
        "kilo.squat.ai/last-seen": "7",
        "kilo.squat.ai/cni-compatibility-ip": "",
        "kilo.squat.ai/internal-ips": None,
        "kilo.squat.ai/wireguard-ips": None,
        "kilo.squat.ai/agent": None,
    }


def test_a_report_of_any_number_of_discovered_endpoints_is_one_that_a_server_takes() -> None:
    endpoint = Endpoint(host="2001:db8:1111:2222:3333:4444:5555:6666", port=65535)
    seen = tuple((make_key(f"device {number}"), endpoint) for number in range(3000))
    report = NodeReport(name="x", public_key=make_key("x"), discovered_endpoints=seen)

    annotations = make_report_annotations(report, last_seen=1_700_000_000)

    assert sum(len(name) + len(value or "") for name, value in annotations.items()) < 200_000
    text = annotations["kilo.squat.ai/discovered-endpoints"]
    assert len(read_report({"discovered-endpoints": text}).discovered_endpoints) == MAX_DISCOVERED


def test_what_is_withdrawn_is_all_that_is_written_and_nothing_of_an_operators() -> None:
    assert set(REPORTED_ANNOTATIONS) == make_report_annotations(REPORT, last_seen=7).keys()
    assert not {f"{PREFIX}{name}" for name in ("location", "leader", "pod-subnets")} & set(
        REPORTED_ANNOTATIONS
    )


def test_addresses_left_by_our_agent_are_not_believed_once_kilos_says_another() -> None:
    both: dict[str, object] = {
        "internal-ip": "192.168.0.1/24",
        "internal-ips": "192.168.0.1/24,fd00::1/64",
    }
    assert read_report(both).internal_ips == interfaces("192.168.0.1/24", "fd00::1/64")
    moved = read_report(both | {"internal-ip": "192.168.0.2/24"})
    assert moved.internal_ips == interfaces("192.168.0.2/24")
    assert read_report(both | {"internal-ip": ""}).internal_ips == ()


ADDRESSES = strategies.endpoints.filter(lambda endpoint: endpoint.ip is not None)
REPORTS = st.builds(
    NodeReport,
    name=st.just("x"),
    public_key=strategies.keys,
    endpoint=st.none() | strategies.endpoints,
    internal_ips=strategies.interface_lists(),
    wireguard_ips=strategies.interface_lists(),
    # A live endpoint is where packets come from: an address always.
    discovered_endpoints=st.dictionaries(strategies.keys, ADDRESSES, max_size=3).map(
        lambda found: tuple(sorted(found.items()))
    ),
    granularity=st.none() | st.sampled_from(Granularity),
    agent=st.sampled_from(["", "kg 0.1.0"]),
)


@settings(deadline=None)
@given(REPORTS, st.integers(0, 2**40))
def test_a_report_survives_being_written_as_annotations_and_read(
    report: NodeReport, last_seen: int
) -> None:
    written = make_report_annotations(report, last_seen=last_seen)
    node = read_node({name.removeprefix(PREFIX): text for name, text in written.items()})
    assert node == DeclaredNode(name="x", spec=NodeSpec(), report=report, last_seen=last_seen)


@settings(deadline=None)
@given(REPORTS, REPORTS)
def test_a_later_report_leaves_nothing_of_an_earlier_one(
    earlier: NodeReport, later: NodeReport
) -> None:
    written = make_report_annotations(earlier, last_seen=1)
    written |= make_report_annotations(later, last_seen=2)
    node = read_node({name.removeprefix(PREFIX): text for name, text in written.items()})
    assert node.report == later
