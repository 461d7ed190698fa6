"""Bad documents: each is one message that names file, document, field and value, and no more.

Whatever stands beside them is read as before; no secret gets into a message; no text at all
makes the reader raise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kilo.backends.documents import make_node_document, make_peer_document, read_document
from kilo.backends.file.backend import FileBackend
from kilo.backends.file.reading import MAX_BYTES
from kilo.backends.yamltext import (
    MAX_ALIASED,
    MAX_DEPTH,
    MAX_DOCUMENTS,
    Document,
    load_documents,
)
from kilo.mesh.model import NodeSpec, Snapshot
from tests.backends.directories import MeshDirectory
from tests.builders import make_key, make_peer, make_preshared_key, networks

GOOD_FILES = {
    "a-node.yaml": make_node_document(
        "a1", NodeSpec(location="oregon", pod_subnets=networks("10.2.1.0/24"))
    ),
    "a-peer.yaml": make_peer_document(make_peer("squat", "10.5.0.1/32")),
}
KEY = str(make_key("bad"))
HEAD = "apiVersion: kilo.squat.ai/v1alpha1\n"
PEER = HEAD + "kind: Peer\nmetadata: {name: bad}\nspec: "
LAUGHS = "l0: &l0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
NOT_THE_FIRST = "is not the first: a Peer squat stands in a-peer.yaml, document 1; left out"


@contextlib.contextmanager
def good_mesh(directory: Path) -> Iterator[MeshDirectory]:
    mesh = MeshDirectory(directory)
    for name, document in GOOD_FILES.items():
        mesh.write(name, yaml.safe_dump(document))
    yield mesh


async def read_beside_good_files(directory: Path, text: str | bytes, *, name: str) -> Snapshot:
    """The snapshot of the good files and the bad one, which is read after them."""
    with good_mesh(directory) as mesh:
        mesh.write(name, text)
        backend = FileBackend(directory)
        snapshot = await backend.snapshot()
        await backend.close()
        return snapshot


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "{",
            "document 1: is not YAML: did not find expected node content (line 2, column 1)",
            id="not YAML",
        ),
        pytest.param(
            PEER + "{publicKey: [",
            "document 1: is not YAML: did not find expected node content (line 5, column 1)",
            id="half-written",
        ),
        pytest.param("", "is empty: it holds no document", id="empty"),
        pytest.param("# nothing\n---\n---\n", "is empty: it holds no document", id="only comments"),
        pytest.param(b"\xff\xfea\0", "is not UTF-8 text (byte 1)", id="UTF-16"),
        pytest.param(
            "---\n" * (MAX_DOCUMENTS + 1),
            f"document {MAX_DOCUMENTS + 1}: stands after {MAX_DOCUMENTS} others,"
            " and no more are read",
            id="documents without end",
        ),
        pytest.param(
            "a: \0",
            "document 1: is not YAML: control characters are not allowed (near line 1)",
            id="NUL",
        ),
        pytest.param(
            b"#" * (50 * 2**20),
            f"is too large: 52428800 bytes, at most {MAX_BYTES} are read",
            id="50 MB",
        ),
        pytest.param(
            HEAD + "kind: Pear\nmetadata: {name: bad}\n",
            "document 1: kind: 'Pear' is not a kind of kilo.squat.ai/v1alpha1: "
            "Node, NodeReport, Peer, Settings; the document is left out",
            id="unknown kind",
        ),
        pytest.param(
            PEER + f"{{publicKey: {KEY}, allowedIPs: [10.5.0.2]}}",
            "document 1: Peer bad: spec.allowedIPs[0]: '10.5.0.2' "
            "is not a CIDR (address/prefix length); the Peer is left out",
            id="bad CIDR",
        ),
        pytest.param(
            PEER + "{publicKey: bad, allowedIPs: [10.5.0.2/32]}",
            "document 1: Peer bad: spec.publicKey: 'bad' is not base64; the Peer is left out",
            id="bad key",
        ),
        pytest.param(
            HEAD + "kind: Peer\nmetadata: {name: squat}\n"
            f"spec: {{publicKey: {KEY}, allowedIPs: [10.5.0.2/32]}}",
            f"document 1: Peer squat: metadata.name: 'squat' {NOT_THE_FIRST}",
            id="duplicate name",
        ),
        pytest.param(
            "a: 1\nb: 2\na: 3\n",
            "document 1: has the key 'a' twice (line 3); the document is left out",
            id="duplicate key",
        ),
        pytest.param(
            "a: !!python/object/apply:os.system [reboot]",
            "document 1: has the tag 'tag:yaml.org,2002:python/object/apply:os.system', "
            "and no tags are allowed (line 1); the document is left out",
            id="a tag that would run a program",
        ),
        pytest.param(
            LAUGHS,
            f"document 1: has aliases that add more than {MAX_ALIASED} values; "
            "the document is left out",
            id="aliases that explode",
        ),
        pytest.param(
            "a: &a [*a]",
            "document 1: has an alias of nothing that stands before it (line 1); "
            "the document is left out",
            id="an alias of itself",
        ),
        pytest.param(
            "- " * 5000,
            f"document 1: is nested more than {MAX_DEPTH} levels deep (line 1)",
            id="deep nesting",
        ),
        pytest.param(
            "[" * 100_000,
            f"document 1: is nested more than {MAX_DEPTH} levels deep (line 1)",
            id="very deep nesting",
        ),
        pytest.param(
            "{" * 100_000,
            "document 1: has a key that is not plain text (line 1)",
            id="very deep nesting of keys",
        ),
        pytest.param(
            "? [a]\n: b\n",
            "document 1: has a key that is not plain text (line 1); the document is left out",
            id="a key that is a list",
        ),
        pytest.param(
            "just text", "document 1: 'just text' is not an object (a mapping); left out", id="text"
        ),
    ],
)  # fmt: skip - the messages read better so
async def test_a_bad_document_is_one_message_and_the_rest_is_as_before(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    snapshot = await read_beside_good_files(tmp_path, text, name="bad.yaml")
    separator = ", " if message.startswith("document") else ": "
    assert list(map(str, snapshot.problems)) == [f"bad.yaml{separator}{message}"]
    assert [node.spec.location for node in snapshot.nodes] == ["oregon"]
    assert snapshot.peers == (make_peer("squat", "10.5.0.1/32"),)


async def test_an_unknown_field_is_one_message_and_its_object_is_used(tmp_path: Path) -> None:
    text = PEER + f"{{publicKey: {KEY}, allowedIPs: [10.5.0.2/32], colour: red}}"
    snapshot = await read_beside_good_files(tmp_path, text, name="bad.yaml")
    (problem,) = snapshot.problems
    assert str(problem) == (
        "bad.yaml, document 1: Peer bad: spec.colour: 'red' is not a field; known are publicKey, "
        "allowedIPs, persistentKeepalive, presharedKey, endpoint; ignored"
    )
    assert [peer.name for peer in snapshot.peers] == ["bad", "squat"]


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, '{"a": 1, "a": 2}', "1" * 5000, '{"a": "\ud800'[:-1], "nul"]
)
async def test_bad_json_is_one_message_too(tmp_path: Path, text: str) -> None:
    snapshot = await read_beside_good_files(tmp_path, text, name="bad.json")
    (problem,) = snapshot.problems
    assert problem.source == "bad.json, document 1"
    assert len(snapshot.peers) == 1


async def test_a_broken_document_does_not_hide_those_after_it(tmp_path: Path) -> None:
    good = yaml.safe_dump(make_peer_document(make_peer("after", "10.5.0.7/32")))
    snapshot = await read_beside_good_files(tmp_path, f"a: 1\na: 2\n---\n{good}", name="bad.yaml")
    assert [peer.name for peer in snapshot.peers] == ["after", "squat"]
    assert [problem.source for problem in snapshot.problems] == ["bad.yaml, document 1"]


# Secrets.

SECRET = make_preshared_key("very secret").reveal()


@pytest.mark.parametrize(
    "text",
    [
        PEER + f"{{publicKey: {KEY}, allowedIPs: [x], presharedKey: {SECRET}}}",
        PEER + f"{{publicKey: {KEY}, allowedIPs: [10.5.0.2/32], presharedKey: {SECRET[:-2]}}}",
        PEER + f"{{publicKey: {KEY}, allowedIPs: [10.5.0.2/32], presharedKey: [{SECRET}]}}",
        PEER + f"{{publicKey: {KEY}, allowedIPs: [10.5.0.2/32], preSharedKey: {SECRET[1:]}}}",
        PEER + f"{{publicKey: {KEY}, allowedIPs: [10.5.0.2/32], privateKey: {SECRET}}}",
        PEER + f"{{publicKey: {KEY}, allowedIPs: [{SECRET}]}}",
        PEER + f"{{publicKey: {KEY}, allowedIPs: [10.5.0.2/32], endpoint: {SECRET}}}",
        PEER + f"[{{presharedKey: {SECRET}}}]",
        PEER + f"{{presharedKey: {SECRET}, presharedKey: {SECRET}}}",
        PEER + f"{{presharedKey: {SECRET}, x: *{SECRET[:10]}",
        PEER + f"{{presharedKey: {SECRET}",
        PEER + f"{{presharedKey: '{SECRET}",
        SECRET,
        f"- {SECRET}",
        f"key: {SECRET}",
        f"kind: {SECRET}\napiVersion: {SECRET}",
        HEAD + f"kind: Peer\nmetadata: {{name: {SECRET}}}",
        HEAD + f"kind: Node\nmetadata: {{name: a}}\nspec: {{location: [{SECRET}], {SECRET}: 1}}",
    ],
)
async def test_no_secret_gets_into_a_message(tmp_path: Path, text: str) -> None:
    snapshot = await read_beside_good_files(tmp_path, text, name="bad.yaml")
    assert snapshot.problems
    shown = repr(snapshot) + "".join(map(str, snapshot.problems))
    assert SECRET[1:-2] not in shown


# Any text.


def read_all(text: str, *, as_json: bool) -> list[Document]:
    documents = list(load_documents(text, as_json=as_json))
    for document in documents:
        assert "\n" not in document.fault
        for problem in read_document(document.value, source="s").problems:
            assert "\n" not in str(problem)
            assert len(problem.value) <= 60
    return documents


yaml_like = st.lists(
    st.sampled_from(
        [
            *"[]{}:-?!&*|>'\"%@`#,~ \n\t\0",
            "\n  ",
            "- ",
            ": ",
            "---\n",
            "...\n",
            "&a ",
            "*a",
            "<<: ",
            "!!int ",
            "!!timestamp ",
            "!!python/none ",
            "apiVersion: kilo.squat.ai/v1alpha1\n",
            "kind: Peer\n",
            "kind: List\n",
            "items: ",
            "metadata: ",
            "name: a\n",
            "spec: ",
            "publicKey: ",
            "allowedIPs: ",
            "2026-01-01",
            "1:30",
            ".inf",
            "0x",
            "\ud800",
            "\ufeff",
            "é",
        ]
    )
).map("".join)


@settings(deadline=None, max_examples=500)
@given(yaml_like | st.text(st.characters(codec=None)), st.booleans())
@example("&a a: *a", False)  # noqa: FBT003 - the test's own two arguments, in order
@example("!!bool x", False)  # noqa: FBT003 - as above
@example("<<: 1", False)  # noqa: FBT003 - as above
@example("<<: [*a]", False)  # noqa: FBT003 - as above
def test_no_text_makes_the_reader_raise(text: str, as_json: bool) -> None:  # noqa: FBT001 - given by hypothesis
    read_all(text, as_json=as_json)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
field_names = st.sampled_from(
    [
        "publicKey",
        "allowedIPs",
        "endpoint",
        "dnsOrIP",
        "port",
        "presharedKey",
        "internalIP",
        "allowedLocationIPs",
        "discoveredEndpoints",
        "subnets",
        "mtu",
        "resyncPeriod",
        "podCIDRs",
    ]
)  # fmt: skip - a list of words


@settings(deadline=None, max_examples=500)
@given(
    st.sampled_from(["kilo.squat.ai/v1alpha1", "v1"]),
    st.sampled_from(["Node", "NodeReport", "Peer", "Settings", "List", "NodeList"]),
    st.dictionaries(field_names, json_values),
    st.dictionaries(st.sampled_from(["labels", "annotations", "name"]), json_values),
)
def test_no_value_in_any_field_makes_the_reader_raise(
    version: str, kind: str, spec: dict[str, object], metadata: dict[str, object]
) -> None:
    document = {"apiVersion": version, "kind": kind, "metadata": {"name": "a"} | metadata}
    for more in ({"spec": spec}, {"spec": spec, "items": [spec, document]}):
        reading = read_document(document | more, source="s")
        for problem in reading.problems:
            assert "\n" not in str(problem)
            assert len(problem.value) <= 60


# What YAML 1.1 would make of plain words.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        ("0644", "0644"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("=", "="),
        ("true", True),
        ("'true'", "true"),
        ("!!str true", "true"),
        ("12", 12),
        ("-1.5", -1.5),
        ("null", None),
        ("''", ""),
    ],
)
def test_plain_words_are_read_as_yaml_1_2_reads_them(text: str, value: object) -> None:
    (document,) = load_documents(f"a: {text}", as_json=False)
    assert document.value == {"a": value}


def test_merge_keys_bring_in_what_is_not_said_again() -> None:
    text = "base: &b {x: 1, y: 1}\none: {<<: *b, x: 2}\ntwo: {y: 3, <<: [{z: 1}, *b]}\n"
    (document,) = load_documents(text, as_json=False)
    assert document.value == {
        "base": {"x": 1, "y": 1},
        "one": {"x": 2, "y": 1},
        "two": {"x": 1, "y": 3, "z": 1},
    }
