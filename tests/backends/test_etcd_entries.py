"""Keys and values of an etcd -> what they add to the mesh, whoever wrote them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kilo.backends.documents import (
    make_node_document,
    make_peer_document,
    make_report_document,
    make_settings_document,
)
from kilo.backends.entries import Entry, join_entries
from kilo.backends.etcd.entries import MAX_VALUE_BYTES, NOTHING, decode_entry
from kilo.backends.etcd.keys import Keys
from kilo.backends.source import Item
from kilo.mesh.model import Node, NodeSpec, Snapshot
from tests.builders import make_key, make_peer, make_report

KEYS = Keys("/kilo/")
API_VERSION = "kilo.squat.ai/v1alpha1"
SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I="


def decode(key: str, value: object, held: Entry | None = None) -> Entry:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return decode_entry(KEYS, key, content, held)


def join(*entries: Entry) -> Snapshot:
    held = {str(number): Item(value=one, revision="1") for number, one in enumerate(entries)}
    return join_entries([held])


def make_document(kind: str, name: object, **spec: object) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def test_a_declaration_and_a_report_of_one_name_are_one_node() -> None:
    spec, report = NodeSpec(location="oregon"), make_report("a1")
    declared = decode("/kilo/nodes/a1", make_node_document("a1", spec))
    reported = decode("/kilo/reports/a1", make_report_document(report, last_seen=7))
    for order in ((declared, reported), (reported, declared)):
        snapshot = join(*order)
        assert snapshot.nodes == (Node(name="a1", spec=spec, report=report),)
        assert snapshot.last_seen == {"a1": 7}
    assert join(reported).nodes == (Node(name="a1", report=report),)
    assert join(declared).last_seen == {}


def test_every_kind_is_read_from_its_key() -> None:
    peer = make_peer("squat", preshared=True)
    snapshot = join(
        decode("/kilo/peers/squat", make_peer_document(peer)),
        decode("/kilo/settings", make_settings_document({"port": 51821})),
        decode("/kilo/subnets/10.2.3.0-24", {"node": "a1"}),
    )
    assert (snapshot.peers, snapshot.settings) == ((peer,), {"port": 51821})
    assert snapshot.problems == ()


def test_a_heartbeat_leaves_the_part_the_very_same() -> None:
    report = make_report("a1")
    first = decode("/kilo/reports/a1", make_report_document(report, last_seen=7))
    second = decode("/kilo/reports/a1", make_report_document(report, last_seen=37), first)
    assert second.part is first.part
    assert (first.last_seen, second.last_seen) == (7, 37)
    again = make_report_document(report, last_seen=37)
    assert decode("/kilo/reports/a1", dict(reversed(again.items())), second) is second


@pytest.mark.parametrize("stamp", ["soon", True, -1, 10**20, 1.5])
def test_a_stamp_that_is_none_is_complained_of(stamp: object) -> None:
    document = make_report_document(make_report("a1"), last_seen=7)
    document["spec"]["lastSeen"] = stamp  # type: ignore[index]  # it is a mapping
    entry = decode("/kilo/reports/a1", document)
    assert entry.last_seen is None
    (problem,) = entry.part.problems
    assert (problem.source, problem.field) == ("/kilo/reports/a1", "spec.lastSeen")


def test_a_change_is_noticed_and_so_is_its_way_back() -> None:
    before = decode("/kilo/nodes/a1", make_node_document("a1", NodeSpec(location="oregon")))
    moved = make_node_document("a1", NodeSpec(location="lisbon"))
    after = decode("/kilo/nodes/a1", moved, before)
    assert after.part.nodes[0].spec.location == "lisbon"
    broken = decode("/kilo/nodes/a1", b"{", after)
    assert broken.part.nodes == ()
    assert decode("/kilo/nodes/a1", moved, broken).part == after.part


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("/kilo/nodes/a1", b"", "/kilo/nodes/a1: is empty: it holds no document; left out"),
        ("/kilo/nodes/a1", b"\xff\xfe", "/kilo/nodes/a1: is not UTF-8 text (byte 1); left out"),
        (
            "/kilo/peers/a1",
            b"x" * 2**20,
            "/kilo/peers/a1: is too large: 1048576 bytes, at most 65536 are read; left out",
        ),
        ("/kilo/settings", b"[1]", "/kilo/settings: is not one JSON object; left out"),
        ("/kilo/settings", b"{} {}", "/kilo/settings: is not one JSON object; left out"),
        (
            "/kilo/settings",
            b"a: 1",
            "/kilo/settings: is not JSON: Expecting value (line 1, column 1); left out",
        ),
        (
            "/kilo/nodes/a1",
            b'{"spec": 1, "spec": 2}',
            "/kilo/nodes/a1: has the key 'spec' twice; left out",
        ),
        ("/kilo/nodes/a1", b"[" * 50_000, "/kilo/nodes/a1: is nested too deep; left out"),
        (
            "/kilo/other/a1",
            b"{}",
            (
                "/kilo/other/a1: is no key of a mesh's: those are nodes/NAME, reports/NAME,"
                " peers/NAME, settings; left out"
            ),
        ),
        (
            "/kilo/nodes/",
            b"{}",
            (
                "/kilo/nodes/: is no key of a mesh's: those are nodes/NAME, reports/NAME,"
                " peers/NAME, settings; left out"
            ),
        ),
        (
            "/kilo/nodes/a1",
            make_document("Peer", "a1"),
            (
                "/kilo/nodes/a1: Node a1: kind: 'Peer' is not Node, as the key wants;"
                " the Node is left out"
            ),
        ),
        (
            "/kilo/nodes/a1",
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a1"}},
            (
                "/kilo/nodes/a1: Node a1: apiVersion: 'v1' is not kilo.squat.ai/v1alpha1,"
                " as the key wants; the Node is left out"
            ),
        ),
        (
            "/kilo/nodes/a1",
            make_document("Node", "b1"),
            (
                "/kilo/nodes/a1: Node a1: metadata.name: 'b1' is not the name that the key ends"
                " with; the Node is left out"
            ),
        ),
        (
            "/kilo/reports/a1",
            make_document("NodeReport", "a1"),
            (
                "/kilo/reports/a1: NodeReport a1: spec.publicKey: is missing;"
                " the NodeReport is left out"
            ),
        ),
    ],
)
def test_what_is_no_document_of_ours_is_named_and_left_out(
    key: str, value: object, complaint: str
) -> None:
    entry = decode(key, value)
    assert [str(problem) for problem in entry.part.problems] == [complaint]
    assert (entry.part.nodes, entry.part.peers, entry.part.settings) == ((), (), {})
    assert decode(key, value, entry) == entry


@pytest.mark.parametrize("name", ["UPPER", "a/b", "a\nb", "\udcff", "x" * 300, 7, None])
def test_a_name_that_is_none_is_one_printable_line(name: object) -> None:
    key = f"/kilo/nodes/{name}"
    (problem,) = decode(key, make_document("Node", name)).part.problems
    assert str(problem).isprintable()
    assert len(str(problem)) < 500


@pytest.mark.parametrize("key", [f"/kilo/peers/{SECRET}", f"/kilo/{SECRET}", "/kilo/peers/squat"])
def test_a_secret_that_is_out_of_place_is_in_no_problem_and_no_repr(key: str) -> None:
    document = make_document(
        "Peer", SECRET, publicKey=str(make_key("a")), presharedKey=SECRET, allowedIPs=["10.5.0.1"]
    )
    entry = decode(key, document)
    assert entry.part.problems
    assert SECRET not in repr(entry) + "".join(map(str, entry.part.problems))


def test_subnets_that_were_given_to_nodes_say_nothing_of_the_mesh() -> None:
    assert decode("/kilo/subnets/10.2.3.0-24", b"\xff") is NOTHING


def test_the_largest_value_is_read() -> None:
    content = json.dumps(make_document("Node", "a1", location="oregon")).encode()
    padded = content + b" " * (MAX_VALUE_BYTES - len(content))
    assert decode("/kilo/nodes/a1", padded).part.nodes
    assert not decode("/kilo/nodes/a1", padded + b" ").part.nodes


def test_of_a_million_strangers_keys_a_thousand_are_named() -> None:
    snapshot = join(*(decode(f"/kilo/pods/{number}", b"") for number in range(5000)))
    assert len(snapshot.problems) == 1001
    assert str(snapshot.problems[-1]) == "the store: has 4000 more problems, not shown here"
