"""Which store a lab has: the one list of them."""

from __future__ import annotations

from pathlib import Path

from kilo.errors import ConfigError
from kilo.lab import cluster, etcdstore
from kilo.lab.cluster import ClusterStore
from kilo.lab.etcdstore import EtcdStore
from kilo.lab.fabric import Fabric
from kilo.lab.hybridstore import HybridStore
from kilo.lab.stores import ETCD, HYBRID, KUBERNETES, STORES, DirectoryStore, Store


def list_machines(backend: str, members: int) -> tuple[str, ...]:
    """The machines that the store of a ``backend`` takes.

    ``ConfigError`` for one that is not among ``STORES``, and for members of what has none.
    """
    if backend not in STORES:
        raise ConfigError(f"backend {backend!r}: is not one of {', '.join(STORES)}")
    if backend == ETCD:
        return etcdstore.list_machines(members)
    if backend == HYBRID:
        return (cluster.MACHINE, *etcdstore.list_machines(members))
    if members != 1:
        raise ConfigError(
            f"--members {members}: is for --backend={ETCD} and {HYBRID}, not {backend}"
        )
    return (cluster.MACHINE,) if backend == KUBERNETES else ()


def open_store(backend: str, lab: Path, fabric: Fabric, members: int) -> Store:
    """The store of a lab, whose fabric has a place for each of its machines; it may not be built
    yet.
    """
    if backend == KUBERNETES:
        return ClusterStore(lab, fabric)
    if backend == ETCD:
        return EtcdStore(lab, fabric, list_machines(backend, members))
    if backend == HYBRID:
        return HybridStore(lab, fabric, etcdstore.list_machines(members))
    return DirectoryStore(lab / "mesh")
