"""Kubernetes' own Node <-> what its operator declares and its agent reports.

Both live in annotations ``kilo.squat.ai/…``. A value that does not parse counts as absent.
Source of names and values: Kilo's own agents, which read and write the same annotations. They
know one address of a kind; where a node has one of each family the first stands where they look
for it, and all of them stand in an annotation of ours beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kilo.backends.fields import (
    BadValueError,
    Field,
    Format,
    Spot,
    emit_fields,
    read_mapping,
)
from kilo.backends.formats import (
    ENDPOINT,
    GRANULARITY,
    INTERFACE,
    INTERNAL_IPS,
    LATEST_SECOND,
    PUBLIC_KEY,
    TEXT,
    check_families,
    read_address,
    read_cidr,
    read_good_networks,
    read_number,
    read_short_text,
    read_text,
)
from kilo.backends.objects import DeclaredNode
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import (
    MAX_KEEPALIVE_SECONDS,
    Endpoint,
    IPInterface,
    IPNetwork,
    NodeReport,
    NodeSpec,
    Problem,
)

PREFIX = "kilo.squat.ai/"
MAX_PROBLEMS = 20
"""Of one Node: a list of a megabyte of nonsense is not to become as many messages."""
MAX_DISCOVERED = 1000
"""Discovered endpoints that are written: 130 KB at most. An API server takes 256 KB of annotations
for a Node (``ValidateAnnotations``), and of a report that has more nothing at all: the node would
be taken for dead."""


def _read_digits(value: object, spot: Spot, *, highest: int) -> int:
    text = read_text(value, spot)
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise spot.fault(value, "is not a whole number")
    try:
        return read_number(int(text), spot, lowest=0, highest=highest)
    except BadValueError as error:
        raise spot.fault(value, error.problem.reason) from None


def _read_discovered(value: object, spot: Spot) -> tuple[tuple[PublicKey, Endpoint], ...]:
    """A JSON object: public key -> ``{"IP": …, "Port": …, "Zone": …}``; null is an empty one."""
    try:
        entries = json.loads(read_text(value, spot))
    except (ValueError, RecursionError):
        entries = ()
    if entries is not None and not isinstance(entries, dict):
        raise spot.fault(value, "is not a JSON object")
    found = {}
    for text, entry in (entries or {}).items():
        try:
            key = PUBLIC_KEY.parse(text, spot)
            found[key] = _read_udp_address(entry, spot.item(text))
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


def _emit_discovered(entries: Iterable[tuple[PublicKey, Endpoint]]) -> str:
    """As Go writes a map of ``net.UDPAddr``: keys sorted, no spaces. A DNS name has no place."""
    addresses = {
        str(key): {"IP": endpoint.host, "Port": endpoint.port, "Zone": ""}
        for key, endpoint in sorted(entries)[:MAX_DISCOVERED]
        if endpoint.ip
    }
    return json.dumps(addresses, separators=(",", ":"))


def _read_first_ip(value: object, spot: Spot) -> tuple[IPInterface, ...]:
    return (read_cidr(value, spot),)


def _emit_first_ip(interfaces: Sequence[IPInterface]) -> str:
    return str(interfaces[0]) if interfaces else ""


def _read_all_ips(value: object, spot: Spot) -> tuple[IPInterface, ...]:
    interfaces = tuple(read_cidr(part, spot) for part in read_text(value, spot).split(","))
    check_families(interfaces, value, spot)
    return interfaces


def _emit_all_ips(interfaces: Sequence[IPInterface]) -> str | None:
    """None where Kilo's annotation says it all."""
    return ",".join(map(str, interfaces)) if len(interfaces) > 1 else None


KEEPALIVE = Format(
    parse=lambda value, at: _read_digits(value, at, highest=MAX_KEEPALIVE_SECONDS), emit=str
)
LAST_SEEN = Format(parse=lambda value, at: _read_digits(value, at, highest=LATEST_SECOND), emit=str)
PRESENT = Format(parse=lambda _value, _at: True, emit=lambda _: "true")
DISCOVERED_JSON = Format(parse=_read_discovered, emit=_emit_discovered)
FIRST_IP = Format(parse=_read_first_ip, emit=_emit_first_ip)
ALL_IPS = Format(parse=_read_all_ips, emit=_emit_all_ips)
NETWORK_LIST = Format(parse=read_good_networks, emit=lambda networks: ",".join(map(str, networks)))
AGENT_NAME = Format(parse=read_short_text, emit=lambda name: name or None)

DECLARED = (
    Field(name="force-endpoint", attribute="endpoint", format=ENDPOINT, default=None),
    Field(name="force-internal-ip", attribute="internal_ips", format=INTERNAL_IPS, default=None),
    Field(name="leader", attribute="leader", format=PRESENT, default=False),
    Field(name="location", attribute="location", format=TEXT, default=""),
    Field(
        name="persistent-keepalive",
        attribute="persistent_keepalive_seconds",
        format=KEEPALIVE,
        default=0,
    ),
    Field(
        name="allowed-location-ips",
        attribute="allowed_location_ips",
        format=NETWORK_LIST,
        default=(),
    ),
)
REPORTED = (
    Field(name="key", attribute="public_key", format=PUBLIC_KEY),
    Field(name="endpoint", attribute="endpoint", format=ENDPOINT),
    Field(name="internal-ip", attribute="internal_ips", format=FIRST_IP),
    Field(name="wireguard-ip", attribute="wireguard_ips", format=FIRST_IP),
    Field(name="discovered-endpoints", attribute="discovered_endpoints", format=DISCOVERED_JSON),
    Field(name="granularity", attribute="granularity", format=GRANULARITY),
    Field(name="cni-compatibility-ip", attribute="cni_compatibility_ip", format=INTERFACE),
    Field(name="last-seen", attribute="last_seen", format=LAST_SEEN),
)
AGENT = (Field(name="agent", attribute="agent", format=AGENT_NAME),)
"""Ours. Who gives a node back to Kilo's own agent uninstalls ours there, which takes it away."""
COMPLETE = (
    Field(name="internal-ips", attribute="internal_ips", format=ALL_IPS),
    Field(name="wireguard-ips", attribute="wireguard_ips", format=ALL_IPS),
)
"""Ours; believed only where they begin with what stands in Kilo's annotation: an agent of Kilo's
that took the node over writes that one and leaves these as they are."""
DECLARED_PODS = (
    Field(name="pod-subnets", attribute="pod_subnets", format=NETWORK_LIST, default=()),
)
"""An operator's, and ours: for a cluster that gives its nodes no pod CIDR."""
MEANT_EMPTY = ("force-internal-ip", "leader", "location")
"""Elsewhere ``""`` is what Kilo's agents, and people's templates, write for nothing at all."""

_WRITTEN = (*REPORTED, *COMPLETE, *AGENT)
REPORTED_ANNOTATIONS: tuple[str, ...] = tuple(PREFIX + one.name for one in _WRITTEN)
"""The full names of all that an agent writes: to withdraw is to remove these."""
DECLARED_ANNOTATIONS: tuple[str, ...] = tuple(
    PREFIX + one.name for one in (*DECLARED, *DECLARED_PODS)
)
"""The full names of all that an operator declares."""


def make_declared_annotations(spec: NodeSpec) -> dict[str, str | None]:
    """Full name -> value of all of ``DECLARED_ANNOTATIONS``; None: it is not to be there.

    A declared public key has no place among them.
    """
    attributes = {
        one.attribute: getattr(spec, one.attribute) for one in (*DECLARED, *DECLARED_PODS)
    }
    texts = emit_fields((*DECLARED, *DECLARED_PODS), attributes)
    return dict.fromkeys(DECLARED_ANNOTATIONS) | {
        PREFIX + name: str(text) for name, text in texts.items()
    }


def make_report_annotations(report: NodeReport, *, last_seen: int) -> dict[str, str | None]:
    """Full name -> value of all of ``REPORTED_ANNOTATIONS``; None: it is not to be there.

    ``last_seen`` is in Unix seconds. A discovered endpoint that is a DNS name is left out.
    """
    return {PREFIX + one.name: _emit(one, report, last_seen) for one in _WRITTEN}


def _emit(one: Field, report: NodeReport, last_seen: int) -> str | None:
    value = last_seen if one.format is LAST_SEEN else getattr(report, one.attribute)
    text: Any = "" if value is None else one.format.emit(value)
    return None if text is None else str(text)


def read_annotated_node(
    name: str, document: Mapping[str, object], spot: Spot, topology_label: str
) -> DeclaredNode:
    """A ``v1`` Node. ``BadValueError`` where its parts are not of the kinds Kubernetes makes."""
    before = len(spot.problems)
    metadata = read_mapping(document.get("metadata"), spot.under("metadata"))
    at = spot.under("metadata").under("annotations")
    annotations = read_mapping(metadata.get("annotations"), at)
    declared = _read_annotations(DECLARED, annotations, at)
    if "location" not in declared:
        declared["location"] = _read_location(metadata, spot.under("metadata"), topology_label)
    pod_subnets = _read_pod_subnets(document, annotations, spot)
    reported = _read_reported(annotations, at)
    last_seen = reported.pop("last_seen", None)
    has_key = "public_key" in reported
    _limit_problems(spot, before)
    return DeclaredNode(
        name=name,
        spec=NodeSpec(pod_subnets=pod_subnets, **declared),
        report=NodeReport(name=name, **reported) if has_key else None,
        last_seen=last_seen,
        in_cluster=True,
    )


def _read_reported(annotations: Mapping[str, object], spot: Spot) -> dict[str, Any]:
    reported = _read_annotations((*REPORTED, *AGENT), annotations, spot)
    for attribute, interfaces in _read_annotations(COMPLETE, annotations, spot).items():
        if interfaces[:1] == reported.get(attribute):
            reported[attribute] = interfaces
    return reported


def _read_annotations(
    fields: Sequence[Field], annotations: Mapping[str, object], spot: Spot
) -> dict[str, Any]:
    attributes = {}
    for one in fields:
        raw = annotations.get(PREFIX + one.name)
        if raw is None or (raw == "" and one.name not in MEANT_EMPTY):
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


def read_pod_cidrs(document: Mapping[str, object], spot: Spot) -> tuple[IPNetwork, ...]:
    """What the cluster itself gave the node; () if it gives none."""
    spec = read_mapping(document.get("spec"), spot.under("spec"))
    for name in ("podCIDRs", "podCIDR"):
        if spec.get(name):
            return read_good_networks(spec[name], spot.under("spec").under(name))
    return ()


def _read_pod_subnets(
    document: Mapping[str, object], annotations: Mapping[str, object], spot: Spot
) -> tuple[IPNetwork, ...]:
    """The cluster's own word, else the operator's."""
    given = read_pod_cidrs(document, spot)
    if given:
        return given
    at = spot.under("metadata").under("annotations")
    declared = _read_annotations(DECLARED_PODS, annotations, at)
    return tuple(declared.get("pod_subnets", ()))


def _limit_problems(spot: Spot, before: int) -> None:
    """Keep the first ``MAX_PROBLEMS`` that were added, and say that there are more."""
    more = len(spot.problems) - before - MAX_PROBLEMS
    if more > 0:
        del spot.problems[before + MAX_PROBLEMS - 1 :]
        spot.problems.append(
            Problem(
                source=spot.source,
                object=spot.of,
                reason=f"has {more + 1} more problems, not shown here",
            )
        )
