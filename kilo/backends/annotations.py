"""Kubernetes' own Node -> what its operator declares and its agent reports.

Both live in annotations ``kilo.squat.ai/…``. A value that does not parse counts as absent.
Source of names and values: Kilo's own agents, which read and write the same annotations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kilo.backends.fields import (
    BadValueError,
    Field,
    Format,
    Spot,
    read_mapping,
)
from kilo.backends.formats import (
    ENDPOINT,
    GOOD_NETWORKS,
    GRANULARITY,
    INTERNAL_IPS,
    LATEST_SECOND,
    PUBLIC_KEY,
    TEXT,
    read_address,
    read_good_networks,
    read_number,
    read_text,
)
from kilo.backends.objects import DeclaredNode
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import (
    MAX_KEEPALIVE_SECONDS,
    Endpoint,
    IPNetwork,
    NodeReport,
    NodeSpec,
)

PREFIX = "kilo.squat.ai/"


def _read_digits(value: object, spot: Spot, *, highest: int) -> int:
    text = read_text(value, spot)
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise spot.fault(value, "is not a whole number")
    try:
        return read_number(int(text), spot, lowest=0, highest=highest)
    except BadValueError as error:
        raise spot.fault(value, error.problem.reason) from None


def _read_discovered(value: object, spot: Spot) -> tuple[tuple[PublicKey, Endpoint], ...]:
    """A JSON object: public key -> ``{"IP": …, "Port": …, "Zone": …}``."""
    try:
        entries = json.loads(read_text(value, spot))
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise spot.fault(value, "is not a JSON object")
    found = {}
    for key, entry in entries.items():
        try:
            found[PUBLIC_KEY.parse(key, spot)] = _read_udp_address(entry, spot.item(key[:44]))
        except BadValueError as error:
            spot.report(error, "left out")
    return tuple(sorted(found.items()))


def _read_udp_address(entry: object, spot: Spot) -> Endpoint:
    address = read_mapping(entry, spot)
    port = read_number(address.get("Port"), spot.under("Port"), lowest=1, highest=65535)
    host = read_address(address.get("IP"), spot.under("IP"))
    if not host:
        raise spot.under("IP").fault(host, "is empty")
    return Endpoint(host=host, port=port)


def _read_only(parse: Any) -> Format:
    """Kubernetes' Nodes are read from such documents, never written as such."""
    return Format(parse=parse, emit=str)


KEEPALIVE = _read_only(lambda value, at: _read_digits(value, at, highest=MAX_KEEPALIVE_SECONDS))
LAST_SEEN = _read_only(lambda value, at: _read_digits(value, at, highest=LATEST_SECOND))
PRESENT = _read_only(lambda _value, _at: True)

DECLARED = (
    Field(name="force-endpoint", attribute="endpoint", format=ENDPOINT),
    Field(name="force-internal-ip", attribute="internal_ips", format=INTERNAL_IPS),
    Field(name="leader", attribute="leader", format=PRESENT),
    Field(name="location", attribute="location", format=TEXT),
    Field(
        name="persistent-keepalive",
        attribute="persistent_keepalive_seconds",
        format=KEEPALIVE,
    ),
    Field(name="allowed-location-ips", attribute="allowed_location_ips", format=GOOD_NETWORKS),
)
REPORTED = (
    Field(name="key", attribute="public_key", format=PUBLIC_KEY),
    Field(name="endpoint", attribute="endpoint", format=ENDPOINT),
    Field(name="internal-ip", attribute="internal_ips", format=INTERNAL_IPS),
    Field(name="wireguard-ip", attribute="wireguard_ips", format=INTERNAL_IPS),
    Field(
        name="discovered-endpoints",
        attribute="discovered_endpoints",
        format=_read_only(_read_discovered),
    ),
    Field(name="granularity", attribute="granularity", format=GRANULARITY),
    Field(name="last-seen", attribute="last_seen", format=LAST_SEEN),
)
OFTEN_EMPTY = ("key", "endpoint", "granularity", "discovered-endpoints", "last-seen")
"""Annotations that agents leave as ``""`` rather than take away."""


def read_annotated_node(
    name: str, document: Mapping[str, object], spot: Spot, topology_label: str
) -> DeclaredNode:
    """A ``v1`` Node. ``BadValueError`` where its parts are not of the kinds Kubernetes makes."""
    metadata = read_mapping(document.get("metadata"), spot.under("metadata"))
    at = spot.under("metadata").under("annotations")
    annotations = read_mapping(metadata.get("annotations"), at)
    declared = _read_annotations(DECLARED, annotations, at)
    if "location" not in declared:
        declared["location"] = _read_location(metadata, spot.under("metadata"), topology_label)
    reported = _read_annotations(REPORTED, annotations, at)
    last_seen = reported.pop("last_seen", None)
    has_key = "public_key" in reported
    return DeclaredNode(
        name=name,
        spec=NodeSpec(pod_subnets=_read_pod_subnets(document, spot.under("spec")), **declared),
        report=NodeReport(name=name, **reported) if has_key else None,
        last_seen=last_seen,
    )


def _read_annotations(
    fields: Sequence[Field], annotations: Mapping[str, object], spot: Spot
) -> dict[str, Any]:
    attributes = {}
    for one in fields:
        raw = annotations.get(PREFIX + one.name)
        if raw is None or (raw == "" and one.name in OFTEN_EMPTY):
            continue
        try:
            at = spot.item(PREFIX + one.name)
            attributes[one.attribute] = one.format.parse(raw, at)
        except BadValueError as error:
            spot.report(error, "counts as absent")
    return attributes


def _read_location(metadata: Mapping[str, object], spot: Spot, topology_label: str) -> str:
    labels = read_mapping(metadata.get("labels"), spot.under("labels"))
    label = labels.get(topology_label)
    return label if isinstance(label, str) else ""


def _read_pod_subnets(document: Mapping[str, object], spot: Spot) -> tuple[IPNetwork, ...]:
    spec = read_mapping(document.get("spec"), spot)
    if spec.get("podCIDRs"):
        return read_good_networks(spec["podCIDRs"], spot.under("podCIDRs"))
    if spec.get("podCIDR"):
        return read_good_networks(spec["podCIDR"], spot.under("podCIDR"))
    return ()
