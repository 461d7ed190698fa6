"""The CustomResourceDefinition of Peers, made from the tables by which documents are read.

An API server that checks a Peer refuses nothing that the agent takes; the agent, which also
knows what others claim, refuses a little more. What the schema cannot say well are CEL rules.
They are a patch apart from the definition: a server older than 1.25 does not know them, and
kubectl then refuses a definition that has them, as seen with kubectl 1.32 and a server 1.20.

``python -m kilo.backends.kubernetes.crd`` prints the definition, with ``--rules`` the patch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import yaml

from kilo.backends.documents import API_VERSION, KINDS
from kilo.backends.fields import Field, Format

GROUP, VERSION = API_VERSION.split("/")
CRD_NAME = f"peers.{GROUP}"
SCHEMA_PATH = "/spec/versions/0/schema/openAPIV3Schema/properties/spec"
"""Of a Peer's spec, as a JSON pointer (RFC 6901) into the definition."""

CRD_COMMAND = "python -m kilo.backends.kubernetes.crd"
CRD_HEADER = f"""\
# The kind Peer, as in Kilo, checked by the API server. Made by
#   {CRD_COMMAND}
# It may replace Kilo's own definition: the Peers there stay as they are, and one that is refused
# now is so at its next change. Servers from 1.25 on can check more: crd-rules.yaml adds that.
"""
RULES_COMMAND = f"{CRD_COMMAND} --rules"
RULES_HEADER = f"""\
# More checks of Peers, for servers from 1.25 on. Made by
#   {RULES_COMMAND}
# To be added to the definition, after each time that is applied, with
#   kubectl patch crd {CRD_NAME} --type=json --patch-file crd-rules.yaml
# They stand apart since kubectl refuses a definition with rules where the server is older.
"""

_TIME = {"type": "string", "format": "date-time"}
_CONDITION: Mapping[str, object] = {
    "type": "object",
    "required": ["type", "status"],
    "properties": {
        "type": {"type": "string"},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        # A server 1.20 takes an empty text for a null, and refuses it elsewhere.
        "reason": {"type": "string", "nullable": True},
        "message": {"type": "string", "nullable": True},
        "lastTransitionTime": _TIME,
    },
}
STATUS_SCHEMA: Mapping[str, object] = {
    "type": "object",
    "description": "What the agents make of the Peer; nobody else writes it.",
    "properties": {
        "conditions": {
            "type": "array",
            "description": "Ready: whether the Peer takes part and, if not wholly, why.",
            "items": _CONDITION,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
        "lastHandshake": {
            "type": "object",
            "description": "The node that last had a handshake with the device, and when.",
            "properties": {"node": {"type": "string"}, "time": _TIME},
        },
    },
}
COLUMNS: Sequence[Mapping[str, object]] = (
    {
        "name": "Ready",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="Ready")].status',
    },
    {"name": "Allowed IPs", "type": "string", "jsonPath": ".spec.allowedIPs"},
    {"name": "Last handshake", "type": "date", "jsonPath": ".status.lastHandshake.time"},
    {"name": "Node", "type": "string", "jsonPath": ".status.lastHandshake.node"},
    {"name": "Public key", "type": "string", "jsonPath": ".spec.publicKey", "priority": 1},
    {
        "name": "Message",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="Ready")].message',
        "priority": 1,
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
)
"""Of ``kubectl get peers``; those of priority 1 are for ``-o wide``."""


def make_peer_crd() -> dict[str, object]:
    """The definition, ``apiextensions.k8s.io/v1``: to be applied, or posted, as it is."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _make_root()},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [dict(column) for column in COLUMNS],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": CRD_NAME},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": "Peer",
                "listKind": "PeerList",
                "plural": "peers",
                "singular": "peer",
            },
            "scope": "Cluster",
            "versions": [version],
        },
    }


def _make_root() -> dict[str, object]:
    return {
        "type": "object",
        "description": "A WireGuard device outside the mesh that the mesh lets in.",
        "required": ["spec"],
        "properties": {
            "spec": _make_mapping(KINDS["Peer"].fields),
            "status": deepcopy(STATUS_SCHEMA),
        },
    }


def _make_mapping(fields: Sequence[Field]) -> dict[str, object]:
    return {
        "type": "object",
        "required": [one.name for one in fields if one.required],
        "properties": {one.name: _make_property(one) for one in fields},
    }


def _make_property(one: Field) -> dict[str, object]:
    """The field's schema; a null counts as absent, so what may be absent may be null.

    Without that a server 1.20 refuses an empty text too, which it takes for a null.
    """
    schema: dict[str, object] = {"description": one.description}
    if one.format.fields:
        schema |= _make_mapping(one.format.fields)
    schema |= deepcopy(dict(one.format.schema))
    if not one.required:
        schema["nullable"] = True
    return {name: value for name, value in schema.items() if value != []}


def make_rules_patch() -> list[dict[str, object]]:
    """A JSON patch (RFC 6902) that adds the CEL rules to the definition."""
    return [
        {
            "op": "add",
            "path": f"{path}/x-kubernetes-validations",
            "value": [{"rule": rule, "message": text} for rule, text in one.rules.items()],
        }
        for path, one in _list_rules(KINDS["Peer"].fields, SCHEMA_PATH)
    ]


def _list_rules(fields: Sequence[Field], path: str) -> Iterator[tuple[str, Format]]:
    for one in fields:
        place = f"{path}/properties/{one.name}"
        if one.format.rules:
            yield place, one.format
        yield from _list_rules(one.format.fields, place)


def render(value: object, *, header: str) -> str:
    """As YAML below a header."""
    # Without aliases: what stands twice is written twice.
    dumper = type("Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda _self, _data: True})
    return header + yaml.dump(value, Dumper=dumper, sort_keys=False, width=96)


if __name__ == "__main__":
    if sys.argv[1:] == ["--rules"]:
        sys.stdout.write(render(make_rules_patch(), header=RULES_HEADER))
    else:
        sys.stdout.write(render(make_peer_crd(), header=CRD_HEADER))
