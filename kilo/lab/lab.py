"""A lab: made, found again, tampered with, taken down.

All of it is in boxes and in one directory.

with Lab.up(Path("examples/file/three-clouds"), name="try") as lab:
    lab.host("oregon-1").run(["ping", "-c1", "frankfurt-1"])
    lab.cut("oregon-1", "frankfurt-1")
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_network
from itertools import permutations
from pathlib import Path
from typing import Self, TypeVar

from kilo.errors import LabError
from kilo.keyfile import generate_private_key, load_private_key, public_key
from kilo.lab import meshdir, reach, wiring
from kilo.lab.box import find_inits
from kilo.lab.boxedetcd import BoxedEtcd
from kilo.lab.boxedplane import BoxedPlane
from kilo.lab.cluster import ClusterStore
from kilo.lab.etcdstore import EtcdStore
from kilo.lab.fabric import PARALLEL_BOXES, Fabric
from kilo.lab.guests import follow
from kilo.lab.host import Host
from kilo.lab.hybridstore import HybridStore
from kilo.lab.openstore import list_machines, open_store
from kilo.lab.pods import Pod
from kilo.lab.probing import Place, Probe
from kilo.lab.processes import end_processes
from kilo.lab.reach import Reachability, Target
from kilo.lab.requirements import require_root, require_tools
from kilo.lab.spec import HostSpec, LabSpec, load_spec
from kilo.lab.storage import UP, LabState, Storage
from kilo.lab.stores import FILE
from kilo.lab.storewiring import add_store
from kilo.mesh.model import Endpoint, Node, Peer
from kilo.mesh.topology import Topology

CHECK_PAUSE_SECONDS = 0.5

P = TypeVar("P", Host, Host | Pod)
Progress = Callable[[str], None]


def _say_nothing(_: str) -> None:
    """The progress of a lab that nobody watches."""


class Lab:
    """One lab of this machine, by name; also a context manager that takes it down."""

    def __init__(self, storage: Storage, spec: LabSpec, state: LabState) -> None:
        self.name = storage.name
        self.path = storage.path
        self.mesh = storage.path / "mesh"
        """The mesh as documents; of another store only until that is filled with them."""
        self.spec = spec
        self._storage = storage
        machines = list_machines(state.backend, state.members)
        self.fabric = Fabric(storage.path, add_store(spec, machines))
        self.store = open_store(state.backend, storage.path, self.fabric, state.members)
        self.hosts = {host.name: self._make_host(host) for host in spec.hosts}

    def _make_host(self, spec: HostSpec) -> Host:
        return Host(self.path, spec, (*self.store.flags(spec.name), *self.spec.flags))

    @classmethod
    def up(  # noqa: PLR0913 - all that can be said of a lab
        cls,
        directory: Path,
        *,
        name: str = "lab",
        backend: str = FILE,
        members: int = 1,
        agents: bool = True,
        granularity: str | None = None,
        progress: Progress = _say_nothing,
    ) -> Self:
        """Make the lab of a directory with ``lab.yaml`` and ``mesh/``, its agents started.

        ``backend``, one of ``STORES``, is the store that agents share, an etcd's with that many
        ``members``. Raises ``ConfigError`` for a bad ``lab.yaml`` before anything is made,
        ``LabError`` if a lab of that name exists or the machine cannot make it; then what was made
        is taken down.
        """
        list_machines(backend, members)
        spec = load_spec(directory / "lab.yaml")
        require_root()
        require_tools()
        storage = Storage(name)
        state = LabState(source=str(directory), step="beginning", backend=backend, members=members)
        storage.create(state)
        try:
            with storage.lock():
                lab = cls(storage, spec, state)
                lab._build(directory, granularity=granularity, agents=agents, progress=progress)
        except BaseException:
            take_down(name)
            raise
        return lab

    @classmethod
    def open(cls, name: str = "lab") -> Self:
        """A lab that is up; raises ``LabError`` if it is not, or only half."""
        require_root()
        storage = Storage(name)
        state = storage.read()
        if state.step != UP:
            raise LabError(
                f"lab {name!r}: was left half-built ({state.step});"
                f" 'kgctl lab down --name {name}' takes it down"
            )
        return cls(storage, load_spec(storage.path / "lab.yaml"), state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def _build(
        self, directory: Path, *, granularity: str | None, agents: bool, progress: Progress
    ) -> None:
        def step(words: str) -> None:
            self._storage.enter_step(words)
            progress(words)

        step("copying the mesh")
        self._copy_files(directory, granularity=granularity)
        step("making networks and routers")
        self.fabric.build()
        step("making the store")
        nodes = meshdir.read_snapshot(self.mesh).nodes
        self.store.build()
        step("making hosts")
        self._start_hosts(nodes)
        if agents:
            step("starting agents")
            self.for_each(self.agent_hosts, Host.start_agent)
        else:
            self.for_each(self.agent_hosts, Host.note_stopped)
        self._storage.enter_step(UP)

    def _copy_files(self, directory: Path, *, granularity: str | None) -> None:
        (self.path / "logs").mkdir()
        shutil.copyfile(directory / "lab.yaml", self.path / "lab.yaml")
        (self.path / "etc-hosts").write_text(wiring.render_hosts(self.spec))
        meshdir.copy_mesh(directory / "mesh", self.mesh)
        if granularity:
            meshdir.set_settings(self.mesh, granularity=granularity)
        nodes = meshdir.read_snapshot(self.mesh).nodes
        declared = {node.name for node in nodes if node.spec.public_key}
        for host in self.hosts.values():
            if host.spec.peer:
                self._make_key(host, "Peer", host.spec.peer)
            elif host.spec.agent and host.name in declared:
                self._make_key(host, "Node", host.name)

    def _make_key(self, host: Host, kind: str, name: str) -> None:
        private = generate_private_key()
        host.store_key(private)
        meshdir.set_public_key(self.mesh, kind, name, public_key(private))

    def _start_hosts(self, nodes: Iterable[Node]) -> None:
        hosts = list(self.hosts.values())
        self.for_each(hosts, lambda host: host.box.start())
        for host in hosts:
            self._connect(host, nodes)

    def _connect(self, host: Host, nodes: Iterable[Node]) -> None:
        """Give a host, just started, its links, and the bridge for pods if it is a node whose
        pods nobody else connects.
        """
        self.fabric.plug(host.box)
        host.pods.forget()
        for node in nodes:
            if node.name == host.name and not host.has_cni:
                host.add_pod_bridge(meshdir.find_pod_addresses(node))

    @staticmethod
    def for_each(places: Iterable[P], work: Callable[[P], object]) -> None:
        """Do the same to, or in, several hosts or pods at a time; raises the first error."""
        with ThreadPoolExecutor(PARALLEL_BOXES) as pool:
            list(pool.map(work, places))

    @property
    def agent_hosts(self) -> list[Host]:
        """The hosts that run agents."""
        return [host for host in self.hosts.values() if host.spec.agent]

    def host(self, name: str) -> Host:
        """The host of that name; raises ``LabError`` naming those there are."""
        if name not in self.hosts:
            raise LabError(f"host {name}: lab {self.name!r} has only {', '.join(self.hosts)}")
        return self.hosts[name]

    @property
    def plane(self) -> BoxedPlane:
        """The control plane that holds the mesh; raises ``LabError`` where a directory does."""
        store = self.store.cluster if isinstance(self.store, HybridStore) else self.store
        if isinstance(store, ClusterStore):
            return store.plane
        raise LabError(f"lab {self.name!r}: its store is {self.store.describe()}; no API server")

    @property
    def etcd(self) -> BoxedEtcd:
        """The etcd that holds the mesh; raises ``LabError`` where another store does."""
        store = self.store.rack if isinstance(self.store, HybridStore) else self.store
        if isinstance(store, EtcdStore):
            return store.etcd
        raise LabError(f"lab {self.name!r}: its store is {self.store.describe()}; no etcd")

    def kill(self, name: str) -> None:
        """Switch a host off, as a power cut does; its disk stays."""
        host = self.host(name)
        with self._storage.lock():
            host.note_stopped()
            self.fabric.unplug(host.box)
            host.box.kill()

    def start(self, name: str) -> None:
        """Switch a killed host on again, with its agent; raises ``LabError`` if it is running."""
        host = self.host(name)
        nodes = self.store.read_snapshot().nodes
        with self._storage.lock():
            if host.box.alive:
                raise LabError(f"host {name}: is running")
            host.box.start()
            host.note_started()
            self._connect(host, nodes)
            if host.spec.agent:
                host.start_agent()

    def cut(self, *names: str) -> None:
        """Drop all packets of one host, or those between two, until ``heal``."""
        self._check_cut(names)
        self._change_cuts(lambda cuts: {*cuts, tuple(sorted(names))})

    def heal(self, *names: str) -> None:
        """Undo a cut, or without names every cut; one that was not made is no error."""
        if names:
            self._check_cut(names)
        gone = tuple(sorted(names))
        self._change_cuts(lambda cuts: {cut for cut in cuts if names and cut != gone})

    def _check_cut(self, names: Sequence[str]) -> None:
        machines = {host.name for host in self.fabric.spec.hosts}  # the store's, too
        for name in names:
            if name not in machines:
                self.host(name)
        if len(set(names)) != len(names) or len(names) not in {1, 2}:
            raise LabError(f"cut {' '.join(names)}: is neither one host nor two")

    def _change_cuts(self, change: Callable[[set[tuple[str, ...]]], set[tuple[str, ...]]]) -> None:
        with self._storage.lock():
            state = self._storage.read()
            cuts = tuple(sorted(change(set(state.cuts))))
            self._storage.write(replace(state, cuts=cuts))
            self.fabric.set_cuts(cuts)

    @property
    def cuts(self) -> tuple[tuple[str, ...], ...]:
        """The hosts, and pairs of hosts, that are cut off now."""
        return self._storage.read().cuts

    def check(self) -> Reachability:
        """Ping everything from everything, the mesh's peers brought up to date first."""
        snapshot = self.store.read_snapshot()
        topology = meshdir.read_topology(snapshot)
        outside = self._find_outside(topology)
        inside = [host for host in self.hosts.values() if host.name not in outside]
        self.for_each([h for h in inside if h.spec.peer], lambda host: follow(host, topology))
        places: list[Host | Pod] = [*inside, *(pod for h in inside for pod in h.pods.list())]
        sources = [p for p in places if isinstance(p, Pod) or p.spec.agent or p.spec.peer]
        expected = {place.name for place in places}
        targets = reach.list_targets(self.spec, snapshot, topology)
        targets = reach.put_pods_in_place(targets, inside)
        asked = {s.name: reach.select_targets(s, targets, topology, expected) for s in sources}
        answered: dict[str, frozenset[Target]] = {}
        self.for_each(sources, lambda s: answered.update({s.name: reach.ask(s, asked[s.name])}))
        return Reachability(
            sources=tuple(source.name for source in sources),
            destinations=tuple(place.name for place in places),
            asked=asked,
            answered=answered,
            outside=tuple(outside),
            crashed=tuple(name for name, wanted in outside.items() if wanted),
        )

    def _find_outside(self, topology: Topology) -> dict[str, bool]:
        """The hosts that take no part now, and whether they should."""
        peers = {peer.name for peer in topology.peers}
        found = {}
        for host in self.hosts.values():
            if host.spec.peer and host.spec.peer not in peers:
                found[host.name] = False
            elif not host.box.alive or (host.spec.agent and not host.agents()):
                found[host.name] = not host.stopped
        return found

    def wait_reachable(
        self, timeout: float = 120.0, *, watch: Callable[[Reachability], None] | None = None
    ) -> Reachability:
        """Check until everything is reachable; ``LabError`` naming what is not after ``timeout`` s.

        ``watch`` gets every result, the last one too.
        """
        deadline = time.monotonic() + timeout
        while True:
            result = self.check()
            if watch:
                watch(result)
            if result.complete:
                return result
            if time.monotonic() > deadline:
                raise LabError(f"lab {self.name!r}: after {timeout:g} s {result.explain()}")
            time.sleep(CHECK_PAUSE_SECONDS)  # the other side of a ping announces nothing

    def probe(
        self,
        pairs: Iterable[tuple[str, str]] | None = None,
        *,
        addresses: Mapping[str, str] | None = None,
    ) -> Probe:
        """Start to probe between pairs of hosts or pods, or between all hosts in the mesh.

        Each is probed at an overlay address of its own, or at the one given in ``addresses``.
        """
        snapshot = self.store.read_snapshot()
        topology = meshdir.read_topology(snapshot)
        targets = reach.list_targets(self.spec, snapshot, topology)
        targets = reach.put_pods_in_place(targets, self.hosts.values())
        places: list[Place] = [*self.hosts.values()]
        places += (pod for host in self.hosts.values() for pod in host.pods.list())
        known = {place.name: reach.choose_address(targets, place.name) for place in places}
        chosen = {name: str(address) for name, address in known.items() if address}
        chosen |= addresses or {}
        if pairs is None:
            inside = [
                host.name for host in self.hosts.values() if host.spec.agent or host.spec.peer
            ]
            pairs = permutations(inside, 2)
        return Probe(places, {pair: chosen[pair[1]] for pair in pairs})

    def add_peer(self, host: str, *allowed_ips: str, endpoint: str | None = None) -> None:
        """Let a host that plays a peer into the mesh, under the name that ``lab.yaml`` gives it."""
        player = self.host(host)
        private = load_private_key(player.disk / "key")
        peer = Peer(
            name=player.spec.peer,
            public_key=public_key(private),
            allowed_ips=tuple(map(ip_network, allowed_ips)),
            endpoint=Endpoint.parse(endpoint) if endpoint else None,
        )
        self.store.put_peer(peer)

    def down(self) -> None:
        """Take everything down; may be called twice."""
        take_down(self.name)


def take_down(name: str) -> bool:
    """End every process of a lab and delete what it wrote; false if there was nothing.

    Works on a lab in any state: half-built, crashed, without its directory.
    """
    require_root()
    storage = Storage(name)
    if not storage.exists:
        return _end_boxes(storage.path)
    with storage.lock():
        _end_boxes(storage.path)
        storage.remove()
    return True


def _end_boxes(path: Path) -> bool:
    """Kill boxes until none is found: one just started by a builder that died may appear late."""
    found = False
    while inits := find_inits(path):
        found = True
        end_processes(inits)
    return found
