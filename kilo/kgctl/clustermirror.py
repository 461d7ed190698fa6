"""A Service of one cluster as Service and EndpointSlices of the other: documents in, documents out.

The mirror has no selector. Its endpoint is the cluster IP of the Service itself, which the tunnels
lead to, so that the cluster that has the pods goes on choosing among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from kilo.mesh.model import IPAddress, IPNetwork

Document = dict[str, Any]

LINK_LABEL = "kilo.squat.ai/link"
"""On all that a link has made: its name."""
SERVICE_LABEL = "kubernetes.io/service-name"
MANAGER_LABEL, MANAGER = "endpointslice.kubernetes.io/managed-by", "link.kilo.squat.ai"
PORT_FIELDS = ("name", "port", "protocol", "appProtocol")
DEFAULTS = {"name": "", "protocol": "TCP"}


class NoMirrorError(ValueError):
    """The Service cannot be mirrored; says why."""


@dataclass(frozen=True, slots=True, order=True)
class ServiceName:
    """Of one Service."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectChange:
    """One write to a cluster; ``str()`` is one line for an operator."""

    label: str
    """Of the cluster."""
    kind: str
    service: ServiceName
    """Namespace and name of the object."""
    document: Document | None
    """None: it is deleted."""
    held: Document | None
    """What stands there; None if nothing does."""

    def __str__(self) -> str:
        sign = "-" if self.document is None else "+" if self.held is None else "~"
        return f"{sign} {self.kind} {self.service} ({self.label})"


def make_mirror(
    link: str, name: ServiceName, source: Document | None, service_cidrs: Iterable[IPNetwork]
) -> tuple[Document, ...]:
    """The Service and an EndpointSlice for each of its cluster IPs. ``NoMirrorError`` for one that
    has none, or none that the tunnels lead to; None is a Service that there is not.
    """
    if source is None:
        raise NoMirrorError("is not there")
    if LINK_LABEL in source["metadata"].get("labels", {}):
        raise NoMirrorError("is itself a mirror of another")
    addresses = list(_read_addresses(source["spec"], tuple(service_cidrs)))
    ports = [_read_port(port) for port in source["spec"].get("ports") or ()]
    spec: Document = {"type": "ClusterIP", "ports": ports}
    if len(addresses) > 1:
        spec["ipFamilyPolicy"] = "PreferDualStack"
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _make_metadata(name.namespace, name.name, {LINK_LABEL: link}),
        "spec": spec,
    }
    return service, *(_make_slice(link, name, address, ports) for address in addresses)


def _read_addresses(spec: Document, service_cidrs: tuple[IPNetwork, ...]) -> Iterator[IPAddress]:
    if spec.get("type") == "ExternalName":
        raise NoMirrorError("is of type ExternalName, a name and no address")
    texts = spec.get("clusterIPs") or [spec.get("clusterIP") or "None"]
    if "None" in texts:
        raise NoMirrorError("is headless: it has no cluster IP")
    for address in map(ip_address, texts):
        if not any(address in network for network in service_cidrs):
            raise NoMirrorError(
                f"has the cluster IP {address}, which is in none of its cluster's service CIDRs"
                f" ({', '.join(map(str, service_cidrs)) or 'none is known'}): name them by"
                " --service-cidr, or --to-service-cidr, or in the settings of the mesh"
            )
        yield address


def _read_port(port: Document) -> Document:
    return {field: port[field] for field in PORT_FIELDS if port.get(field)}


def _make_slice(
    link: str, name: ServiceName, address: IPAddress, ports: list[Document]
) -> Document:
    labels = {LINK_LABEL: link, SERVICE_LABEL: name.name, MANAGER_LABEL: MANAGER}
    family = f"IPv{address.version}"
    # A slice's name is of no use to anybody; the longest of Services' leaves room for this.
    return {
        "kind": "EndpointSlice",
        "metadata": _make_metadata(name.namespace, f"{name.name}-link-{family.lower()}", labels),
        "addressType": family,
        "endpoints": [{"addresses": [str(address)], "conditions": {"ready": True}}],
        "ports": ports,
    }


def _make_metadata(namespace: str, name: str, labels: Mapping[str, str]) -> Document:
    return {"namespace": namespace, "name": name, "labels": dict(labels)}


def diff_objects(
    label: str, wanted: Iterable[Document], held: Iterable[Document]
) -> Iterator[ObjectChange]:
    """What makes a cluster hold exactly these of the link's objects, in the order to be done."""
    there = {identify(document): document for document in held}
    here = {identify(document): document for document in wanted}
    for kind, name in sorted(there.keys() - here.keys()):
        gone = there[kind, name]
        yield ObjectChange(label=label, kind=kind, service=name, document=None, held=gone)
    for (kind, name), document in here.items():
        before = there.get((kind, name))
        if before is None or not _is_equal(document, before):
            yield ObjectChange(label=label, kind=kind, service=name, document=document, held=before)


def identify(document: Document) -> tuple[str, ServiceName]:
    """Kind, namespace and name."""
    metadata = document["metadata"]
    return document["kind"], ServiceName(metadata["namespace"], metadata["name"])


def find_service(document: Document) -> ServiceName:
    """The Service that it is, or whose slice it is: kube-proxies go by that label alone."""
    metadata = document["metadata"]
    name = metadata["labels"].get(SERVICE_LABEL, metadata["name"])
    return ServiceName(metadata["namespace"], name)


def describe_taken(kind: str, name: str, link: str) -> str:
    """Why an object without the link's label stays as it is."""
    return (
        f"{kind} {name}: is there already, without the label {LINK_LABEL}={link}, so it is not"
        " touched"
    )


def _is_equal(wanted: Document, held: Document) -> bool:
    """In what we write: a server adds fields of its own."""
    labels = held["metadata"].get("labels", {})
    return wanted["metadata"]["labels"].items() <= labels.items() and _read(wanted) == _read(held)


def _read(document: Document) -> object:
    """What counts of an object, whoever filled in the defaults."""
    if document["kind"] == "Service":
        spec = document["spec"]
        return _read_ports(spec), bool(spec.get("selector")), spec.get("type", "ClusterIP")
    endpoints = [one["addresses"] for one in document.get("endpoints") or ()]
    return _read_ports(document), endpoints


def _read_ports(holder: Document) -> list[Document]:
    ports = holder.get("ports") or ()
    return [DEFAULTS | {f: port[f] for f in PORT_FIELDS if port.get(f)} for port in ports]
