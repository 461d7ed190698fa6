"""A real control plane shared by all tests of a run, and hands to change what is in it.

It is started by the first test that needs it. Who breaks the API server itself makes a
``ControlPlane`` of its own; who breaks only the way to it, a ``Relay``.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kilo.backends.kubernetes.crd import make_peer_crd
from kilo.backends.kubernetes.settings import make_config_map
from kilo.errors import LabError
from kilo.lab.apicalls import MERGE_PATCH, RefusedError
from kilo.lab.controlplane import ControlPlane
from kilo.mesh.model import PartialSettings
from tests.cluster.relay import Relay

RBAC = Path(__file__).parents[2] / "examples" / "kubernetes" / "base" / "rbac.yaml"
NODES = "/api/v1/nodes"
PEERS = "/apis/kilo.squat.ai/v1alpha1/peers"
CONFIG_MAPS = "/api/v1/namespaces/kube-system/configmaps"
EVENTS = ("/api/v1/namespaces/default/events", "/api/v1/namespaces/kube-system/events")
PREFIX = "kilo.squat.ai/"
NAMESPACE, ACCOUNT = "kube-system", "kilo"
ACCOUNT_USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
SETTLE_SECONDS = 60.0


@functools.cache
def share_plane() -> ControlPlane:
    """The control plane of this test run, with what Kilo needs in it; ends with the run."""
    directory = Path(tempfile.mkdtemp(prefix="kilo-plane-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    plane = ControlPlane(directory)
    atexit.register(plane.stop)
    plane.start()
    prepare(plane)
    return plane


def prepare(plane: ControlPlane) -> None:
    """Put the CustomResourceDefinition and the roles there, and wait until peers are served."""
    plane.apply(make_peer_crd())
    plane.apply(RBAC.read_text())
    limit = time.monotonic() + SETTLE_SECONDS
    while not _serves_peers(plane):
        if time.monotonic() > limit:
            raise LabError(f"peers: not served after {SETTLE_SECONDS:g} s")
        time.sleep(0.05)


def _serves_peers(plane: ControlPlane) -> bool:
    try:
        plane.call("GET", PEERS)
    except RefusedError:
        return False
    return True


class Cluster:
    """The operator, and whoever registers nodes; names of annotations are without the prefix."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    def put_node(
        self,
        name: str,
        annotations: Mapping[str, str] | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        pod_cidrs: tuple[str, ...] = ("10.2.1.0/24",),
    ) -> None:
        """Register a node, as a kubelet does."""
        metadata = {
            "name": name,
            "labels": dict(labels or {}),
            "annotations": {PREFIX + key: value for key, value in (annotations or {}).items()},
        }
        spec = {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)} if pod_cidrs else {}
        self.plane.call("POST", NODES, {"metadata": metadata, "spec": spec})

    def annotate(self, name: str, annotations: Mapping[str, str | None]) -> None:
        """Set annotations, or take them away where the value is None."""
        named = {PREFIX + key: value for key, value in annotations.items()}
        self.patch(f"{NODES}/{name}", {"metadata": {"annotations": named}})

    def patch(self, path: str, document: object) -> None:
        """Merge the document into the object."""
        self.plane.call("PATCH", path, document, content_type=MERGE_PATCH)

    def read_node(self, name: str) -> dict[str, Any]:
        """The object as it stands there."""
        return self.plane.call("GET", f"{NODES}/{name}")

    def read_annotations(self, name: str) -> dict[str, str]:
        """All annotations of a node, others' too, under their full names."""
        return dict(self.read_node(name)["metadata"].get("annotations", {}))

    def delete_node(self, name: str) -> None:
        """Take it out of the cluster."""
        self.plane.call("DELETE", f"{NODES}/{name}")

    def put_peer(self, name: str, **spec: object) -> None:
        """Create a peer with that ``spec``."""
        document = {"apiVersion": "kilo.squat.ai/v1alpha1", "kind": "Peer"}
        self.plane.call("POST", PEERS, document | {"metadata": {"name": name}, "spec": spec})

    def put_settings(self, settings: PartialSettings) -> None:
        """Create the ConfigMap that holds them."""
        document = make_config_map(settings, namespace=NAMESPACE)
        self.plane.call("POST", CONFIG_MAPS, document)

    def write_past_server(self, name: str, node: Mapping[str, Any]) -> None:
        """Put a Node straight into etcd, as no API server would let it in."""
        document = {"apiVersion": "v1", "kind": "Node"} | dict(node)
        self.plane.etcdctl("put", f"/registry/minions/{name}", text=json.dumps(document))

    def empty(self) -> None:
        """Delete all nodes, peers, settings and events."""
        for path in (NODES, PEERS, *EVENTS):
            self.plane.call("DELETE", path)
        for item in self.plane.call("GET", CONFIG_MAPS)["items"]:
            if item["metadata"]["name"].startswith("kilo-"):
                self.plane.call("DELETE", f"{CONFIG_MAPS}/{item['metadata']['name']}")

    def make_agent_kubeconfig(self, relay: Relay | None = None) -> Path:
        """The credentials of an agent: a ServiceAccount's token and nothing else."""
        token = self.plane.make_service_account_token(NAMESPACE, ACCOUNT)
        server = relay.server if relay else ""
        return self.plane.make_kubeconfig(
            f"agent{'-relayed' * bool(relay)}", server=server, token=token
        )
