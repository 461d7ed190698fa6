"""Node objects as a cluster of a thousand machines has them, for what is measured beside this."""

from __future__ import annotations

import base64
import random
import time
from typing import Any

from kilo.backends.annotations import PREFIX

LOCATIONS = 10


def name_node(number: int) -> str:
    """Names sort as their numbers do."""
    return f"node-{number:04}"


def make_node(number: int) -> dict[str, Any]:
    """A Node as a kubelet and an agent leave it; number 0 has had no agent yet."""
    source = random.Random(number)  # noqa: S311 - the same objects every time
    subnet = make_pod_subnet(number)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name_node(number),
            "labels": make_labels(number),
            "annotations": make_annotations(number, source),
        },
        "spec": {"podCIDR": subnet, "podCIDRs": [subnet], "providerID": f"cloud:///{number}"},
        "status": make_status(number, source),
    }


def make_pod_subnet(number: int) -> str:
    """The number's share of the pods' network, which has room for 1,024."""
    return f"10.2.{number // 4}.{number % 4 * 64}/26"


def make_address(number: int) -> str:
    """Of the node, within the network that all of them share."""
    return f"192.168.{number // 250}.{number % 250 + 1}"


def make_labels(number: int) -> dict[str, str]:
    """What clouds and kubelets put on a Node."""
    return {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name_node(number),
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": "standard-4",
        "topology.kubernetes.io/region": f"region-{number % LOCATIONS}",
        "topology.kubernetes.io/zone": f"region-{number % LOCATIONS}-a",
    }


def make_annotations(number: int, source: random.Random) -> dict[str, str]:
    """What kubeadm and Kilo's agents write."""
    others = {
        "kubeadm.alpha.kubernetes.io/cri-socket": "unix:///run/containerd/containerd.sock",
        "node.alpha.kubernetes.io/ttl": "0",
        "volumes.kubernetes.io/controller-managed-attach-detach": "true",
    }
    if number == 0:
        return others
    reported = {
        "endpoint": f"{make_address(number)}:51820",
        "internal-ip": f"{make_address(number)}/16",
        "key": base64.b64encode(source.randbytes(32)).decode(),
        "last-seen": str(int(time.time())),
        "wireguard-ip": "",
        "discovered-endpoints": "{}",
        "granularity": "location",
    }
    return others | {PREFIX + name: value for name, value in reported.items()}


def make_status(number: int, source: random.Random) -> dict[str, Any]:
    """What a kubelet reports: most of the object's size."""
    return {
        "addresses": [
            {"type": "InternalIP", "address": make_address(number)},
            {"type": "Hostname", "address": name_node(number)},
        ],
        "allocatable": {"cpu": "4", "memory": "16007060Ki", "pods": "110"},
        "capacity": {"cpu": "4", "memory": "16109460Ki", "pods": "110"},
        "conditions": [
            make_condition("MemoryPressure", "False", "kubelet has sufficient memory available"),
            make_condition("DiskPressure", "False", "kubelet has no disk pressure"),
            make_condition("PIDPressure", "False", "kubelet has sufficient PID available"),
            make_condition("Ready", "True", "kubelet is posting ready status"),
        ],
        "images": [make_image(image, source) for image in range(50)],
        "nodeInfo": {
            "architecture": "amd64",
            "bootID": f"{source.getrandbits(128):032x}",
            "containerRuntimeVersion": "containerd://1.7.22",
            "kernelVersion": "6.1.0-26-amd64",
            "kubeProxyVersion": "v1.20.2",
            "kubeletVersion": "v1.20.2",
            "machineID": f"{source.getrandbits(128):032x}",
            "operatingSystem": "linux",
            "osImage": "Debian GNU/Linux 12 (bookworm)",
            "systemUUID": f"{source.getrandbits(128):032x}",
        },
    }


def make_condition(kind: str, status: str, message: str) -> dict[str, str]:
    """One line of what ``kubectl describe node`` shows."""
    return {
        "type": kind,
        "status": status,
        "reason": f"Kubelet{kind}",
        "message": message,
        "lastHeartbeatTime": "2024-01-01T00:00:00Z",
        "lastTransitionTime": "2024-01-01T00:00:00Z",
    }


def make_image(image: int, source: random.Random) -> dict[str, Any]:
    """An image with its digest and tag."""
    name = f"registry.example.com/team-{image % 7}/service-{image}"
    digest = f"{source.getrandbits(256):064x}"
    return {
        "names": [f"{name}@sha256:{digest}", f"{name}:v1.{image}.0"],
        "sizeBytes": source.randrange(10**7, 10**9),
    }
