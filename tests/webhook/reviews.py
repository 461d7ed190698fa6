"""AdmissionReviews as an API server writes them, and Peers that are bad in one way each."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from kilo.backends.documents import make_peer_document
from kilo.mesh.model import Node, NodeSpec, Peer, Snapshot
from tests.builders import make_key, make_peer, make_report, networks

UID = "705ab4f5-6393-11e8-b7cc-42010a800002"
KEY = str(make_key("laptop"))


def make_document(peer: Peer, **changes: object) -> dict[str, Any]:
    """A Peer as it stands in a cluster, with fields of its spec changed; None takes one away."""
    document = copy.deepcopy(make_peer_document(peer))
    document["metadata"] = {"name": peer.name, "uid": UID, "generation": 1}
    spec: Any = document["spec"]
    for name, value in changes.items():
        if value is None:
            spec.pop(name, None)
        else:
            spec[name] = value
    return document


def make_review(
    document: object,
    *,
    operation: str = "CREATE",
    old: object = None,
    version: str = "admission.k8s.io/v1",
    kind: Mapping[str, str] | None = None,
    subresource: str = "",
) -> dict[str, Any]:
    """The question whether this may be stored."""
    request: dict[str, Any] = {
        "uid": UID,
        "kind": kind or {"group": "kilo.squat.ai", "version": "v1alpha1", "kind": "Peer"},
        "resource": {"group": "kilo.squat.ai", "version": "v1alpha1", "resource": "peers"},
        "operation": operation,
        "userInfo": {"username": "kubernetes-admin", "groups": ["system:masters"]},
        "object": document,
        "oldObject": old,
        "dryRun": False,
    }
    if subresource:
        request["subResource"] = subresource
    return {"apiVersion": version, "kind": "AdmissionReview", "request": request}


LAPTOP = make_peer("laptop", "10.5.0.9/32")

# What is changed in the spec of a good Peer -> the reason that it is refused for.
BAD_SPECS: list[tuple[dict[str, object], str]] = [
    ({"publicKey": None}, "Peer laptop: spec.publicKey: is missing"),
    ({"publicKey": ""}, "Peer laptop: spec.publicKey: is 0 bytes long"),
    ({"publicKey": "c2hvcnQ="}, "Peer laptop: spec.publicKey: 'c2hvcnQ=' is 5 bytes long"),
    ({"publicKey": "not a key"}, "Peer laptop: spec.publicKey: 'not a key' is not base64"),
    ({"allowedIPs": None}, "Peer laptop: spec.allowedIPs: is missing"),
    ({"allowedIPs": []}, "Peer laptop: spec.allowedIPs: '[]' names no network"),
    ({"allowedIPs": ["10.5.0.9"]}, "Peer laptop: spec.allowedIPs[0]: '10.5.0.9' is not a CIDR"),
    (
        {"allowedIPs": ["10.5.0.9/32", "10.5.0.300/32"]},
        "Peer laptop: spec.allowedIPs[1]: '10.5.0.300/32' is not a CIDR",
    ),
    (
        {"persistentKeepalive": -1},
        "Peer laptop: spec.persistentKeepalive: '-1' is outside 0-65535",
    ),
    ({"presharedKey": "c2hvcnQ="}, "Peer laptop: spec.presharedKey: is 5 bytes long"),
    (
        {"endpoint": {"dnsOrIP": {"ip": "203.0.113.7"}}},
        "Peer laptop: spec.endpoint.port: is missing",
    ),
    (
        {"endpoint": {"dnsOrIP": {"ip": "203.0.113.7"}, "port": 0}},
        "Peer laptop: spec.endpoint.port: '0' is outside 1-65535",
    ),
    (
        {"endpoint": {"dnsOrIP": {"ip": "203.0.113.7"}, "port": 65536}},
        "Peer laptop: spec.endpoint.port: '65536' is outside 1-65535",
    ),
    (
        {"endpoint": {"dnsOrIP": {"ip": "203.0.113"}, "port": 51820}},
        "Peer laptop: spec.endpoint.dnsOrIP.ip: '203.0.113' is not an IP address",
    ),
    (
        {"endpoint": {"dnsOrIP": {"dns": "no such name"}, "port": 51820}},
        "Peer laptop: spec.endpoint.dnsOrIP.dns: 'no such name' is not a DNS name",
    ),
    (
        {"endpoint": {"dnsOrIP": {}, "port": 51820}},
        "Peer laptop: spec.endpoint.dnsOrIP: '{}' names neither dns nor ip",
    ),
    (
        {"endpoint": {"port": 51820}},
        "Peer laptop: spec.endpoint.dnsOrIP: is missing",
    ),
]

# Fields of a good Peer's spec, and which claim of somebody else's in MESH they go against.
CLAIMED_SPECS: list[tuple[dict[str, object], str]] = [
    (
        {"allowedIPs": ["10.2.1.0/24"]},
        "spec.allowedIPs 10.2.1.0/24 refused: it lies inside 10.2.1.0/24 of Node berlin",
    ),
    (
        {"allowedIPs": ["10.5.0.9/32", "10.2.1.17/32"]},
        "spec.allowedIPs 10.2.1.17/32 refused: it lies inside 10.2.1.0/24 of Node berlin",
    ),
    (
        {"allowedIPs": ["192.168.0.1/32"]},
        "spec.allowedIPs 192.168.0.1/32 refused: it lies inside 192.168.0.1/32 of Node berlin",
    ),
    (
        {"allowedIPs": ["10.4.0.1/32"]},
        "spec.allowedIPs 10.4.0.1/32 refused: it lies inside 10.4.0.1/32 of Segment location:eu",
    ),
    (
        {"allowedIPs": ["10.96.0.0/16"]},
        "spec.allowedIPs 10.96.0.0/16 refused: it lies inside 10.96.0.0/12 of the service CIDRs",
    ),
    (
        {"allowedIPs": ["0.0.0.0/0"]},
        "spec.allowedIPs 0.0.0.0/0 refused: a peer cannot claim every address",
    ),
    (
        {"allowedIPs": ["10.5.0.1/32"]},
        "spec.allowedIPs 10.5.0.1/32 refused: Peer alice claims it too",
    ),
    (
        {"allowedIPs": ["10.5.0.26/32"]},
        "would take spec.allowedIPs 10.5.0.26/32 away from Peer zoe",
    ),
    (
        {"publicKey": str(make_key("alice"))},
        f"publicKey {make_key('alice')} refused: it is the key of Peer alice",
    ),
    (
        {"publicKey": str(make_key("zoe"))},
        f"would take publicKey {make_key('zoe')} away from Peer zoe",
    ),
    (
        {"publicKey": str(make_key("berlin"))},
        f"publicKey {make_key('berlin')} refused: it is the key of node berlin",
    ),
    (
        {"allowedIPs": ["10.9.0.0/24"]},
        "would take allowedLocationIPs 10.9.0.0/16 away from Segment location:eu",
    ),
]

BERLIN = Node(
    name="berlin",
    spec=NodeSpec(
        location="eu",
        pod_subnets=networks("10.2.1.0/24"),
        allowed_location_ips=networks("10.9.0.0/16"),
    ),
    report=make_report("berlin"),
)
MESH = Snapshot(
    nodes=(BERLIN,),
    peers=(make_peer("alice", "10.5.0.1/32"), make_peer("zoe", "10.5.0.26/32")),
)
