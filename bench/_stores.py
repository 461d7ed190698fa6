"""The three stores of a mesh, real ones, behind one face: filled, changed, and checked in to.

What they do is done as others would: the directory's files are replaced, etcd and the API server
are asked over HTTP, by one connection a thread.
"""

# ruff: noqa: S603 - starts the stores' own programs

from __future__ import annotations

import base64
import http.client
import json
import shutil
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import yaml
from _fleet import Fleet, make_peer, make_report, make_spec, name_node
from _nodeobjects import make_labels, make_status

from kilo.backends.annotations import (
    PREFIX,
    make_declared_annotations,
    make_report_annotations,
)
from kilo.backends.documents import (
    make_node_document,
    make_peer_document,
    make_report_document,
    make_settings_document,
)
from kilo.backends.kubernetes.settings import make_config_map
from kilo.errors import LabError
from kilo.lab.controlplane import ControlPlane, find_free_ports
from kilo.lab.planefiles import ADMIN
from kilo.mesh.model import PartialSettings

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "kubernetes"
START_SECONDS = 60.0


class Store(Protocol):
    """What a benchmark does with a store. Numbers are those of nodes and peers in a fleet."""

    name: str

    def fill(self, fleet: Fleet) -> None: ...
    def flags(self) -> Sequence[str]: ...
    def add_node(self, fleet: Fleet, number: int) -> None: ...
    def declare_node(self, fleet: Fleet, number: int, *, leader: bool | None = None) -> None: ...
    def remove_node(self, number: int) -> None: ...
    def put_peer(self, number: int) -> None: ...
    def remove_peer(self, number: int) -> None: ...
    def put_settings(self, settings: PartialSettings) -> None: ...
    def beat(self, fleet: Fleet, number: int) -> None: ...
    def count_calls(self) -> Counter[str]: ...


class Directory(AbstractContextManager["Directory"]):
    """A directory of files, one an object."""

    name = "directory"

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "mesh"
        for folder in ("nodes", "reports", "peers"):
            (self._directory / folder).mkdir(parents=True)

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._directory)

    def fill(self, fleet: Fleet) -> None:
        fill_all(self, fleet)

    def flags(self) -> Sequence[str]:
        return ("--backend=file", f"--directory={self._directory}")

    def add_node(self, fleet: Fleet, number: int) -> None:
        self.declare_node(fleet, number)
        if number:
            self.beat(fleet, number)

    def declare_node(self, fleet: Fleet, number: int, *, leader: bool | None = None) -> None:
        spec = make_spec(fleet, number, leader=leader)
        self._write("nodes", make_node_document(name_node(number), spec))

    def beat(self, fleet: Fleet, number: int) -> None:
        report = make_report(fleet, number)
        self._write("reports", make_report_document(report, last_seen=int(time.time())))

    def remove_node(self, number: int) -> None:
        for folder in ("nodes", "reports"):
            (self._directory / folder / f"{name_node(number)}.yaml").unlink()

    def put_peer(self, number: int) -> None:
        self._write("peers", make_peer_document(make_peer(number)))

    def remove_peer(self, number: int) -> None:
        (self._directory / "peers" / f"{make_peer(number).name}.yaml").unlink()

    def put_settings(self, settings: PartialSettings) -> None:
        self._write("", make_settings_document(settings))

    def count_calls(self) -> Counter[str]:
        """How often the agent has written its report cannot be counted from outside."""
        return Counter()

    def _write(self, folder: str, document: Mapping[str, Any]) -> None:
        path = self._directory / folder / f"{document['metadata']['name']}.yaml"
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False))
        temporary.replace(path)


METHODS = {"put": "Put", "deleterange": "DeleteRange", "range": "Range"}
"""etcd's gateway's names of calls, and gRPC's, by which they are counted."""


class Etcd(AbstractContextManager["Etcd"]):
    """An etcd of one member, asked by its own HTTP gateway."""

    name = "etcd"

    def __init__(self, directory: Path) -> None:
        self._port, peers = find_free_ports("127.0.0.1", "127.0.0.1")
        self._url = f"http://127.0.0.1:{self._port}"
        self._own_calls: Counter[str] = Counter()
        self._local = threading.local()
        self._directory = directory / "etcd"
        command = [
            *("etcd", "--name=bench", f"--data-dir={self._directory}", "--log-level=error"),
            *(f"--listen-client-urls={self._url}", f"--advertise-client-urls={self._url}"),
            f"--listen-peer-urls=http://127.0.0.1:{peers}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
            f"--initial-cluster=bench=http://127.0.0.1:{peers}",
        ]
        log = (directory / "etcd.log").open("ab")
        self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def __enter__(self) -> Self:
        limit = time.monotonic() + START_SECONDS
        while True:
            try:
                self._call("range", {"key": encode("/")})
            except OSError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.05)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._directory)

    def fill(self, fleet: Fleet) -> None:
        fill_all(self, fleet)

    def flags(self) -> Sequence[str]:
        return ("--backend=etcd", f"--etcd-endpoints={self._url}")

    def add_node(self, fleet: Fleet, number: int) -> None:
        self.declare_node(fleet, number)
        if number:
            self.beat(fleet, number)

    def declare_node(self, fleet: Fleet, number: int, *, leader: bool | None = None) -> None:
        name, spec = name_node(number), make_spec(fleet, number, leader=leader)
        self._put(f"nodes/{name}", make_node_document(name, spec))

    def beat(self, fleet: Fleet, number: int) -> None:
        report = make_report(fleet, number)
        document = make_report_document(report, last_seen=int(time.time()))
        self._put(f"reports/{report.name}", document)

    def remove_node(self, number: int) -> None:
        for kind in ("nodes", "reports"):
            self._delete(f"{kind}/{name_node(number)}")

    def put_peer(self, number: int) -> None:
        peer = make_peer(number)
        self._put(f"peers/{peer.name}", make_peer_document(peer))

    def remove_peer(self, number: int) -> None:
        self._delete(f"peers/{make_peer(number).name}")

    def put_settings(self, settings: PartialSettings) -> None:
        self._put("settings", make_settings_document(settings))

    def count_calls(self) -> Counter[str]:
        """Those of all clients less our own."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        calls: Counter[str] = Counter()
        for line in lines:
            if line.startswith("grpc_server_started_total{"):
                labels, _, count = line.rpartition(" ")
                calls[labels.partition('grpc_method="')[2].partition('"')[0]] += int(float(count))
        return calls - self._own_calls

    def _put(self, key: str, document: Mapping[str, object]) -> None:
        pair = {"key": encode(f"/kilo/{key}"), "value": encode(json.dumps(document))}
        self._call("put", pair)

    def _delete(self, key: str) -> None:
        self._call("deleterange", {"key": encode(f"/kilo/{key}")})

    def _call(self, method: str, document: Mapping[str, str]) -> None:
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        self._own_calls[METHODS[method]] += 1
        try:
            self._local.connection.request("POST", f"/v3/kv/{method}", json.dumps(document))
            answer = self._local.connection.getresponse()
            body = answer.read()
        except OSError:
            del self._local.connection
            raise
        if answer.status >= 400:
            raise LabError(f"etcd: {method}: {answer.status} {body[:300]!r}")


def encode(text: str) -> str:
    """As the gateway takes keys and values."""
    return base64.b64encode(text.encode()).decode()


class Kubernetes(AbstractContextManager["Kubernetes"]):
    """An API server with an etcd of its own, and Node objects of the size that kubelets make."""

    name = "kubernetes"

    def __init__(self, directory: Path) -> None:
        self._plane = ControlPlane(directory / "plane")
        self._call = Connections(self._plane)
        self._audited = 0
        self._calls: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._plane.__enter__()
        self._plane.call("GET", "/api/v1/namespaces/kube-system")
        for name in ("base/crd.yaml", "base/rbac.yaml"):
            self._plane.apply((EXAMPLES / name).read_text())
        token = self._plane.make_service_account_token("kube-system", "kilo", seconds=7200)
        self._kubeconfig = self._plane.make_kubeconfig("agent", token=token)
        return self

    def __exit__(self, *_: object) -> None:
        self._plane.stop()

    def fill(self, fleet: Fleet) -> None:
        fill_all(self, fleet)

    def flags(self) -> Sequence[str]:
        return (
            *("--backend=kubernetes", f"--kubeconfig={self._kubeconfig}"),
            *("--cni=false", "--encapsulate=never"),
        )

    def add_node(self, fleet: Fleet, number: int) -> None:
        self._call("POST", "/api/v1/nodes", make_cluster_node(fleet, number))

    def declare_node(self, fleet: Fleet, number: int, *, leader: bool | None = None) -> None:
        annotations = make_declared_annotations(make_spec(fleet, number, leader=leader))
        path = f"/api/v1/nodes/{name_node(number)}"
        self._call("PATCH", path, {"metadata": {"annotations": annotations}})

    def beat(self, fleet: Fleet, number: int) -> None:  # noqa: ARG002 - a patch has no need of it
        stamp = {PREFIX + "last-seen": str(int(time.time()))}
        path = f"/api/v1/nodes/{name_node(number)}"
        self._call("PATCH", path, {"metadata": {"annotations": stamp}})

    def remove_node(self, number: int) -> None:
        self._call("DELETE", f"/api/v1/nodes/{name_node(number)}")

    def put_peer(self, number: int) -> None:
        self._call(
            "POST", "/apis/kilo.squat.ai/v1alpha1/peers", make_peer_document(make_peer(number))
        )

    def remove_peer(self, number: int) -> None:
        self._call("DELETE", f"/apis/kilo.squat.ai/v1alpha1/peers/{make_peer(number).name}")

    def put_settings(self, settings: PartialSettings) -> None:
        document = make_config_map(settings, namespace="kube-system")
        path = "/api/v1/namespaces/kube-system/configmaps"
        try:
            self._call("POST", path, document)
        except FileExistsError:
            name = document["metadata"]["name"]  # type: ignore[index] # a mapping, by its schema
            self._call("PUT", f"{path}/{name}", document)

    def count_calls(self) -> Counter[str]:
        """By verb and resource, watches when they end. Reads only what the log has gained."""
        with self._plane.files.audit_log.open() as log:
            log.seek(self._audited)
            while (line := log.readline()).endswith("\n"):
                self._audited = log.tell()
                if "system:serviceaccount:kube-system:kilo" not in line:
                    continue
                entry = json.loads(line)
                resource = entry.get("objectRef", {}).get("resource", entry["requestURI"])
                self._calls[f"{entry['verb']} {resource}"] += 1
        return self._calls.copy()


def make_cluster_node(fleet: Fleet, number: int) -> dict[str, Any]:
    """A Node as a kubelet and an agent leave it; node 0 has had no agent yet."""
    spec = make_spec(fleet, number)
    subnet = str(spec.pod_subnets[0])
    annotations = make_declared_annotations(spec)
    if number:
        report = make_report(fleet, number)
        annotations |= make_report_annotations(report, last_seen=int(time.time()))
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name_node(number),
            "labels": make_labels(name_node(number), spec.location),
            "annotations": {name: text for name, text in annotations.items() if text is not None},
        },
        "spec": {"podCIDR": subnet, "podCIDRs": [subnet]},
        "status": make_status(number),
    }


class Connections:
    """Calls as the administrator over one connection a thread, as a client under load keeps it."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._local = threading.local()

    def __call__(self, method: str, path: str, document: object = None) -> None:
        """``FileExistsError`` where there is such an object already."""
        if not hasattr(self._local, "connection"):
            self._local.connection = connect(self._plane)
        kind = "merge-patch+json" if method == "PATCH" else "json"
        headers = {"Content-Type": f"application/{kind}", "User-Agent": "kg/bench"}
        self._local.connection.request(method, path, json.dumps(document), headers)
        answer = self._local.connection.getresponse()
        body = answer.read()
        if answer.status == 409:
            raise FileExistsError(path)
        if answer.status >= 400:
            raise LabError(f"{method} {path}: {answer.status} {body[:300]!r}")


def connect(plane: ControlPlane) -> http.client.HTTPSConnection:
    """A connection to the API server as its administrator."""
    directory = plane.files.directory
    tls = ssl.create_default_context(cafile=directory / "ca.crt")
    tls.load_cert_chain(directory / f"{ADMIN}.crt", directory / f"{ADMIN}.key")
    address = urlsplit(plane.server)
    return http.client.HTTPSConnection(str(address.hostname), address.port, context=tls, timeout=30)


def fill_all(store: Store, fleet: Fleet) -> None:
    """Every node and peer, by four writers; node 0 is declared, and its agent to report."""
    store.add_node(fleet, 0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: store.add_node(fleet, number), range(1, fleet.nodes)))
        list(pool.map(store.put_peer, range(fleet.peers)))


STORES: Mapping[str, type[Directory | Etcd | Kubernetes]] = {
    store.name: store for store in (Directory, Etcd, Kubernetes)
}
