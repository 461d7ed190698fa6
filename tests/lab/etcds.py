"""A mesh whose store is a real etcd of three members: what stands there, and how it is changed."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kilo.keyfile import generate_private_key, public_key
from kilo.lab.etcdstore import EtcdStore
from kilo.lab.lab import Lab
from tests.lab.clusters import all_ready, has_peer, list_leaders, make_guest_document
from tests.lab.meshes import wait_each, wait_until

REPORTS = "/kilo/reports/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A node's report as etcd holds it."""

    document: dict[str, Any]
    created: int
    """The revision since when there was one without a break."""
    changed: int
    """The revision of the last change, a heartbeat too."""
    lease: int

    @property
    def lasting(self) -> dict[str, Any]:
        """What it says, without what changes though nothing changes."""
        spec: dict[str, Any] = self.document["spec"]
        return {k: v for k, v in spec.items() if k not in {"lastSeen", "discoveredEndpoints"}}


def read_reports(lab: Lab) -> dict[str, Report]:
    """The reports there are, by their nodes' names."""
    answer = json.loads(lab.etcd.etcdctl("get", "--prefix", REPORTS, "--write-out=json"))
    return {
        _decode(pair["key"]).removeprefix(REPORTS): Report(
            document=json.loads(_decode(pair["value"])),
            created=pair["create_revision"],
            changed=pair["mod_revision"],
            lease=pair.get("lease", 0),
        )
        for pair in answer.get("kvs", [])
    }


def _decode(text: str) -> str:
    return base64.b64decode(text).decode()


def read_remaining_seconds(lab: Lab, lease: int) -> int:
    """For how much longer a lease is granted; negative if it is gone."""
    answer = lab.etcd.etcdctl("lease", "timetolive", f"{lease:x}", "--write-out=json")
    return int(json.loads(answer)["ttl"])


def put(lab: Lab, key: str, document: dict[str, Any]) -> None:
    """Write a document as ``etcdctl put`` does; the key is given without the prefix."""
    assert isinstance(lab.store, EtcdStore)
    lab.store.put(key, document)


def read_node(lab: Lab, name: str) -> dict[str, Any]:
    """What is declared of a node."""
    key = f"/kilo/nodes/{name}"
    document: dict[str, Any] = json.loads(lab.etcd.get_prefix(key)[key])
    return document


@contextmanager
def node_moved(lab: Lab, name: str, location: str) -> Iterator[None]:
    """The node is declared to be in another location, and afterwards where it was."""
    document = read_node(lab, name)
    spec = document["spec"] | {"location": location}
    put(lab, f"nodes/{name}", document | {"spec": spec})
    yield
    put(lab, f"nodes/{name}", document)


def follow_a_change(lab: Lab) -> float:
    """How many seconds it takes until a peer put now has come to all who let peers in, and every
    agent is ready; the peer is gone again afterwards.
    """
    began = time.monotonic()
    key = public_key(generate_private_key()).text
    put(lab, "peers/herald", make_guest_document("herald", key, "10.5.0.9/32"))
    wait_each(list_leaders(lab), lambda host: has_peer(host, key), "lets the herald in")
    wait_until(lambda: all_ready(lab), "all are ready")
    seconds = time.monotonic() - began
    lab.etcd.etcdctl("del", "/kilo/peers/herald")
    wait_each(list_leaders(lab), lambda host: not has_peer(host, key), "lets the herald go")
    return seconds
