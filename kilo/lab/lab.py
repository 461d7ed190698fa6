"""A lab: made, found again, tampered with, taken down.

All of it is in boxes and in one directory.

with Lab.up(Path("examples/file/three-clouds"), name="try") as lab:
    lab.host("oregon-1").run(["ping", "-c1", "frankfurt-1"])
    lab.cut("oregon-1", "frankfurt-1")
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_network
from itertools import permutations
from pathlib import Path
from typing import Self

from kilo.errors import ConfigError, LabError
from kilo.keyfile import generate_private_key, load_private_key, public_key
from kilo.lab import meshdir, reach, wiring
from kilo.lab.box import find_inits
from kilo.lab.fabric import PARALLEL_BOXES, Fabric
from kilo.lab.guests import follow
from kilo.lab.host import Host
from kilo.lab.probing import Probe
from kilo.lab.processes import end_processes
from kilo.lab.reach import Reachability, Target
from kilo.lab.spec import LabSpec, load_spec
from kilo.lab.storage import UP, LabState, Storage
from kilo.mesh.model import Endpoint, Node, Peer
from kilo.mesh.topology import Topology

TOOLS = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "setsid": "util-linux",
    "sysctl": "procps",
    "fping": "fping",
    "wg": "wireguard-tools",
}
"""The programs a lab runs, and the Debian packages they come in."""

CHECK_PAUSE_SECONDS = 0.5

Progress = Callable[[str], None]


def _say_nothing(_: str) -> None:
    """The progress of a lab that nobody watches."""


class Lab:
    """One lab of this machine, by name; also a context manager that takes it down."""

    def __init__(self, storage: Storage, spec: LabSpec) -> None:
        self.name = storage.name
        self.path = storage.path
        self.mesh = storage.path / "mesh"
        self.spec = spec
        self.fabric = Fabric(storage.path, spec)
        self._storage = storage
        self.hosts = {host.name: Host(self.path, host, spec.flags) for host in spec.hosts}

    @classmethod
    def up(
        cls,
        directory: Path,
        *,
        name: str = "lab",
        agents: bool = True,
        granularity: str | None = None,
        progress: Progress = _say_nothing,
    ) -> Self:
        """Make the lab of a directory with ``lab.yaml`` and ``mesh/``, its agents started.

        Raises ``ConfigError`` for a bad ``lab.yaml`` before anything is made, ``LabError`` if a
        lab of that name exists or the machine cannot make it; then what was made is taken down.
        """
        spec = load_spec(directory / "lab.yaml")
        _require_root()
        _require_tools()
        storage = Storage(name)
        storage.create(LabState(source=str(directory), step="beginning"))
        try:
            with storage.lock():
                lab = cls(storage, spec)
                lab._build(directory, granularity=granularity, agents=agents, progress=progress)
        except BaseException:
            take_down(name)
            raise
        return lab

    @classmethod
    def open(cls, name: str = "lab") -> Self:
        """A lab that is up; raises ``LabError`` if it is not, or only half."""
        _require_root()
        storage = Storage(name)
        state = storage.read()
        if state.step != UP:
            raise LabError(
                f"lab {name!r}: was left half-built ({state.step});"
                f" 'kgctl lab down --name {name}' takes it down"
            )
        return cls(storage, load_spec(storage.path / "lab.yaml"))

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
        step("making hosts")
        self._start_hosts()
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

    def _start_hosts(self) -> None:
        hosts = list(self.hosts.values())
        self.for_each(hosts, lambda host: host.box.start())
        nodes = {node.name: node for node in meshdir.read_snapshot(self.mesh).nodes}
        for host in hosts:
            self._connect(host, nodes.get(host.name))

    def _connect(self, host: Host, node: Node | None) -> None:
        """Give a host, just started, its links, and the bridge for pods if it is a node."""
        self.fabric.plug(host.box)
        if node is not None:
            host.add_pod_bridge(meshdir.find_pod_addresses(node))

    @staticmethod
    def for_each(hosts: Iterable[Host], work: Callable[[Host], object]) -> None:
        """Do the same to several hosts at a time; raises the first error."""
        with ThreadPoolExecutor(PARALLEL_BOXES) as pool:
            list(pool.map(work, hosts))

    @property
    def agent_hosts(self) -> list[Host]:
        """The hosts that run agents."""
        return [host for host in self.hosts.values() if host.spec.agent]

    def host(self, name: str) -> Host:
        """The host of that name; raises ``LabError`` naming those there are."""
        if name not in self.hosts:
            raise LabError(f"host {name}: lab {self.name!r} has only {', '.join(self.hosts)}")
        return self.hosts[name]

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
        nodes = meshdir.read_snapshot(self.mesh).nodes
        with self._storage.lock():
            if host.box.alive:
                raise LabError(f"host {name}: is running")
            host.box.start()
            host.note_started()
            self._connect(host, next((node for node in nodes if node.name == name), None))
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
        for name in names:
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
        snapshot = meshdir.read_snapshot(self.mesh)
        topology = meshdir.read_topology(snapshot)
        outside = self._find_outside(topology)
        inside = [host for host in self.hosts.values() if host.name not in outside]
        self.for_each([h for h in inside if h.spec.peer], lambda host: follow(host, topology))
        sources = [host for host in inside if host.spec.agent or host.spec.peer]
        expected = {host.name for host in inside}
        targets = reach.list_targets(self.spec, snapshot, topology)
        asked = {
            host.name: reach.select_targets(host, targets, topology, expected) for host in sources
        }
        answered: dict[str, frozenset[Target]] = {}
        self.for_each(sources, lambda h: answered.update({h.name: reach.ask(h, asked[h.name])}))
        return Reachability(
            sources=tuple(host.name for host in sources),
            destinations=tuple(host.name for host in inside),
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
        """Start to probe between pairs of hosts, or between all that are in the mesh.

        A host is probed at an overlay address of its own, or at the one given in ``addresses``.
        """
        snapshot = meshdir.read_snapshot(self.mesh)
        topology = meshdir.read_topology(snapshot)
        targets = reach.list_targets(self.spec, snapshot, topology)
        known = {name: reach.choose_address(targets, name) for name in self.hosts}
        chosen = {name: str(address) for name, address in known.items() if address}
        chosen |= addresses or {}
        if pairs is None:
            inside = [
                host.name for host in self.hosts.values() if host.spec.agent or host.spec.peer
            ]
            pairs = permutations(inside, 2)
        return Probe(self.hosts.values(), {pair: chosen[pair[1]] for pair in pairs})

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
        meshdir.add_peer(self.mesh, peer)

    def down(self) -> None:
        """Take everything down; may be called twice."""
        take_down(self.name)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise ConfigError("a lab is made of namespaces: be root")


def _require_tools() -> None:
    for tool, package in TOOLS.items():
        if shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            raise ConfigError(f"{tool}: is not installed; on Debian: apt-get install {package}")


def take_down(name: str) -> bool:
    """End every process of a lab and delete what it wrote; false if there was nothing.

    Works on a lab in any state: half-built, crashed, without its directory.
    """
    _require_root()
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
