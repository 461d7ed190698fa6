"""What a mesh directory says of nodes -> the Nodes of a cluster; pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kilo.backends.annotations import DECLARED, DECLARED_PODS, PREFIX
from kilo.backends.documents import NODE_FIELDS
from kilo.backends.fields import emit_fields
from kilo.errors import ConfigError
from kilo.mesh.model import IPNetwork, Node, NodeSpec

NAMESPACE = "kube-system"
"""Of the settings and of the agents' ServiceAccount."""
POD_SUBNETS = PREFIX + DECLARED_PODS[0].name
"""The annotation for what ``spec.podCIDRs`` cannot hold."""

Document = dict[str, Any]

_ANNOTATIONS = {one.attribute: PREFIX + one.name for one in DECLARED}


def make_node(node: Node) -> Document:
    """The Node that a kubelet would have registered and an operator annotated.

    ``ConfigError`` for one with a declared key: that is a device without an agent, and there is
    no such thing among a cluster's nodes.
    """
    if node.spec.public_key:
        raise ConfigError(
            f"Node {node.name}: spec.publicKey: '{node.spec.public_key}' declares a node that"
            " speaks through no agent, which a Kubernetes Node cannot be; a Peer can"
        )
    annotations = make_annotations(node.spec)
    spec: Document = {}
    subnets = [str(subnet) for subnet in node.spec.pod_subnets]
    if fits_pod_cidrs(node.spec.pod_subnets):
        spec = {"podCIDR": subnets[0], "podCIDRs": subnets}
    elif subnets:
        annotations[POD_SUBNETS] = ",".join(subnets)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "annotations": annotations},
        "spec": spec,
    }


def fits_pod_cidrs(subnets: Iterable[IPNetwork]) -> bool:
    """Whether Kubernetes takes them: at least one, at most one a family."""
    versions = [subnet.version for subnet in subnets]
    return bool(versions) and len(versions) == len(set(versions))


def make_annotations(spec: NodeSpec) -> dict[str, str]:
    """What an operator would write on a Node to declare this."""
    declared = {one.attribute: getattr(spec, one.attribute) for one in NODE_FIELDS}
    emitted = emit_fields([f for f in NODE_FIELDS if f.attribute in _ANNOTATIONS], declared)
    names = {one.name: _ANNOTATIONS[one.attribute] for one in NODE_FIELDS if one.name in emitted}
    return {names[name]: _write_value(value) for name, value in emitted.items()}


def _write_value(value: object) -> str:
    """An annotation holds text only; lists are comma separated."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
