"""The overlays of examples/kubernetes as kubectl renders them, and what their pods ask for."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

EXAMPLES = Path(__file__).parents[2] / "examples" / "kubernetes"
KUSTOMIZATION = "kustomization.yaml"
RENDER_SECONDS = 120.0

NETWORKS = {
    "kubeadm": ("", "-flannel", "-cilium"),
    "k3s": ("", "-flannel", "-cilium"),
    "bootkube": ("", "-flannel"),
    "typhoon": ("", "-flannel"),
}
"""What each kind of cluster may have beside Kilo; without a name, Kilo is the network."""
OVERLAYS = tuple(
    f"{cluster}{network}{wireguard}"
    for cluster, networks in NETWORKS.items()
    for network in networks
    for wireguard in ("", "-userspace")
)
BESIDES = ("pull", "webhook", "webhook-cert-manager")
"""What is applied beside an overlay."""
FIELDS = {
    "metadata.name": "pod-1",
    "metadata.namespace": "kube-system",
    "spec.nodeName": "node-1",
    "status.hostIP": "192.168.0.1",
}
"""What a kubelet knows of a pod."""

Document = dict[str, Any]
ConfigMaps = Mapping[str, Mapping[str, str]]
"""Their data, by name."""
NO_MAPS: ConfigMaps = MappingProxyType({})


def kustomize(name: str) -> bytes:
    """What kubectl makes of a directory."""
    command = ["kubectl", "kustomize", str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, timeout=RENDER_SECONDS, check=True)
    return done.stdout


@functools.cache
def render(name: str) -> str:
    return kustomize(name).decode()


def list_objects(name: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(render(name)) if document]


def find_object(name: str, kind: str, called: str) -> Document:
    (found,) = (
        one
        for one in list_objects(name)
        if (one["kind"], one["metadata"]["name"]) == (kind, called)
    )
    return found


def list_pods(name: str) -> Iterator[Document]:
    """The specs of the pods that are made of the objects of a directory."""
    for document in list_objects(name):
        if "template" in document.get("spec", {}):
            yield document["spec"]["template"]["spec"]


def list_containers(name: str) -> Iterator[Document]:
    for pod in list_pods(name):
        yield from pod.get("initContainers", ())
        yield from pod["containers"]


def make_environment(container: Document, maps: ConfigMaps = NO_MAPS) -> dict[str, str]:
    """What a kubelet puts into a container's environment."""
    return {one["name"]: find_value(one, maps) for one in container.get("env", ())}


def find_value(variable: Document, maps: ConfigMaps) -> str:
    source = variable.get("valueFrom", {})
    if "configMapKeyRef" in source:
        reference = source["configMapKeyRef"]
        return maps[reference["name"]][reference["key"]]
    if "fieldRef" in source:
        return FIELDS[source["fieldRef"]["fieldPath"]]
    return str(variable["value"])


def make_words(container: Document, environment: Mapping[str, str]) -> list[str]:
    """Its arguments, with variables in the way of manifests: ``$(NODE_NAME)``."""
    return [expand(word, environment) for word in container.get("args", ())]


def expand(word: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], word)
