"""A lab's mesh in a real API server, which stands with its etcd on a machine of the lab's own.

Hosts reach it over the networks of the lab, each with a kubeconfig on its own disk that lets it in
as the ServiceAccount of the manifests and allows it what these allow. Nothing of it survives
``down``.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import kilo
from kilo.backends.documents import (
    API_VERSION,
    make_peer_document,
    read_document,
)
from kilo.backends.kubernetes.crd import make_peer_crd
from kilo.backends.kubernetes.settings import SETTINGS_NAME, make_config_map, read_config_map
from kilo.backends.objects import join_objects
from kilo.errors import ConfigError, LabError
from kilo.lab import meshdir
from kilo.lab.apicalls import RefusedError
from kilo.lab.box import Box
from kilo.lab.boxedplane import BoxedPlane
from kilo.lab.clusterobjects import NAMESPACE, make_node
from kilo.lab.fabric import Fabric
from kilo.lab.lastread import LastRead
from kilo.lab.planefiles import PlaneFiles
from kilo.lab.stores import KUBERNETES, choose_action, find_settings, parse_settings
from kilo.lab.storewiring import find_store_address
from kilo.mesh.model import PartialSettings, Peer, Snapshot

MANIFEST = Path(kilo.__file__).parent.parent / "examples/kubernetes/base/rbac.yaml"
"""What the agents may do, exactly as it is shipped."""
ACCOUNT = "kilo"
"""The agents' ServiceAccount there."""
NODES, PEERS = "/api/v1/nodes", f"/apis/{API_VERSION}/peers"
CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
TOKEN_SECONDS = 365 * 24 * 3600
READ_SECONDS = 3.0
"""How long the lab waits for a store that may be frozen before it takes what it read last."""
SERVED_SECONDS = 60.0
"""An API server serves a new kind of object a second after it was defined."""
NOT_FOUND = 404
"""Of HTTP."""
MACHINE = "@store"
"""Where the control plane stands."""
ACTIONS: Mapping[str, Callable[[BoxedPlane], None]] = MappingProxyType(
    {
        "kill": BoxedPlane.kill,
        "start": BoxedPlane.start,
        "freeze": BoxedPlane.freeze,
        "thaw": BoxedPlane.thaw,
        "save": BoxedPlane.save,
        "restore": BoxedPlane.restore,
    }
)
"""What may befall it, by the words for it."""

Document = dict[str, Any]


class ClusterStore:
    """The store of one lab; ``fabric`` is that of a lab with a place for it (``add_store``)."""

    def __init__(self, lab: Path, fabric: Fabric) -> None:
        address = find_store_address(fabric.spec, MACHINE)
        files = PlaneFiles(directory=lab / "store", address=str(address))
        self.plane = BoxedPlane(Box(lab, MACHINE), files)
        self._lab = lab
        self._mesh = lab / "mesh"
        self._fabric = fabric
        self._last = LastRead(files.directory / "last-read.json", self._read, _make_snapshot)

    def build(self) -> None:
        snapshot = meshdir.read_snapshot(self._mesh)
        if snapshot.problems:
            raise ConfigError(f"{snapshot.problems[0]}; a cluster holds only what can be read")
        check_nodes(snapshot)
        self.start()
        self.fill(snapshot)
        for host in self._fabric.spec.hosts:
            if host.agent:
                self.let_in(host.name)
        # From here on the cluster's objects are the mesh: nobody is to edit a dead letter.
        shutil.rmtree(self._mesh)

    def start(self) -> None:
        """Make the machine and a cluster on it that holds nothing yet."""
        self.plane.box.start()
        self._fabric.plug(self.plane.box)
        self.plane.start()

    def fill(self, snapshot: Snapshot) -> None:
        """Put in what is declared there, as objects of the cluster, and the roles of agents."""
        crd = json.dumps(make_peer_crd())
        # Older kubectls know fewer fields of it than newer servers.
        self.plane.kubectl("create", "--validate=false", "--filename=-", text=crd)
        self.plane.kubectl("create", f"--filename={MANIFEST}")
        for node in snapshot.nodes:
            self.plane.call("POST", NODES, make_node(node))
        if snapshot.settings:
            self._write_settings(snapshot.settings)
        _wait_until(self._serves_peers, "peers are served")
        for peer in snapshot.peers:
            self.put_peer(peer)

    def _serves_peers(self) -> bool:
        return self._read_if_there(PEERS) is not None

    def let_in(self, host: str, *, account: str = ACCOUNT) -> None:
        """Put a kubeconfig on a host's disk, for that ServiceAccount; the host need not run yet."""
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_SECONDS},
        }
        account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}"
        token = self.plane.call("POST", f"{account}/token", request)["status"]["token"]
        made = self.plane.files.make_kubeconfig(host, token=str(token))
        disk = self._lab / "hosts" / host / "disk"
        disk.mkdir(mode=0o700, parents=True, exist_ok=True)
        made.replace(disk / "kubeconfig")

    def flags(self, host: str) -> tuple[str, ...]:  # noqa: ARG002 - each finds its own on its disk
        return (
            f"--backend={KUBERNETES}",
            "--kubeconfig=/var/lib/kilo/kubeconfig",
            "--cni=false",
            "--encapsulate=never",
        )

    def read_snapshot(self) -> Snapshot:
        return self._last.read_snapshot()

    def _read(self) -> Document:
        return {
            "nodes": self.plane.call("GET", NODES, timeout=READ_SECONDS),
            "peers": self.plane.call("GET", PEERS, timeout=READ_SECONDS),
            "settings": self._read_config_map(),
        }

    def _read_config_map(self) -> Document:
        return self._read_if_there(f"{CONFIG_MAPS}/{SETTINGS_NAME}") or {}

    def _read_if_there(self, path: str) -> Document | None:
        try:
            return self.plane.call("GET", path, timeout=READ_SECONDS)
        except RefusedError as error:
            if error.status != NOT_FOUND:
                raise
            return None

    def set_settings(self, **fields: object) -> None:
        changed = parse_settings(fields)
        now = find_settings(read_config_map(self._read_config_map()))
        self._write_settings(now | changed)

    def _write_settings(self, settings: PartialSettings) -> None:
        document = make_config_map(settings, namespace=NAMESPACE)
        path = f"{CONFIG_MAPS}/{SETTINGS_NAME}"
        if self._read_if_there(path):
            self.plane.call("PUT", path, document)
        else:
            self.plane.call("POST", CONFIG_MAPS, document)

    def put_peer(self, peer: Peer) -> None:
        self.plane.call("POST", PEERS, make_peer_document(peer))

    def befall(self, word: str, members: Sequence[str]) -> None:
        act = choose_action(word, ACTIONS)
        if members:
            raise ConfigError(f"store {word}: {members[0]!r}: an API server has no members")
        act(self.plane)

    def describe(self) -> str:
        return f"Kubernetes API server {self.plane.files.server}: {self.plane.describe()}"


def check_nodes(snapshot: Snapshot) -> None:
    """``ConfigError`` for a node that no cluster can hold."""
    for node in snapshot.nodes:
        make_node(node)


def _make_snapshot(read: Document) -> Snapshot:
    """What an agent would make of the same answers."""
    readings = [
        read_document(read["nodes"], source="nodes"),
        read_document(read["peers"], source="peers"),
        read_config_map(read["settings"]),
    ]
    return join_objects(
        [one for reading in readings for one in reading.found],
        [one for reading in readings for one in reading.problems],
    )


def _wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SERVED_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise LabError(f"store: after {SERVED_SECONDS:g} s still not so: {what}")
        time.sleep(0.1)  # between two looks at a server that announces nothing
