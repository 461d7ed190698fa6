"""The settings' ConfigMap, and what the definition of Peers says of their fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.backends.documents import (
    API_VERSION,
    PEER_FIELDS,
    Reading,
    make_peer_document,
    make_settings_document,
    read_document,
)
from kilo.backends.fields import Field
from kilo.backends.kubernetes.crd import make_peer_crd, make_rules_patch
from kilo.backends.kubernetes.settings import MAX_PROBLEMS, make_config_map, read_config_map
from kilo.backends.objects import DeclaredSettings, join_objects
from kilo.mesh.model import PartialSettings, Peer
from tests.backends import strategies
from tests.backends.document_reading import KEY, PRESHARED, read, texts, value_of
from tests.builders import make_key, make_peer

SETTINGS = f"apiVersion: {API_VERSION}\nkind: Settings\nmetadata: {{name: mesh}}\n"


def read_entries(entries: object) -> Reading:
    metadata = {"name": "kilo-settings", "namespace": "kube-system", "resourceVersion": "7"}
    document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": entries}
    return read_config_map(document)


def messages(reading: Reading) -> list[str]:
    return [str(problem) for problem in reading.problems]


# Settings.


@settings(deadline=None)
@given(strategies.partial_settings)
def test_settings_survive_being_written_to_a_config_map_and_read(some: PartialSettings) -> None:
    document = make_config_map(some, namespace="kube-system")
    # Through JSON, as it travels.
    reading = read_config_map(json.loads(json.dumps(document)))
    assert messages(reading) == []
    assert value_of(reading) == DeclaredSettings(settings=some)


def test_the_config_map_is_written_where_agents_look() -> None:
    document = make_config_map({"port": 4500}, namespace="mesh")
    assert (document["apiVersion"], document["kind"]) == ("v1", "ConfigMap")
    assert document["metadata"] == {"name": "kilo-settings", "namespace": "mesh"}


@pytest.mark.parametrize("document", [{}, {"data": None}, {"data": {}}])
def test_a_config_map_without_entries_sets_nothing(document: dict[str, object]) -> None:
    assert read_config_map(document) == Reading()


@pytest.mark.parametrize("text", ["", "\n", "# port: 4500\n", "---\n---\n"])
def test_settings_that_are_commented_out_are_no_problem(text: str) -> None:
    assert read_entries({"settings.yaml": text}) == Reading()


def test_any_entry_is_read_and_the_first_by_name_wins() -> None:
    first = json.dumps(make_settings_document({"port": 1}))
    second = f"{SETTINGS}spec: {{port: 2}}\n"
    reading = read_entries({"b": second, "a.json": first})
    snapshot = join_objects(reading.found, reading.problems)
    assert snapshot.settings == {"port": 1}
    (problem,) = snapshot.problems
    assert str(problem) == (
        "ConfigMap kilo-settings, b, document 1: Settings mesh: metadata.name: 'mesh' is not the"
        " first: the mesh's Settings mesh stands in ConfigMap kilo-settings, a.json, document 1;"
        " left out"
    )


PEER = yaml.safe_dump(make_peer_document(make_peer("squat")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{SETTINGS}spec: {{port: 0}}",
            ", mesh.yaml, document 1: Settings mesh: spec.port: '0' is outside 1-65535; counts as",
        ),
        (
            f"{SETTINGS}spec: {{prot: 1}}",
            ", mesh.yaml, document 1: Settings mesh: spec.prot: '1' is not a field; known are",
        ),
        ("port: [1", ": mesh.yaml, document 1: is not YAML: "),
        (
            f"{SETTINGS}spec: {{port: 1, port: 2}}",
            ": mesh.yaml, document 1: has the key 'port' twice (line 4); the document",
        ),
        (
            "port: 4500",
            f": mesh.yaml, document 1: apiVersion: is not {API_VERSION} (or v1); the document is",
        ),
        (PEER, ": mesh.yaml, document 1: kind: 'Peer' is not Settings, all that may stand here"),
    ],
)
def test_what_is_wrong_in_an_entry_is_said_with_its_place(text: str, message: str) -> None:
    (said,) = messages(read_entries({"mesh.yaml": text}))
    assert said.startswith(f"ConfigMap kilo-settings{message}")


def test_what_no_api_server_makes_of_a_config_map_is_said_too() -> None:
    assert messages(read_entries({"a\nb": 7})) == [
        "ConfigMap kilo-settings: a\ufffdb: is not text; left out"
    ]
    assert messages(read_entries("text")) == [
        "ConfigMap kilo-settings: data: is not a mapping; left out"
    ]


def test_what_stands_beside_settings_does_not_keep_them_out() -> None:
    reading = read_entries({"all.yaml": f"{PEER}---\n{SETTINGS}spec: {{port: 4500}}\n"})
    assert len(reading.problems) == 1
    assert value_of(reading) == DeclaredSettings(settings={"port": 4500})


def test_a_config_map_of_nothing_but_errors_is_a_bounded_number_of_messages() -> None:
    said = messages(read_entries({"a": "--- 7\n" * 1000}))
    assert len(said) == MAX_PROBLEMS
    assert said[-1] == "ConfigMap kilo-settings: has 901 more problems, not shown here"


# The definition of Peers. What a real server makes of it is tested in tests/cluster.


def find_schema(crd: Mapping[str, Any]) -> dict[str, Any]:
    (version,) = crd["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def list_properties(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, one in schema.get("properties", {}).items():
        yield f"{path}{name}", one
        yield from list_properties(one, f"{path}{name}.")


def list_fields(fields: Sequence[Field], path: str = "") -> Iterator[tuple[str, Field]]:
    for one in fields:
        yield f"{path}{one.name}", one
        yield from list_fields(one.format.fields, f"{path}{one.name}.")


def test_the_definition_has_each_field_that_is_read_and_no_other_and_explains_it() -> None:
    schema = find_schema(make_peer_crd())["properties"]["spec"]
    properties = dict(list_properties(schema))
    fields = dict(list_fields(PEER_FIELDS))
    assert properties.keys() == fields.keys()
    for path, one in properties.items():
        assert one["type"], path
        assert len(one["description"]) > 20, path
        assert one.get("nullable", False) is not fields[path].required, path


def test_the_definition_is_fresh_each_time() -> None:
    changed = make_peer_crd()
    find_schema(changed)["properties"]["spec"]["properties"].clear()
    find_schema(changed)["properties"]["status"]["properties"].clear()
    assert make_peer_crd() != changed


def look_up(document: object, pointer: str) -> Any:
    for name in pointer.split("/")[1:]:
        document = (
            document[int(name)] if isinstance(document, list) else document[name]  # type: ignore[index]  # a mapping, or the test fails
        )
    return document


def test_every_rule_is_added_to_a_field_of_the_definition() -> None:
    crd = make_peer_crd()
    assert make_rules_patch()
    for operation in make_rules_patch():
        path, _, last = str(operation["path"]).rpartition("/")
        assert last == "x-kubernetes-validations"
        assert "type" in look_up(crd, path)


def find_pattern(*path: str) -> re.Pattern[str]:
    schema = find_schema(make_peer_crd())["properties"]["spec"]
    for name in path:
        schema = schema["properties"][name]
    return re.compile(schema["pattern"].removesuffix("$") + r"\Z")


characters = st.sampled_from("AEgwx019+/=-_ \n")


@settings(deadline=None, max_examples=300)
@given(strategies.keys, st.integers(0, 44), characters, st.integers(0, 1))
def test_the_pattern_of_a_key_takes_what_the_agent_takes_and_nothing_else(
    key: object, place: int, character: str, taken_out: int
) -> None:
    text = f"{str(key)[:place]}{character}{str(key)[place + taken_out :]}"
    found = read("Peer", {"publicKey": text, "allowedIPs": ["10.5.0.1/32"]}).found
    assert bool(find_pattern("publicKey").match(text)) == bool(found)


labels = st.from_regex(r"[-a-zA-Z0-9_]{0,3}|[a-z]{60,64}", fullmatch=True)
hosts = (
    st.lists(labels, min_size=1, max_size=4).map(".".join)
    | st.ip_addresses().map(str)
    | st.text("01:.%a", max_size=9)
)


@settings(deadline=None, max_examples=300)
@given(hosts)
def test_the_pattern_of_a_dns_name_takes_all_that_the_agent_takes(host: str) -> None:
    endpoint = {"dnsOrIP": {"dns": host}, "port": 51820}
    spec = {"publicKey": KEY, "allowedIPs": ["10.5.0.1/32"], "endpoint": endpoint}
    if not read("Peer", spec).problems:
        assert find_pattern("endpoint", "dnsOrIP", "dns").match(host)


# A Peer as it comes from a cluster.


def test_a_peers_status_is_no_problem_and_is_not_believed() -> None:
    peer = make_peer("squat")
    document = make_peer_document(peer) | {"status": {"conditions": [{"type": "Ready"}]}}
    reading = read_document(document, source="mesh.yaml")
    assert texts(reading) == []
    assert value_of(reading) == peer


def test_an_empty_preshared_key_is_none() -> None:
    spec = {"publicKey": KEY, "allowedIPs": ["10.5.0.1/32"], "presharedKey": ""}
    reading = read("Peer", spec)
    assert texts(reading) == []
    assert value_of(reading) == Peer(
        name="x", public_key=make_key("a"), allowed_ips=make_peer("x").allowed_ips
    )


def test_a_bad_preshared_key_is_not_shown_by_whoever_refuses_it() -> None:
    spec = {"publicKey": KEY, "allowedIPs": ["10.5.0.1/32"], "presharedKey": f"{PRESHARED}x"}
    (text,) = texts(read("Peer", spec))
    assert PRESHARED not in text
    # An API server shows what does not match a pattern; what breaks a rule it does not.
    assert not find_schema(make_peer_crd())["properties"]["spec"]["properties"][
        "presharedKey"
    ].keys() & {"pattern", "format", "enum", "minLength", "maxLength"}
