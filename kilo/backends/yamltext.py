"""Text -> documents: YAML and JSON read without trusting whoever wrote them.

Values are built straight from the parser's events. So nothing recurses deeper than
``MAX_DEPTH``, aliases cannot explode, no tag constructs anything, and a key that stands
twice is noticed. Plain scalars are read as YAML 1.2 reads them: ``on``, ``no``, ``1:30`` and
``2026-01-31`` are text, for a location may well be called ``no``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from yaml.reader import ReaderError

from kilo.backends.fields import show_name

MAX_DEPTH = 100
"""Levels of nesting; Kubernetes' own objects need about twenty."""
MAX_ALIASED = 100_000
"""Values that the aliases of one document may add to it."""
MAX_DOCUMENTS = 20_000
"""Of one text. Millions of tiny ones would cost minutes and gigabytes."""

_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
_WORDS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
_FLOAT = re.compile(r"[-+]?[0-9]{1,30}\.[0-9]{0,30}([eE][-+][0-9]{1,3})?")
_PLAIN_TAGS = ("!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document of a text, counted from 1. With a fault it has no value."""

    number: int
    value: object = None
    fault: str = ""
    """Why it cannot be used, one line without any of the document's values."""
    cut: bool = False
    """The fault is one of syntax: what follows in the text could not be read at all."""


class FaultyDocumentError(ValueError):
    """The document is well-formed but not acceptable; the text says why."""


class TooDeepError(FaultyDocumentError):
    """Reading on would take for ever: libyaml needs time for each level at each token."""


def load_documents(text: str, *, as_json: bool) -> Iterator[Document]:
    """Every document of the text, empty ones left out. Never raises; a fault is a Document."""
    text = text.removeprefix("\ufeff")
    for document in _load_json(text) if as_json else _load_yaml(text):
        if document.number > MAX_DOCUMENTS:
            fault = f"stands after {MAX_DOCUMENTS} others, and no more are read"
            yield Document(number=document.number, fault=fault, cut=True)
            return
        if document.fault or document.value is not None:
            yield document


def _load_yaml(text: str) -> Iterator[Document]:
    number = 0
    try:
        # A str in, so no encoding is guessed; the parser is lazy, so its errors come in here too.
        events = yaml.parse(text, Loader=_LOADER)
        for event in events:
            if isinstance(event, DocumentStartEvent):
                number += 1
                document = _load_one(events, number)
                yield document
                if document.cut:
                    return
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        yield Document(number=max(number, 1), fault=_describe(error, text), cut=True)


def _load_one(events: Iterator[Event], number: int) -> Document:
    builder = _Builder(events)
    try:
        value = builder.build(next(events), depth=0)
        fault = ""
    except TooDeepError as error:
        return Document(number=number, fault=str(error), cut=True)
    except FaultyDocumentError as error:
        value, fault = None, str(error)
    return Document(number=number, value=value, fault=fault, cut=not _skip_to_end(events))


def _skip_to_end(events: Iterator[Event]) -> bool:
    """Pass over what is left of a document; False where that is nested too deep."""
    depth = 0
    for event in events:
        if isinstance(event, DocumentEndEvent):
            break
        if isinstance(event, CollectionStartEvent):
            depth += 1
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            return False
    return True


class _Builder:
    """Builds one document's value; anchors live as long as their document."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._anchors: dict[str, tuple[object, int]] = {}
        self._built = 0
        self._aliased = 0

    def build(self, event: Event, *, depth: int) -> object:
        """The value that begins with this event."""
        if depth > MAX_DEPTH:
            raise TooDeepError(f"is nested more than {MAX_DEPTH} levels deep{_line(event)}")
        if isinstance(event, AliasEvent):
            return self._recall(event)
        built_before = self._built
        self._built += 1
        _refuse_tag(event)
        value: object
        if isinstance(event, ScalarEvent):
            value = _resolve(event)
        elif isinstance(event, SequenceStartEvent):
            value = self._build_sequence(depth)
        else:
            value = self._build_mapping(depth)
        anchor = getattr(event, "anchor", None)
        if anchor:
            self._anchors[anchor] = (value, self._built - built_before)
        return value

    def _recall(self, event: AliasEvent) -> object:
        if event.anchor not in self._anchors:
            raise FaultyDocumentError(
                f"has an alias of nothing that stands before it{_line(event)}"
            )
        value, size = self._anchors[event.anchor]
        self._built += size
        self._aliased += size
        if self._aliased > MAX_ALIASED:
            raise FaultyDocumentError(f"has aliases that add more than {MAX_ALIASED} values")
        return value

    def _build_sequence(self, depth: int) -> list[object]:
        items = []
        for event in self._events:
            if isinstance(event, SequenceEndEvent):
                break
            items.append(self.build(event, depth=depth + 1))
        return items

    def _build_mapping(self, depth: int) -> dict[str, object]:
        mapping: dict[str, object] = {}
        merged: dict[str, object] = {}
        for event in self._events:
            if isinstance(event, MappingEndEvent):
                break
            key = _read_key(event)
            value = self.build(next(self._events), depth=depth + 1)
            if key == "<<":
                merged = _merge(value, event) | merged
            elif key in mapping:
                raise FaultyDocumentError(f"has the key {show_name(key)!r} twice{_line(event)}")
            else:
                mapping[key] = value
        return merged | mapping


def _read_key(event: Event) -> str:
    """A mapping's key, always as text: ``1`` and ``on`` are names like any other."""
    if not isinstance(event, ScalarEvent):
        raise FaultyDocumentError(f"has a key that is not plain text{_line(event)}")
    _refuse_tag(event)
    return str(event.value)


def _merge(value: object, event: Event) -> dict[str, object]:
    """What ``<<`` brings in: a mapping, or a list of them of which the first wins."""
    merged: dict[str, object] = {}
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, dict):
            raise FaultyDocumentError(f"merges with << what is not a mapping{_line(event)}")
        merged = one | merged
    return merged


def _refuse_tag(event: Event) -> None:
    tag = getattr(event, "tag", None)
    if tag and tag not in _PLAIN_TAGS:
        raise FaultyDocumentError(
            f"has the tag {show_name(tag)!r}, and no tags are allowed{_line(event)}"
        )


def _resolve(event: ScalarEvent) -> object:
    text = str(event.value)
    if not event.implicit[0]:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _line(event: Event) -> str:
    mark = getattr(event, "start_mark", None)
    return f" (line {mark.line + 1})" if mark else ""


def _describe(error: Exception, text: str) -> str:
    """One line, with the place but without the text around it, which may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        return f"is not YAML: {error.problem or error.context}{where}"
    if isinstance(error, ReaderError):
        line = text.encode(errors="replace")[: error.position].count(b"\n") + 1
        return f"is not YAML: {error.reason} (near line {line})"
    return f"is not YAML: {type(error).__name__}"


def _load_json(text: str) -> Iterator[Document]:
    decoder = json.JSONDecoder(object_pairs_hook=_refuse_duplicates)
    number, position = 0, 0
    while (position := _skip_space(text, position)) < len(text):
        number += 1
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            where = f"(line {error.lineno}, column {error.colno})"
            yield Document(number=number, fault=f"is not JSON: {error.msg} {where}", cut=True)
            return
        except (FaultyDocumentError, RecursionError, ValueError) as error:
            yield Document(number=number, fault=_describe_json(error), cut=True)
            return
        yield Document(number=number, value=value)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _describe_json(error: Exception) -> str:
    if isinstance(error, FaultyDocumentError):
        return str(error)
    if isinstance(error, RecursionError):
        return "is nested too deep"
    return "is not JSON: a number in it is too long"


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add() is None
        raise FaultyDocumentError(f"has the key {show_name(twice)!r} twice")
    return mapping
