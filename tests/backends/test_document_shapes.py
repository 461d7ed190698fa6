"""Lists, objects that are none of ours, and round trips through YAML and JSON."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.backends.documents import (
    API_VERSION,
    make_node_document,
    make_peer_document,
    make_report_document,
    make_settings_document,
    read_document,
)
from kilo.backends.objects import DeclaredNode, DeclaredSettings, ReportedNode, StoredObject
from kilo.backends.yamltext import load_documents
from kilo.mesh.model import (
    NodeReport,
    NodeSpec,
    PartialSettings,
    Peer,
)
from tests.backends import strategies
from tests.backends.document_reading import texts, value_of
from tests.builders import make_peer

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
