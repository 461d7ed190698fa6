"""A mesh whose store is a server of its own, and how to look at and change what stands there."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from typing import Any

import yaml

from kilo.backends.documents import API_VERSION
from kilo.lab.boxedplane import BoxedPlane
from kilo.lab.host import Host
from kilo.lab.lab import Lab
from tests.lab.meshes import ask, wait_ready

LAB = """
networks:
  internet: {public: true, subnets: [198.51.100.0/24, 203.0.113.0/24]}
  east: {subnets: [192.168.1.0/24, "fd00:1::/64"]}
  west: {subnets: [192.168.2.0/24, "fd00:2::/64"]}
  south: {subnets: [192.168.3.0/24, "fd00:3::/64"], nat: {behind: internet, address: 203.0.113.9}}
hosts:
  a1: {networks: {east: [192.168.1.11, "fd00:1::11"], internet: 198.51.100.11}}
  a2: {networks: {east: [192.168.1.12, "fd00:1::12"], internet: 198.51.100.12}}
  b1: {networks: {west: [192.168.2.11, "fd00:2::11"], internet: 198.51.100.21}}
  b2: {networks: {west: [192.168.2.12, "fd00:2::12"], internet: 198.51.100.22}}
  c1: {networks: {south: [192.168.3.11, "fd00:3::11"]}}
  c2: {networks: {south: [192.168.3.12, "fd00:3::12"]}}
  guest: {peer: guest, networks: {internet: 203.0.113.50}}
"""
"""Two locations at the public network, one behind a NAT, and somebody who waits to be let in."""

MESH = """
apiVersion: kilo.squat.ai/v1alpha1
kind: Settings
metadata: {name: mesh}
spec: {subnets: [10.4.0.0/16, "fd00:4::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: a1}
spec: {location: east, podSubnets: [10.2.11.0/24, "fd00:a:0:11::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: a2}
spec: {location: east, podSubnets: [10.2.12.0/24, "fd00:a:0:12::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: b1}
spec: {location: west, podSubnets: [10.2.21.0/24, "fd00:a:0:21::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: b2}
spec: {location: west, podSubnets: [10.2.22.0/24, "fd00:a:0:22::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: c1}
spec:
  location: south
  leader: true
  persistentKeepalive: 5
  podSubnets: [10.2.31.0/24, "fd00:a:0:31::/64"]
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: c2}
spec: {location: south, podSubnets: [10.2.32.0/24, "fd00:a:0:32::/64"]}
"""

AGENTS = ("a1", "a2", "b1", "b2", "c1", "c2")
LEADERS = ("a1", "b1", "c1")
PAIRS = tuple(permutations(AGENTS, 2))

KILO = "kilo.squat.ai/"
REGION = "topology.kubernetes.io/region"
ALIVE = (f"{KILO}last-seen", f"{KILO}discovered-endpoints")
"""Annotations that change though nobody changes anything."""


def read_annotations(lab: Lab, node: str) -> dict[str, str]:
    """Those of a Node object that are Kilo's."""
    document = json.loads(lab.plane.kubectl("get", "node", node, "--output=json"))
    found = document["metadata"].get("annotations", {})
    return {name: text for name, text in found.items() if name.startswith(KILO)}


def read_lasting_annotations(lab: Lab) -> dict[str, dict[str, str]]:
    """Node -> its annotations without those that change by themselves."""
    return {
        node: {k: v for k, v in read_annotations(lab, node).items() if k not in ALIVE}
        for node in AGENTS
    }


def read_key(lab: Lab, node: str) -> str:
    """The public key that a node's agent has published."""
    return read_annotations(lab, node)[f"{KILO}key"]


def has_peer(host: Host, key: str) -> bool:
    """Whether the host's WireGuard device knows the key."""
    return key in host.run(["wg", "show", "kilo0", "peers"]).split()


def make_guest_document(name: str, key: str, *allowed_ips: str) -> dict[str, Any]:
    """A Peer at the address of the host that plays one."""
    spec: dict[str, Any] = {
        "publicKey": key,
        "allowedIPs": list(allowed_ips),
        "persistentKeepalive": 5,
        "endpoint": {"dnsOrIP": {"ip": "203.0.113.50"}, "port": 51820},
    }
    return {"apiVersion": API_VERSION, "kind": "Peer", "metadata": {"name": name}, "spec": spec}


def make_guest(name: str, key: str, *allowed_ips: str) -> str:
    """Likewise, as its manifest."""
    return yaml.safe_dump(make_guest_document(name, key, *allowed_ips))


def wait_all_ready(lab: Lab) -> None:
    """Until every agent has made a pass that succeeded."""
    for host in lab.agent_hosts:
        wait_ready(host)


def all_ready(lab: Lab) -> bool:
    """Whether every agent says so."""
    return all(ask(host, "/ready") == 200 for host in lab.agent_hosts)


def list_leaders(lab: Lab) -> list[Host]:
    """The hosts that lead their locations."""
    return [lab.host(name) for name in LEADERS]


OUTAGES: dict[str, tuple[Callable[[BoxedPlane], None], Callable[[BoxedPlane], None]]] = {
    "killed": (BoxedPlane.kill, BoxedPlane.start),
    "frozen": (BoxedPlane.freeze, BoxedPlane.thaw),
    "put back": (BoxedPlane.kill, BoxedPlane.restore),
}
"""How an API server goes, and how it returns."""
