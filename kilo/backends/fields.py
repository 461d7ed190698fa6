"""Tables of fields: one row says how a field is read, checked and written.

Everything wrong with a value becomes a ``Problem`` that names source, object, field and value;
it never becomes an exception that would keep other objects out. Nothing that may be a secret
key gets into a ``Problem``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kilo.mesh.model import Problem

SHOWN_CHARACTERS = 60
IGNORED = "ignored"
"""What becomes of a field that nobody knows; every other consequence leaves something out."""
ALWAYS_WRITTEN = object()
"""A default that no value equals."""

_SECRET_NAME = re.compile(r"priv|preshared|psk|secret|passw|token", re.IGNORECASE)
_PUBLIC_NAME = re.compile(r"(publicKey|/key\])$")
_KEY_TEXT = re.compile(r"[A-Za-z0-9+/_-]{40,}={0,2}|\b[0-9a-fA-F]{64}\b")


class BadValueError(Exception):
    """A value that cannot be used; carries the ``Problem`` to report."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A place in an object, and where to put what is found wrong there."""

    source: str
    of: str
    """The object, ``Peer squat``; empty while it is not known."""
    path: str = ""
    problems: list[Problem] = field(default_factory=list)
    """Shared by all spots of one object."""

    def under(self, name: str) -> Spot:
        """The field of that name in this mapping."""
        return replace(self, path=f"{self.path}.{name}" if self.path else name)

    def item(self, index: int | str) -> Spot:
        """One item of this list, or one entry of this mapping of free keys."""
        return replace(self, path=f"{self.path}[{index}]")

    def fault(self, value: object, reason: str) -> BadValueError:
        """To be raised: the value here cannot be used, for that reason."""
        return BadValueError(
            Problem(
                source=self.source,
                object=self.of,
                field=self.path,
                value=show_value(value, path=self.path),
                reason=reason,
            )
        )

    def report(self, error: BadValueError, consequence: str) -> None:
        """Note what was wrong and what follows from it."""
        problem = error.problem
        self.problems.append(replace(problem, reason=f"{problem.reason}; {consequence}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """What a field may hold. ``parse`` raises ``BadValueError``; ``emit`` reverses it.

    The rest tells the same to a Kubernetes API server, which refuses a little less: it is
    ``parse`` that decides.
    """

    parse: Callable[[object, Spot], Any]
    emit: Callable[[Any], object]
    schema: Mapping[str, object] = field(default_factory=dict)
    """In the words of OpenAPI v3."""
    rules: Mapping[str, str] = field(default_factory=dict)
    """CEL expression that must be true -> what is said where it is not: beyond the schema."""
    fields: Sequence[Field] = ()
    """Of a mapping: what is in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One row of a table: a document's field and the attribute it becomes."""

    name: str
    attribute: str
    format: Format
    required: bool = False
    vital: bool = False
    """A bad value makes the whole object unusable; a required field is always vital."""
    default: object = ALWAYS_WRITTEN
    """The attribute's value that is not written down."""
    description: str = ""
    """For whoever asks a Kubernetes API server to explain the field."""


def read_fields(fields: Sequence[Field], value: object, spot: Spot) -> dict[str, Any]:
    """Attribute -> value of each field that is there and good, the rest reported.

    ``BadValueError`` where a vital field is bad or missing. A null counts as absent, as it does
    in Kubernetes.
    """
    mapping = read_mapping(value, spot)
    report_unknown(mapping, [one.name for one in fields], spot)
    attributes = {}
    for one in fields:
        raw = mapping.get(one.name)
        at = spot.under(one.name)
        if raw is None:
            if one.required:
                raise at.fault(None, "is missing")
            continue
        try:
            attributes[one.attribute] = one.format.parse(raw, at)
        except BadValueError as error:
            if one.required or one.vital:
                raise
            spot.report(error, "counts as absent")
    return attributes


def emit_fields(fields: Sequence[Field], attributes: Mapping[str, Any]) -> dict[str, object]:
    """The mapping from which ``read_fields`` reads these attributes."""
    return {
        one.name: one.format.emit(attributes[one.attribute])
        for one in fields
        if one.attribute in attributes and attributes[one.attribute] != one.default
    }


def read_mapping(value: object, spot: Spot) -> dict[str, object]:
    """The value as a mapping; an absent one is empty."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise spot.fault(value, "is not a mapping")
    return value


def report_unknown(mapping: Mapping[str, object], known: Sequence[str], spot: Spot) -> None:
    """One problem for each key that no field has: a typing error is not to go unnoticed."""
    for name in mapping:
        if name not in known:
            at = spot.under(show_name(name))
            error = at.fault(mapping[name], f"is not a field; known are {', '.join(known)}")
            spot.report(error, IGNORED)


def is_ignored(problem: Problem) -> bool:
    """Whether it tells of an unknown field only: without that the object is what it says."""
    return problem.reason.endswith(f"; {IGNORED}")


def show_value(value: object, *, path: str) -> str:
    """The value for a message: short, on one line, and empty where it may be a secret."""
    if value is None or _SECRET_NAME.search(path):
        return ""
    if isinstance(value, dict):
        return "{…}" if value else "{}"
    if isinstance(value, list):
        return "[…]" if value else "[]"
    text = value if isinstance(value, str) else str(value).lower()
    return shorten(text) if _PUBLIC_NAME.search(path) else show_name(text)


def show_name(text: str) -> str:
    """A text from a document, short, with everything that looks like a key taken out."""
    return shorten(_KEY_TEXT.sub("(hidden)", text))


def shorten(text: str) -> str:
    """At most ``SHOWN_CHARACTERS`` of it, printable."""
    cut = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
    return "".join(char if char.isprintable() else "\ufffd" for char in cut)
