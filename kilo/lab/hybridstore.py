"""A lab's mesh in two stores: some hosts stand in a cluster, others in an etcd beside it.

Which, ``lab.yaml`` says (``store: etcd``). Every agent publishes to its host's own store and reads
both.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import kilo
from kilo.backends.parts import join_parts, mark_part
from kilo.errors import ConfigError
from kilo.lab import meshdir
from kilo.lab.cluster import ACCOUNT, ClusterStore, check_nodes
from kilo.lab.etcdstore import EtcdStore
from kilo.lab.fabric import Fabric
from kilo.lab.stores import ETCD, KUBERNETES
from kilo.mesh.model import Peer, Snapshot

MANIFEST = Path(kilo.__file__).parent.parent / "examples/hybrid/reader.yaml"
"""What the agents of hosts that stand in etcd may do in the cluster, exactly as it is shipped."""
READER = "kilo-reader"
"""Their ServiceAccount there."""


class HybridStore:
    """Both stores of one lab; ``fabric`` is that of a lab with the machines of both."""

    def __init__(self, lab: Path, fabric: Fabric, machines: Sequence[str]) -> None:
        """``machines`` are etcd's."""
        self.cluster = ClusterStore(lab, fabric)
        self.rack = EtcdStore(lab, fabric, machines)
        self._mesh = lab / "mesh"
        self._hosts = fabric.spec.hosts

    def build(self) -> None:
        snapshot = meshdir.read_snapshot(self._mesh)
        if snapshot.problems:
            raise ConfigError(f"{snapshot.problems[0]}; a store is given only what can be read")
        of_cluster, of_rack = self._divide(snapshot)
        check_nodes(of_cluster)
        self.cluster.start()
        self.cluster.fill(of_cluster)
        self.rack.start()
        self.rack.fill(of_rack)
        self.cluster.plane.kubectl("create", f"--filename={MANIFEST}")
        for host in self._hosts:
            if host.agent:
                self.cluster.let_in(host.name, account=READER if host.store == ETCD else ACCOUNT)
                self.rack.let_in(host.name)
        # From here on the stores are the mesh: nobody is to edit a dead letter.
        shutil.rmtree(self._mesh)

    def _divide(self, snapshot: Snapshot) -> tuple[Snapshot, Snapshot]:
        """The cluster's part, which the settings are in, and etcd's."""
        for host in self._hosts:
            if host.store not in ("", KUBERNETES, ETCD):
                raise ConfigError(
                    f"lab.yaml: hosts.{host.name}.store: {host.store!r} is not one of"
                    f" {KUBERNETES}, {ETCD}"
                )
        nodes = {host.name for host in self._hosts if host.store == ETCD}
        peers = {host.peer for host in self._hosts if host.store == ETCD}
        of_cluster = replace(
            snapshot,
            nodes=tuple(node for node in snapshot.nodes if node.name not in nodes),
            peers=tuple(peer for peer in snapshot.peers if peer.name not in peers),
        )
        of_rack = Snapshot(
            nodes=tuple(node for node in snapshot.nodes if node.name in nodes),
            peers=tuple(peer for peer in snapshot.peers if peer.name in peers),
        )
        return of_cluster, of_rack

    def flags(self, host: str) -> tuple[str, ...]:
        """Its own store first; the others of both stores, as each store has them."""
        in_rack = any(one.name == host and one.store == ETCD for one in self._hosts)
        kinds = (ETCD, KUBERNETES) if in_rack else (KUBERNETES, ETCD)
        flags = (*self.cluster.flags(host), *self.rack.flags(host))
        others = (flag for flag in flags if not flag.startswith("--backend="))
        return (*(f"--backend={kind}" for kind in kinds), *others)

    def read_snapshot(self) -> Snapshot:
        parts = {
            KUBERNETES: mark_part(self.cluster.read_snapshot(), KUBERNETES),
            ETCD: mark_part(self.rack.read_snapshot(), ETCD),
        }
        return join_parts(parts, home=KUBERNETES)

    def set_settings(self, **fields: object) -> None:
        self.cluster.set_settings(**fields)

    def put_peer(self, peer: Peer) -> None:
        self.cluster.put_peer(peer)

    def befall(self, word: str, members: Sequence[str]) -> None:
        """To the stores that are named, or members of etcd; to both if none is."""
        for name in members or (KUBERNETES, ETCD):
            if name == KUBERNETES:
                self.cluster.befall(word, ())
            else:
                self.rack.befall(word, () if name == ETCD else (name,))

    def describe(self) -> str:
        return f"{self.cluster.describe()}; {self.rack.describe()}"
