"""An object of a cluster -> what it adds to the mesh, decoded only as far as it changed.

A Node of 12 KB arrives whenever its agent or its kubelet checks in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kilo.backends.annotations import PREFIX
from kilo.backends.documents import API_VERSION, Reading, read_document
from kilo.backends.entries import Entry
from kilo.backends.formats import LATEST_SECOND
from kilo.backends.kubernetes.settings import read_config_map
from kilo.backends.objects import join_objects
from kilo.mesh.model import Snapshot

LAST_SEEN = f"{PREFIX}last-seen"
SOURCE = ""
"""An object of a cluster stands nowhere but under its own name."""


def decode_node(document: Mapping[str, Any], held: Entry | None, *, topology_label: str) -> Entry:
    """A Node, of which only annotations of ours, one label and the pod CIDRs are looked at."""
    metadata, spec = _mapping(document.get("metadata")), _mapping(document.get("spec"))
    annotations = _mapping(metadata.get("annotations"))
    ours = {name: value for name, value in annotations.items() if name.startswith(PREFIX)}
    last_seen = _take_last_seen(ours)
    label = _mapping(metadata.get("labels")).get(topology_label)
    essence = (ours, label, spec.get("podCIDRs"), spec.get("podCIDR"))
    if held is not None and held.essence == essence:
        return held if held.last_seen == last_seen else replace(held, last_seen=last_seen)
    lean = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": metadata.get("name"),
            "annotations": ours,
            "labels": {} if label is None else {topology_label: label},
        },
        "spec": {name: spec[name] for name in ("podCIDRs", "podCIDR") if name in spec},
    }
    reading = read_document(lean, source=SOURCE, topology_label=topology_label)
    return Entry(essence=essence, part=_join(reading), last_seen=last_seen)


def decode_peer(document: Mapping[str, Any], held: Entry | None) -> Entry:
    """A Peer, of which only the ``spec`` is looked at: its status is written, never believed."""
    metadata = _mapping(document.get("metadata"))
    essence = document.get("spec")
    if held is not None and held.essence == essence:
        return held
    lean = {
        "apiVersion": API_VERSION,
        "kind": "Peer",
        "metadata": {"name": metadata.get("name")},
        "spec": essence,
    }
    return Entry(essence=essence, part=_join(read_document(lean, source=SOURCE)))


def decode_settings(document: Mapping[str, Any], held: Entry | None) -> Entry:
    """The ConfigMap of the settings."""
    essence = document.get("data")
    if held is not None and held.essence == essence:
        return held
    return Entry(essence=essence, part=_join(read_config_map(document)))


def _join(reading: Reading) -> Snapshot:
    return join_objects(reading.found, reading.problems)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _take_last_seen(annotations: dict[str, object]) -> int | None:
    """The stamp, taken out; one that is none is left to be read, and complained of."""
    text = annotations.get(LAST_SEEN)
    if not (isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 16):
        return None
    stamp = int(text)
    if stamp > LATEST_SECOND:
        return None
    del annotations[LAST_SEEN]
    return stamp
