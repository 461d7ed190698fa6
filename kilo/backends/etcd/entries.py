"""A key of an etcd and its value -> what it adds to the mesh, decoded only as far as it changed.

Whoever may write below the prefix may have written anything: what is no document of ours is
named, once, and left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kilo.backends.documents import API_VERSION, read_document
from kilo.backends.entries import Entry, make_problem_entry
from kilo.backends.etcd.asks import show_key
from kilo.backends.etcd.keys import KINDS, Keys
from kilo.backends.fields import BadValueError, Spot
from kilo.backends.formats import LATEST_SECOND
from kilo.backends.objects import join_objects
from kilo.backends.yamltext import load_documents
from kilo.mesh.model import Problem, Snapshot

MAX_VALUE_BYTES = 64 * 1024
"""Of one object; a report of a thousand discovered endpoints has that, others a hundredth."""
NOTHING = Entry(part=Snapshot())
"""Of a key that is ours and says nothing of the mesh."""


class _UnusableError(Exception):
    """The value as a whole is none of ours; the text says why, without any of it."""


def decode_entry(keys: Keys, key: str, value: bytes, held: Entry | None) -> Entry:
    """What stands under the key. Never raises: what is wrong is a ``Problem``."""
    if key.startswith(keys.subnets):
        return NOTHING
    try:
        kind, name = _find_kind(keys, key)
        document = _load(value)
        last_seen = _take_last_seen(document) if kind == "NodeReport" else None
    except _UnusableError as error:
        reason = f"{error}; left out"
        return make_problem_entry(Problem(source=show_key(key), object="", reason=reason))
    if held is not None and held.essence == document:
        return held if held.last_seen == last_seen else replace(held, last_seen=last_seen)
    part = _read(document, key, kind, name)
    return Entry(essence=document, part=part, last_seen=last_seen)


def _find_kind(keys: Keys, key: str) -> tuple[str, str]:
    """The kind and the name that an object under this key has; of the settings any name does."""
    if key == keys.settings:
        return "Settings", ""
    folder, _, name = key.removeprefix(keys.prefix).partition("/")
    if folder not in KINDS or not name:
        known = ", ".join((*(f"{one}/NAME" for one in KINDS), "settings"))
        raise _UnusableError(f"is no key of a mesh's: those are {known}")
    return KINDS[folder], name


def _load(value: bytes) -> dict[str, Any]:
    """The one document of the value, as JSON."""
    if len(value) > MAX_VALUE_BYTES:
        raise _UnusableError(
            f"is too large: {len(value)} bytes, at most {MAX_VALUE_BYTES} are read"
        )
    try:
        documents = list(load_documents(value.decode(), as_json=True))
    except UnicodeDecodeError as error:
        raise _UnusableError(f"is not UTF-8 text (byte {error.start + 1})") from None
    if not documents:
        raise _UnusableError("is empty: it holds no document")
    document = documents[0]
    if document.fault:
        raise _UnusableError(document.fault)
    if len(documents) > 1 or not isinstance(document.value, dict):
        raise _UnusableError("is not one JSON object")
    return document.value


def _take_last_seen(document: Mapping[str, Any]) -> int | None:
    """The stamp, taken out; one that is none is left to be read, and complained of."""
    spec = document.get("spec")
    stamp = spec.get("lastSeen") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or type(stamp) is not int or not 0 <= stamp <= LATEST_SECOND:
        return None
    del spec["lastSeen"]
    return stamp


def _read(document: dict[str, Any], key: str, kind: str, name: str) -> Snapshot:
    spot = Spot(source=show_key(key), of=f"{kind} {show_key(name)}".rstrip())
    try:
        _check_kind(document, kind, spot)
        _check_name(document, name, spot)
    except BadValueError as error:
        spot.report(error, f"the {kind} is left out")
        return Snapshot(problems=tuple(spot.problems))
    reading = read_document(document, source=spot.source)
    return join_objects(reading.found, reading.problems)


def _check_kind(document: Mapping[str, Any], kind: str, spot: Spot) -> None:
    for field, wanted in (("apiVersion", API_VERSION), ("kind", kind)):
        if document.get(field) != wanted:
            raise spot.under(field).fault(document.get(field), f"is not {wanted}, as the key wants")


def _check_name(document: Mapping[str, Any], name: str, spot: Spot) -> None:
    """That it is the key's; what is no name at all is complained of with the rest."""
    metadata = document.get("metadata")
    stated = metadata.get("name") if isinstance(metadata, dict) else None
    if name and isinstance(stated, str) and stated != name:
        at = spot.under("metadata").under("name")
        raise at.fault(stated, "is not the name that the key ends with")
