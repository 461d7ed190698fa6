"""What kubelets and clouds write of a Node, at its real size: most of the object."""

from __future__ import annotations

import random
from typing import Any


def make_labels(name: str, region: str) -> dict[str, str]:
    """What clouds and kubelets put on a Node."""
    return {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": "standard-4",
        "topology.kubernetes.io/region": region,
        "topology.kubernetes.io/zone": f"{region}-a",
    }


def make_status(number: int) -> dict[str, Any]:
    """What a kubelet reports: most of the object's size."""
    source = random.Random(number)  # noqa: S311 - the same objects every time
    return {
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
