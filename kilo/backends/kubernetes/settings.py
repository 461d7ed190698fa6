"""The ConfigMap ``kilo-settings`` <-> Settings.

Each entry of its ``data`` is read as a file of a mesh directory would be, except that nothing
but Settings may stand in it: nodes and peers are objects of the cluster's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import yaml

from kilo.backends.documents import Reading, make_settings_document, read_document
from kilo.backends.fields import shorten
from kilo.backends.objects import Found
from kilo.backends.yamltext import Document, load_documents
from kilo.mesh.model import PartialSettings, Problem

SETTINGS_NAME = "kilo-settings"
SOURCE = f"ConfigMap {SETTINGS_NAME}"
ENTRY = "settings.yaml"
"""The entry that is written; any other is read as well."""
MAX_PROBLEMS = 100
"""Of the ConfigMap, so that one of nothing but errors does not flood the log."""


def read_config_map(document: Mapping[str, object]) -> Reading:
    """The Settings in it, entry by entry in the order of their names, and what is wrong.

    Never raises. An entry without any document is none of the problems: settings that somebody
    commented out are no settings.
    """
    reading = Reading()
    data = document.get("data") or {}
    if not isinstance(data, dict):
        reading.problems.append(_describe(SOURCE, "is not a mapping; left out", field="data"))
        return reading
    for name in sorted(data):
        _read_entry(str(name), data[name], reading)
    if len(reading.problems) > MAX_PROBLEMS:
        more = len(reading.problems) - MAX_PROBLEMS + 1
        reading.problems[MAX_PROBLEMS - 1 :] = [
            _describe(SOURCE, f"has {more} more problems, not shown here")
        ]
    reading.problems[:] = map(_place, reading.problems)
    return reading


def _place(problem: Problem) -> Problem:
    """What is no Settings object is the ConfigMap's fault: not a Peer's that is called the same."""
    if problem.object.startswith("Settings "):
        return problem
    entry = problem.source.removeprefix(SOURCE).removeprefix(", ")
    field = ": ".join(filter(None, (entry, problem.field)))
    return replace(problem, source="", object=SOURCE, field=field)


def _read_entry(name: str, text: object, reading: Reading) -> None:
    place = f"{SOURCE}, {shorten(name)}"
    if not isinstance(text, str):
        reading.problems.append(_describe(place, "is not text; left out"))
        return
    for document in load_documents(text, as_json=name.endswith(".json")):
        source = f"{place}, document {document.number}"
        if document.fault:
            reading.problems.append(_describe(source, _describe_fault(document)))
            continue
        held = read_document(document.value, source=source)
        reading.problems.extend(held.problems)
        reading.problems.extend(_refuse(one) for one in held.found if one.kind != "Settings")
        reading.found.extend(one for one in held.found if one.kind == "Settings")


def _describe_fault(document: Document) -> str:
    return document.fault if document.cut else f"{document.fault}; the document is left out"


def _refuse(one: Found) -> Problem:
    return Problem(
        source=one.source,
        object=f"{one.kind} {one.name}",
        field="kind",
        value=one.kind,
        reason="is not Settings, all that may stand here; left out",
    )


def _describe(source: str, reason: str, *, field: str = "") -> Problem:
    return Problem(source=source, object="", field=field, reason=reason)


def render_settings(settings: PartialSettings, entry: str = ENTRY) -> str:
    """The text of an entry of that name from which these settings are read."""
    document = make_settings_document(settings)
    if entry.endswith(".json"):
        return json.dumps(document, indent=2) + "\n"
    return yaml.safe_dump(document, sort_keys=False)


def make_config_map(settings: PartialSettings, *, namespace: str) -> dict[str, object]:
    """The ConfigMap, ``v1``, from which ``read_config_map`` reads these settings."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": SETTINGS_NAME, "namespace": namespace},
        "data": {ENTRY: render_settings(settings)},
    }
