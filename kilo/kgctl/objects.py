"""The objects that commands speak of: how they are named, and a snapshot as documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kilo.backends.documents import (
    make_node_document,
    make_peer_document,
    make_report_document,
    make_settings_document,
)
from kilo.backends.objects import DeclaredNode, DeclaredSettings, Found
from kilo.kgctl.storing import UsageError
from kilo.mesh.keys import PresharedKey
from kilo.mesh.model import Peer, Problem, Snapshot

Document = dict[str, object]

KINDS = {"node": "Node", "peer": "Peer", "settings": "Settings", "report": "NodeReport"}
"""The word of a kind in commands -> its name in documents."""
PLURALS = {"nodes": "node", "peers": "peer", "reports": "report"}
WITHHELD_TEXT = "(withheld)"
"""In the place of a preshared key. It is none, so that who gives the document back is refused,
and does not take the peer's key away."""


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """One object that is meant."""

    word: str
    name: str = ""
    """Empty for settings, of which a mesh has one."""

    def __str__(self) -> str:
        return f"{self.word}/{self.name}" if self.name else self.word

    @property
    def quoted(self) -> str:
        """As it is called in sentences."""
        return f'{self.word} "{self.name}"' if self.name else self.word

    def is_meant(self, problem: Problem) -> bool:
        """Whether that is wrong with it."""
        what = KINDS[self.word]
        if not self.name:
            return problem.object.partition(" ")[0] == what
        return problem.object == f"{what} {self.name}"


def parse_targets(arguments: Sequence[str], words: Sequence[str]) -> list[Target]:
    """``peer squat tom``, or ``peer/squat node/a1``: in each its kind, of ``words``, and name."""
    if any("/" in argument for argument in arguments):
        return [_parse_pair(argument, words) for argument in arguments]
    word, *names = arguments
    kind = parse_kind(word, words)
    if kind == "settings" and names:
        raise UsageError(f"settings {names[0]!r}: a mesh has one Settings object, without a name")
    return [Target(kind, name) for name in names] or [Target(kind)]


def _parse_pair(argument: str, words: Sequence[str]) -> Target:
    word, slash, name = argument.partition("/")
    kind = parse_kind(word, words)
    if kind == "settings" and not slash:
        return Target(kind)
    if kind == "settings" or not name:
        raise UsageError(f"{argument!r}: is not KIND/NAME")
    return Target(kind, name)


def parse_kind(word: str, words: Sequence[str]) -> str:
    """One of ``words``, from itself, its plural or the kind's name in documents."""
    kind = word.lower()
    kind = PLURALS.get(kind, kind)
    if kind not in words:
        raise UsageError(f"{word!r}: is not one of {', '.join(words)}")
    return kind


def pluralise(word: str) -> str:
    """Of a kind; of settings there is one only."""
    return next((plural for plural, singular in PLURALS.items() if singular == word), word)


def identify(one: Found) -> Target:
    """What a document that was read describes."""
    word = next(word for word, kind in KINDS.items() if kind == one.kind)
    return Target(word) if word == "settings" else Target(word, one.name)


def make_document(one: Found) -> Document:
    """The document again, written as we write it; of a kind that operators write."""
    match one.value:
        case DeclaredNode(name=name, spec=spec):
            return make_node_document(name, spec)
        case Peer() as peer:
            return make_peer_document(peer)
        case DeclaredSettings(settings=settings):
            return make_settings_document(settings)
    raise AssertionError(one.kind)  # reports are refused before


def list_documents(snapshot: Snapshot, *, secrets: bool) -> dict[Target, Document]:
    """All that the snapshot holds; preshared keys only if asked for ``secrets``."""
    return dict(_list_documents(snapshot, secrets=secrets))


def _list_documents(snapshot: Snapshot, *, secrets: bool) -> Iterator[tuple[Target, Document]]:
    for node in snapshot.nodes:
        yield Target("node", node.name), make_node_document(node.name, node.spec)
    for peer in snapshot.peers:
        yield Target("peer", peer.name), _make_peer_document(peer, secrets=secrets)
    if snapshot.settings:
        yield Target("settings"), make_settings_document(snapshot.settings)
    for node in snapshot.nodes:
        if node.report is not None:
            last_seen = snapshot.last_seen.get(node.name)
            document = make_report_document(node.report, last_seen=last_seen)
            yield Target("report", node.name), document


def _make_peer_document(peer: Peer, *, secrets: bool) -> Document:
    key = peer.preshared_key
    if key is None or (secrets and isinstance(key, PresharedKey)):
        return make_peer_document(peer)
    document = make_peer_document(replace(peer, preshared_key=None))
    spec = document["spec"]
    assert isinstance(spec, dict)  # noqa: S101 - for the type checker: a document's always is
    return document | {"spec": spec | {"presharedKey": WITHHELD_TEXT}}


def is_withheld(document: Mapping[str, object]) -> bool:
    """Whether its preshared key is not told."""
    spec = document["spec"]
    return isinstance(spec, dict) and spec.get("presharedKey") == WITHHELD_TEXT
