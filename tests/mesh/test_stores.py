"""A mesh of several stores: what is refused, who speaks of it, and what Kilo's agents know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kilo.mesh.model import Node, Peer, Problem, Settings, Snapshot
from kilo.mesh.plan import join_report
from kilo.mesh.remarks import Reason, Remark, Remarks, build_remarks, select_remarks
from kilo.mesh.state import PeerStats
from kilo.mesh.survey import find_absences
from kilo.mesh.topology import build_topology
from tests.builders import make_key, make_report
from tests.mesh.fleets import make_node, make_peer

CLUSTER, RACK = "kubernetes", "etcd"


def stand(node: Node, origin: str) -> Node:
    return replace(node, origin=origin)


def give_kilos_own_agent(node: Node) -> Node:
    assert node.report is not None
    return replace(node, report=replace(node.report, agent=""))


A = stand(make_node("a", location="north", internal="192.168.1.11/24", pods="10.2.1.0/24"), CLUSTER)
B = stand(make_node("b", location="north", internal="192.168.1.12/24", pods="10.2.2.0/24"), RACK)
C = stand(make_node("c", location="south", internal="192.168.2.11/24", pods="10.2.3.0/24"), RACK)
PHONE = replace(make_peer("phone", "10.5.0.1/32"), origin=CLUSTER)
LAPTOP = replace(make_peer("laptop", "10.5.0.2/32"), origin=RACK)


def list_refusals(nodes: Sequence[Node], peers: Sequence[Peer] = ()) -> list[str]:
    return list(map(str, build_topology(nodes, peers, Settings()).refusals))


def test_nodes_of_two_stores_in_one_location_are_one_segment() -> None:
    first, second = build_topology((A, B, C), (), Settings()).segments
    assert [node.name for node in first.nodes] == ["a", "b"]
    assert [node.name for node in second.nodes] == ["c"]


def test_a_key_in_two_stores_is_the_firsts_by_name_and_both_are_named() -> None:
    clone = stand(make_node("z", location="east", key="a"), RACK)
    assert list_refusals((A, clone)) == [
        f"Node z (etcd): publicKey {make_key('a')} refused: it is the key of node a (kubernetes)"
    ]


def test_a_pod_subnet_in_two_stores_is_the_firsts_and_both_are_named() -> None:
    other = stand(make_node("z", location="east", pods="10.2.1.0/24"), RACK)
    assert list_refusals((A, other)) == [
        "Node z (etcd): podSubnets 10.2.1.0/24 refused: it belongs to Node a (kubernetes)"
    ]


def test_a_peer_that_claims_another_stores_pods_is_refused_and_both_are_named() -> None:
    thief = replace(make_peer("thief", "10.2.1.0/24"), origin=RACK)
    (refusal,) = list_refusals((A, C), (thief,))
    assert refusal == (
        "Peer thief (etcd): spec.allowedIPs 10.2.1.0/24 refused: it lies inside 10.2.1.0/24 of"
        " Node a (kubernetes)"
    )


def test_the_own_report_is_not_that_of_another_stores_node_of_the_name() -> None:
    report = make_report("a")
    assert A.report != report
    assert join_report(Snapshot(nodes=(A,), home=RACK), report).nodes == (A,)
    (known,) = join_report(Snapshot(nodes=(A,), home=CLUSTER), report).nodes
    (new,) = join_report(Snapshot(home=RACK), report).nodes
    assert (known.origin, known.report) == (CLUSTER, report)
    assert (new.origin, new.report) == (RACK, report)


# Kilo's own agents.


def test_with_kilos_own_agents_the_mesh_is_their_store() -> None:
    topology = build_topology((give_kilos_own_agent(A), B, C), (PHONE, LAPTOP), Settings())
    assert [node.name for node in topology.nodes] == ["a"]
    assert [peer.name for peer in topology.peers] == ["phone"]
    (refusal,) = map(str, topology.refusals)
    assert refusal == (
        "Store etcd: nodes and peers b, c, laptop refused: the agent of Node a (kubernetes) is"
        " Kilo's own or too old and knows of no other store than its own"
    )


def test_who_looks_from_outside_is_told_why_a_node_of_another_store_takes_no_part() -> None:
    topology = build_topology((give_kilos_own_agent(A), C), (), Settings())
    absences = find_absences(Snapshot(nodes=(A, C)), topology, {}, now=0.0)
    assert absences == {
        "c": "nodes and peers c: the agent of Node a (kubernetes) is Kilo's own or too old and"
        " knows of no other store than its own"
    }


def test_who_is_left_out_with_a_store_is_not_told_by_the_thousand() -> None:
    many = [stand(make_node(f"n{number}"), RACK) for number in range(8)]
    (refusal,) = list_refusals((give_kilos_own_agent(A), *many))
    assert "nodes and peers n0, n1, n2, n3, n4 and 3 more refused" in refusal


def test_all_nodes_come_to_the_same_though_kilos_own_agents_are_in_two_stores() -> None:
    foreign = (give_kilos_own_agent(C), give_kilos_own_agent(A), B)
    for nodes in (foreign, foreign[::-1]):
        topology = build_topology(nodes, (), Settings())
        assert [node.name for node in topology.nodes] == ["a"]


def test_kilos_own_agents_in_the_only_store_leave_nobody_out() -> None:
    nodes = [stand(node, "") for node in (give_kilos_own_agent(A), B, C)]
    topology = build_topology(nodes, (), Settings())
    assert [node.name for node in topology.nodes] == ["a", "b", "c"]
    assert topology.refusals == ()


# Who speaks.

BAD_PHONE, BAD_RACK = (
    Problem(source="", object="Peer broken", reason="is bad", origin=origin)
    for origin in (CLUSTER, RACK)
)


def remark(
    local: str,
    problems: tuple[Problem, ...] = (),
    stats: Mapping[str, PeerStats] | None = None,
) -> Remarks:
    nodes, peers = (A, B, C), (LAPTOP, PHONE)
    part = Snapshot()
    snapshot = Snapshot(
        nodes=nodes, peers=peers, problems=problems, parts={CLUSTER: part, RACK: part}
    )
    return build_remarks(
        snapshot,
        build_topology(nodes, peers, Settings()),
        local=local,
        stats={make_key(name): one for name, one in (stats or {}).items()},
        told={},
    )


def test_each_store_has_a_speaker_that_stands_in_it() -> None:
    """It may write there; a node of another store may not."""
    told = {name: remark(name, (BAD_PHONE, BAD_RACK)) for name in ("a", "b", "c")}
    assert {name: [one.origin for one in said.remarks] for name, said in told.items()} == {
        "a": [CLUSTER],
        "b": [],
        "c": [RACK],
    }
    assert {name: set(said.peers) for name, said in told.items()} == {
        "a": {"broken", "phone"},
        "b": set(),
        "c": {"broken", "laptop"},
    }


def test_a_store_without_a_node_that_can_speak_is_spoken_for_by_another() -> None:
    nodes = (B, C)
    snapshot = Snapshot(problems=(BAD_PHONE,), parts={CLUSTER: Snapshot(), RACK: Snapshot()})
    topology = build_topology(nodes, (), Settings())
    said = build_remarks(snapshot, topology, local="b", stats={}, told={})
    assert [one.origin for one in said.remarks] == [CLUSTER]


def test_a_peer_that_is_left_out_for_its_namesake_does_not_spoil_its_standing() -> None:
    left_out = Problem(source="", object="Peer phone", reason="is a second", origin=RACK)
    assert remark("a", (left_out,)).peers["phone"].remarks == ()
    said = remark("c", (left_out,))
    assert [one.message for one in said.remarks] == ["is a second"]
    assert set(said.peers) == {"laptop"}


def test_a_store_is_told_of_its_own_objects_only() -> None:
    shaken = PeerStats(endpoint=None, latest_handshake=1000, received_bytes=0, sent_bytes=0)
    said = remark("a", (BAD_PHONE, BAD_RACK), {"phone": shaken, "laptop": shaken})
    of_cluster, of_rack = select_remarks(said, CLUSTER), select_remarks(said, RACK)
    assert of_cluster.remarks == (
        Remark(object="Peer broken", reason=Reason.INVALID, message="is bad", origin=CLUSTER),
    )
    assert (set(of_cluster.handshakes), set(of_rack.handshakes)) == ({"phone"}, {"laptop"})
    assert of_rack.remarks == ()


def test_a_store_that_is_left_out_is_no_object_to_remark_on() -> None:
    nodes = (give_kilos_own_agent(A), B)
    topology = build_topology(nodes, (), Settings())
    snapshot = Snapshot(parts={CLUSTER: Snapshot(), RACK: Snapshot()})
    said = build_remarks(snapshot, topology, local="a", stats={}, told={})
    assert topology.refusals
    assert said.remarks == ()
