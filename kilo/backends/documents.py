"""The one schema: Node, NodeReport, Peer and Settings as documents, and back.

A document is what YAML or JSON holds: mappings, lists, text, numbers. ``read_document`` takes
one of any kind, Kubernetes' own ``v1`` Nodes and Lists included, and never raises: what is wrong
is a ``Problem``. Who does not know a field takes it as absent; an object without something it
cannot do without is left out. The tables below are all there is to know about the fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from kilo.backends.annotations import read_annotated_node
from kilo.backends.fields import (
    BadValueError,
    Field,
    Spot,
    emit_fields,
    read_fields,
    read_mapping,
    report_unknown,
    show_name,
)
from kilo.backends.formats import (
    DISCOVERED,
    DURATION,
    ENCAPSULATION,
    ENDPOINT,
    GOOD_NETWORKS,
    GRANULARITY,
    INTERFACE,
    INTERFACES,
    INTERNAL_IPS,
    MTU,
    NETWORKS,
    POOLS,
    PORT,
    PRESHARED_KEY,
    PUBLIC_KEY,
    SECONDS,
    SOME_NETWORKS,
    SUBNETS,
    TEXT,
    TRUTH,
    UNIX_TIME,
    read_text,
)
from kilo.backends.objects import DeclaredNode, DeclaredSettings, Found, ReportedNode, StoredObject
from kilo.backends.peerendpoint import PEER_ENDPOINT
from kilo.mesh.model import NodeReport, NodeSpec, PartialSettings, Peer, Problem, Settings
from kilo.mesh.pools import find_objection

API_VERSION = "kilo.squat.ai/v1alpha1"
DEFAULT_TOPOLOGY_LABEL = "topology.kubernetes.io/region"
SETTINGS_NAME = "mesh"
"""Of the one Settings object, where nobody calls it otherwise."""
MAX_NAME_CHARACTERS = 253
"""Kubernetes' limit for a DNS-1123 subdomain."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_TOP_LEVEL = ("apiVersion", "kind", "metadata", "spec")

NODE_FIELDS = (
    Field(name="location", attribute="location", format=TEXT, default=""),
    Field(name="endpoint", attribute="endpoint", format=ENDPOINT, default=None),
    Field(name="internalIP", attribute="internal_ips", format=INTERNAL_IPS, default=None),
    Field(name="leader", attribute="leader", format=TRUTH, default=False),
    Field(
        name="persistentKeepalive",
        attribute="persistent_keepalive_seconds",
        format=SECONDS,
        default=0,
    ),
    Field(
        name="allowedLocationIPs",
        attribute="allowed_location_ips",
        format=GOOD_NETWORKS,
        default=(),
    ),
    Field(name="podSubnets", attribute="pod_subnets", format=GOOD_NETWORKS, default=()),
    Field(name="publicKey", attribute="public_key", format=PUBLIC_KEY, default=None),
)
REPORT_FIELDS = (
    Field(name="publicKey", attribute="public_key", format=PUBLIC_KEY, required=True),
    Field(name="endpoint", attribute="endpoint", format=ENDPOINT, default=None),
    Field(name="internalIPs", attribute="internal_ips", format=INTERFACES, default=()),
    Field(name="wireguardIPs", attribute="wireguard_ips", format=INTERFACES, default=()),
    Field(
        name="discoveredEndpoints",
        attribute="discovered_endpoints",
        format=DISCOVERED,
        default=(),
    ),
    Field(name="granularity", attribute="granularity", format=GRANULARITY, default=None),
    Field(
        name="cniCompatibilityIP",
        attribute="cni_compatibility_ip",
        format=INTERFACE,
        default=None,
    ),
    Field(name="agent", attribute="agent", format=TEXT, default=""),
    Field(name="lastSeen", attribute="last_seen", format=UNIX_TIME, default=None),
)
PEER_FIELDS = (
    Field(
        name="publicKey",
        attribute="public_key",
        format=PUBLIC_KEY,
        required=True,
        description="The WireGuard public key of the device: 32 bytes in base64.",
    ),
    Field(
        name="allowedIPs",
        attribute="allowed_ips",
        format=SOME_NETWORKS,
        required=True,
        description="CIDRs that are reached through the device: its own addresses, or a network"
        " behind it.",
    ),
    Field(
        name="persistentKeepalive",
        attribute="persistent_keepalive_seconds",
        format=SECONDS,
        default=0,
        description="Seconds between keepalive packets, for a device behind NAT; 0 is off.",
    ),
    # Vital: a peer whose preshared key cannot be read must not be let in without one.
    Field(
        name="presharedKey",
        attribute="preshared_key",
        format=PRESHARED_KEY,
        vital=True,
        default=None,
        description="A symmetric key that the device adds to its handshakes: 32 bytes in base64.",
    ),
    Field(
        name="endpoint",
        attribute="endpoint",
        format=PEER_ENDPOINT,
        default=None,
        description="Where the device listens, if it can be reached; without it, it must call.",
    ),
)
SETTINGS_FIELDS = (
    Field(name="subnets", attribute="subnets", format=SUBNETS),
    Field(name="granularity", attribute="granularity", format=GRANULARITY),
    Field(name="port", attribute="port", format=PORT),
    Field(name="mtu", attribute="mtu", format=MTU),
    Field(name="encapsulation", attribute="encapsulation", format=ENCAPSULATION),
    Field(name="serviceCIDRs", attribute="service_cidrs", format=NETWORKS),
    Field(name="resyncPeriod", attribute="resync_period_seconds", format=DURATION),
    Field(name="podSubnetPools", attribute="pod_subnet_pools", format=POOLS),
)


def _leave_out_pools(attributes: dict[str, Any], spot: Spot) -> None:
    """Those with addresses of the mesh's own, which no node may be given."""
    settings = replace(Settings(), **attributes)
    kept = []
    for index, pool in enumerate(settings.pod_subnet_pools):
        if reason := find_objection(pool, settings):
            at = spot.under("podSubnetPools").item(index).under("cidr")
            at.report(at.fault(str(pool.network), reason), "left out")
        else:
            kept.append(pool)
    if "pod_subnet_pools" in attributes:
        attributes["pod_subnet_pools"] = tuple(kept)


def _make_report(name: str, attributes: dict[str, Any]) -> ReportedNode:
    last_seen = attributes.pop("last_seen", None)
    return ReportedNode(report=NodeReport(name=name, **attributes), last_seen=last_seen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of ours: its fields, and how to make its value from a name and their attributes."""

    fields: Sequence[Field]
    make: Callable[[str, dict[str, Any]], StoredObject]
    has_status: bool = False
    """Whether a cluster keeps what agents say of it in the same object; it is not read."""
    settle: Callable[[dict[str, Any], Spot], None] = lambda _attributes, _spot: None
    """Takes out of the attributes what does not go with the others, and reports it."""


KINDS: Mapping[str, Kind] = {
    "Node": Kind(
        fields=NODE_FIELDS,
        make=lambda name, attributes: DeclaredNode(name=name, spec=NodeSpec(**attributes)),
    ),
    "NodeReport": Kind(fields=REPORT_FIELDS, make=_make_report),
    "Peer": Kind(
        fields=PEER_FIELDS,
        make=lambda name, attributes: Peer(name=name, **attributes),
        has_status=True,
    ),
    "Settings": Kind(
        fields=SETTINGS_FIELDS,
        make=lambda _, attributes: DeclaredSettings(settings=cast("PartialSettings", attributes)),
        settle=_leave_out_pools,
    ),
}
_LISTS = {("v1", "List"): None, ("v1", "NodeList"): ("v1", "Node")} | {
    (API_VERSION, f"{kind}List"): (API_VERSION, kind) for kind in KINDS
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one or more documents hold, in their order."""

    found: list[Found] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_document(
    document: object, *, source: str, topology_label: str = DEFAULT_TOPOLOGY_LABEL
) -> Reading:
    """The objects of one document, and what is wrong in it. Never raises.

    ``source`` says where the document stands; ``topology_label`` names the label of a ``v1``
    Node that holds its location.
    """
    reading = Reading()
    for item, place in _unfold(document, source, reading.problems):
        _read_object(item, place, topology_label, reading)
    return reading


def _unfold(
    document: object, source: str, problems: list[Problem]
) -> Iterator[tuple[dict[str, object], str]]:
    """The document, or each item of a list; Kubernetes' lists may leave kinds to the list's own."""
    spot = Spot(source=source, of="", problems=problems)
    if not isinstance(document, dict):
        spot.report(spot.fault(document, "is not an object (a mapping)"), "left out")
        return
    kind = _kind_of(document)
    if kind not in _LISTS:
        yield document, source
        return
    items = document.get("items")
    if not isinstance(items, list):
        at = spot.under("items")
        at.report(at.fault(items, f"of this {kind[1]} is not a list"), "left out")
        return
    default = _LISTS[kind]
    for number, item in enumerate(items, start=1):
        if default and isinstance(item, dict):
            item = {"apiVersion": default[0], "kind": default[1]} | item  # noqa: PLW2901 - the same item, completed
        if isinstance(item, dict) and _kind_of(item) in _LISTS:
            at = spot.under("items").item(number - 1)
            at.report(at.fault(None, "is a list in a list"), "left out")
            continue
        yield from _unfold(item, f"{source}, item {number}", problems)


def _kind_of(document: dict[str, object]) -> tuple[object, object]:
    kind = document.get("apiVersion"), document.get("kind")
    return kind if all(isinstance(part, str) for part in kind) else (None, None)


def _read_object(
    document: dict[str, object], source: str, topology_label: str, reading: Reading
) -> None:
    spot = Spot(source=source, of="", problems=reading.problems)
    what = "the document"
    is_foreign = document.get("apiVersion") == "v1"
    try:
        kind = _read_kind(document, spot)
        what = f"the {kind}"
        spot = Spot(source=source, of=kind, problems=reading.problems)
        name = read_name(document, spot)
        spot = Spot(source=source, of=f"{kind} {name}", problems=reading.problems)
        if is_foreign:
            value: StoredObject = read_annotated_node(name, document, spot, topology_label)
        else:
            known = (*_TOP_LEVEL, "status") if KINDS[kind].has_status else _TOP_LEVEL
            report_unknown(document, known, spot)
            at = spot.under("spec")
            attributes = read_fields(KINDS[kind].fields, document.get("spec"), at)
            KINDS[kind].settle(attributes, at)
            value = KINDS[kind].make(name, attributes)
    except BadValueError as error:
        spot.report(error, f"{what} is left out")
    else:
        found = Found(source=source, kind=kind, name=name, value=value, is_foreign=is_foreign)
        reading.found.append(found)


def _read_kind(document: dict[str, object], spot: Spot) -> str:
    version, kind = document.get("apiVersion"), document.get("kind")
    if version not in (API_VERSION, "v1"):
        raise spot.under("apiVersion").fault(version, f"is not {API_VERSION} (or v1)")
    known = KINDS if version == API_VERSION else ("Node",)
    if not isinstance(kind, str) or kind not in known:
        raise spot.under("kind").fault(kind, f"is not a kind of {version}: {', '.join(known)}")
    return kind


def read_name(document: Mapping[str, object], spot: Spot) -> str:
    """``metadata.name``, which follows Kubernetes' rule and so is safe in a file's name too."""
    metadata = read_mapping(document.get("metadata"), spot.under("metadata"))
    at = spot.under("metadata").under("name")
    name = metadata.get("name")
    if name is None:
        raise at.fault(None, "is missing")
    if not is_object_name(read_text(name, at)):
        raise at.fault(name, "is not a name: lower case letters, digits, '-' and '.' (DNS-1123)")
    return str(name)


def is_object_name(text: str) -> bool:
    """Whether it is a DNS-1123 subdomain, as Kubernetes wants objects to be named."""
    return len(text) <= MAX_NAME_CHARACTERS and _NAME.fullmatch(text) is not None


def check_object_name(kind: str, name: str) -> None:
    """``ValueError`` for a name under which nothing can be stored."""
    if not is_object_name(name):
        raise ValueError(
            f"{kind} {show_name(name)!r}: metadata.name is not a name: lower case letters, digits,"
            " '-' and '.' (DNS-1123)"
        )


def _make_document(kind: str, name: str, attributes: Mapping[str, Any]) -> dict[str, object]:
    check_object_name(kind, name)
    try:
        spec = emit_fields(KINDS[kind].fields, attributes)
    except ValueError as error:
        raise ValueError(f"{kind} {name}: {error}") from None
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


def _attributes_of(fields: Sequence[Field], value: object) -> dict[str, Any]:
    names = (one.attribute for one in fields)
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def make_node_document(name: str, spec: NodeSpec) -> dict[str, object]:
    """What an operator declares of a node. ``ValueError`` for a name that is none."""
    return _make_document("Node", name, _attributes_of(NODE_FIELDS, spec))


def make_report_document(report: NodeReport, *, last_seen: int | None) -> dict[str, object]:
    """A node's report, written at ``last_seen`` (Unix seconds). ``ValueError`` for a bad name."""
    attributes = _attributes_of(REPORT_FIELDS, report) | {"last_seen": last_seen}
    return _make_document("NodeReport", report.name, attributes)


def make_peer_document(peer: Peer) -> dict[str, object]:
    """A peer, its preshared key in clear. ``ValueError`` for a bad name or a withheld key."""
    return _make_document("Peer", peer.name, _attributes_of(PEER_FIELDS, peer))


def make_settings_document(
    settings: PartialSettings, *, name: str = SETTINGS_NAME
) -> dict[str, object]:
    """The settings that are set. ``ValueError`` for a name that is none."""
    return _make_document("Settings", name, settings)
