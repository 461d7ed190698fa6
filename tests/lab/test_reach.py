"""What is expected to be reachable, and how the answers are shown."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

from kilo.lab.host import Host
from kilo.lab.reach import (
    Reachability,
    Target,
    choose_address,
    draw_table,
    list_targets,
    select_targets,
)
from kilo.lab.spec import Attachment, HostSpec, LabSpec, Network
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, Node, NodeReport, NodeSpec, Peer, Settings, Snapshot
from kilo.mesh.topology import build_topology


def make_host(name: str, address: str, *, agent: bool = True, peer: str = "") -> HostSpec:
    link = Attachment(network="lan", interfaces=(ip_interface(address),))
    return HostSpec(name=name, attachments=(link,), agent=agent, peer=peer)


def make_node(name: str, number: int, *, allowed: str = "") -> Node:
    return Node(
        name=name,
        spec=NodeSpec(
            location=name,
            pod_subnets=(ip_network(f"10.2.{number}.0/24"), ip_network(f"fd00:a:0:{number}::/64")),
            allowed_location_ips=(ip_network(allowed),) if allowed else (),
        ),
        report=NodeReport(
            name=name,
            public_key=PublicKey.from_bytes(bytes([number] * 32)),
            endpoint=Endpoint(host=f"198.51.100.{number}", port=51820),
            internal_ips=(ip_interface(f"192.168.{number}.11/24"),),
        ),
    )


SPEC = LabSpec(
    networks=(Network(name="lan", subnets=(ip_network("192.168.0.0/16"),)),),
    hosts=(
        make_host("a", "192.168.1.11/16"),
        make_host("b", "192.168.2.11/16"),
        make_host("laptop", "192.168.3.11/16", agent=False, peer="lap"),
        make_host("printer", "192.168.2.50/16", agent=False),
        make_host("stranger", "192.168.9.50/16", agent=False),
    ),
)
SNAPSHOT = Snapshot(
    nodes=(make_node("a", 1), make_node("b", 2, allowed="192.168.2.50/32"), make_node("c", 3)),
    peers=(
        Peer(
            name="lap",
            public_key=PublicKey.from_bytes(bytes([9] * 32)),
            allowed_ips=(ip_network("10.5.0.1/32"), ip_network("10.5.1.0/24")),
        ),
    ),
)
BOTH = Settings(subnets=(ip_network("10.4.0.0/16"), ip_network("fd00:4::/64")))


def list_texts(settings: Settings) -> list[str]:
    topology = build_topology(SNAPSHOT.nodes, SNAPSHOT.peers, settings)
    targets = list_targets(SPEC, SNAPSHOT, topology)
    return [f"{target.host} {target.kind} {target.address}" for target in targets]


def test_everything_of_the_mesh_that_a_host_of_the_lab_bears_is_a_target() -> None:
    assert list_texts(BOTH) == [
        "a internal 192.168.1.11",
        "a pod 10.2.1.1",
        "a pod fd00:a:0:1::1",
        "b internal 192.168.2.11",
        "b pod 10.2.2.1",
        "b pod fd00:a:0:2::1",
        "a wireguard 10.4.0.1",
        "a wireguard fd00:4::1",
        "b wireguard 10.4.0.2",
        "b wireguard fd00:4::2",
        "laptop peer 10.5.0.1",
        "printer device 192.168.2.50",
    ]


def test_a_mesh_without_ipv6_addresses_is_not_asked_over_ipv6() -> None:
    assert not [text for text in list_texts(Settings()) if "fd00" in text]


def test_a_host_asks_the_others_in_the_families_it_speaks() -> None:
    topology = build_topology(SNAPSHOT.nodes, SNAPSHOT.peers, BOTH)
    targets = list_targets(SPEC, SNAPSHOT, topology)
    laptop = Host(Path("/nowhere"), SPEC.hosts[2], ())
    asked = select_targets(laptop, targets, topology, {"a", "laptop"})
    assert {str(target.address) for target in asked} == {"192.168.1.11", "10.2.1.1", "10.4.0.1"}


def test_a_host_is_probed_at_its_pods_or_its_peer_address() -> None:
    topology = build_topology(SNAPSHOT.nodes, SNAPSHOT.peers, BOTH)
    targets = list_targets(SPEC, SNAPSHOT, topology)
    assert choose_address(targets, "a") == ip_address("10.2.1.1")
    assert choose_address(targets, "laptop") == ip_address("10.5.0.1")
    assert choose_address(targets, "stranger") is None


def make_result() -> Reachability:
    one = Target(host="a", kind="pod", address=ip_address("10.2.1.1"))
    two = Target(host="b", kind="pod", address=ip_address("10.2.2.1"))
    three = Target(host="b", kind="pod", address=ip_address("fd00:a:0:2::1"))
    return Reachability(
        sources=("a", "b"),
        destinations=("a", "b", "c"),
        asked={"a": frozenset({two, three}), "b": frozenset({one})},
        answered={"a": frozenset({two}), "b": frozenset({one})},
        outside=("d", "e"),
        crashed=("e",),
    )


def test_the_table_has_a_row_for_who_asks_and_a_column_for_who_answers() -> None:
    assert draw_table(make_result()).splitlines() == [
        "from \\ to  a    b      c",
        "a          -    ✗ 1/2  .",
        "b          ✓ 1  -      .",
        "outside the mesh: d, e",
        "✗ not running, though nobody stopped it: e",
    ]


def test_what_did_not_answer_is_told_with_who_asked() -> None:
    result = make_result()
    assert not result.complete
    assert [(source, str(target.address)) for source, target in result.missing] == [
        ("a", "fd00:a:0:2::1")
    ]
    document = result.as_document()
    assert document["from"]["a"][1] == {
        "host": "b",
        "kind": "pod",
        "address": "fd00:a:0:2::1",
        "reached": False,
    }


def test_a_lab_where_nobody_asks_is_not_complete() -> None:
    nothing = Reachability(sources=(), destinations=(), asked={}, answered={}, outside=("a",))
    assert not nothing.complete
    assert nothing.explain() == "nobody asks anybody; outside the mesh: a"


def test_what_is_wrong_is_explained_crashes_first() -> None:
    result = make_result()
    assert result.explain() == (
        "e is not running, though nobody stopped it; outside the mesh: d, e"
    )
    assert replace(result, crashed=(), outside=()).explain() == (
        "answers missing: 1, such as that of b (pod fd00:a:0:2::1) to a"
    )
