"""A lab's mesh in a real etcd, each member of which stands on a machine of its own.

Hosts reach the members over the networks of the lab, and speak TLS with them: each has on its own
disk, in ``/var/lib/kilo/etcd``, a certificate that bears its name. Nothing of it survives ``down``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from kilo.backends.documents import (
    Reading,
    make_node_document,
    make_peer_document,
    make_settings_document,
    read_document,
)
from kilo.backends.objects import join_objects
from kilo.errors import ConfigError
from kilo.lab import meshdir
from kilo.lab.box import Box
from kilo.lab.boxedetcd import BoxedEtcd
from kilo.lab.etcdfiles import EtcdFiles, Member, make_client_flags
from kilo.lab.fabric import Fabric
from kilo.lab.lastread import LastRead
from kilo.lab.stores import ETCD, choose_action, parse_settings
from kilo.lab.storewiring import find_store_address
from kilo.mesh.model import Peer, Snapshot

PREFIX = "/kilo"
"""Of all keys; the agents' default."""
KINDS = ("nodes", "reports", "peers", "settings")
HOST_DIRECTORY = Path("/var/lib/kilo/etcd")
"""Where a host keeps what lets it in."""
ACTIONS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {
        "kill": BoxedEtcd.kill,
        "start": BoxedEtcd.start,
        "freeze": BoxedEtcd.freeze,
        "thaw": BoxedEtcd.thaw,
    }
)
"""What may befall it, or some of its members, by the words for it."""


def list_machines(members: int) -> tuple[str, ...]:
    """The machines of an etcd with that many members; ``ConfigError`` for none."""
    if members < 1:
        raise ConfigError(f"--members {members}: an etcd has one or more")
    return tuple(f"@etcd-{number}" for number in range(1, members + 1))


class EtcdStore:
    """The store of one lab; ``fabric`` is that of a lab with its machines (``add_store``)."""

    def __init__(self, lab: Path, fabric: Fabric, machines: Sequence[str]) -> None:
        self._lab = lab
        self._mesh = lab / "mesh"
        self._fabric = fabric
        boxes = {name.removeprefix("@"): Box(lab, name) for name in machines}
        addresses = {n: find_store_address(fabric.spec, box.name) for n, box in boxes.items()}
        members = tuple(Member(name=n, address=str(address)) for n, address in addresses.items())
        files = EtcdFiles(directory=lab / "etcd", members=members)
        self.etcd = BoxedEtcd(files, boxes)
        self._last = LastRead(files.directory / "last-read.json", self._read, _make_snapshot)

    def build(self) -> None:
        snapshot = meshdir.read_snapshot(self._mesh)
        if snapshot.problems:
            raise ConfigError(f"{snapshot.problems[0]}; an etcd is given only what can be read")
        self.start()
        self.fill(snapshot)
        for host in self._fabric.spec.hosts:
            if host.agent:
                self.let_in(host.name)
        # From here on etcd's keys are the mesh: nobody is to edit a dead letter.
        shutil.rmtree(self._mesh)

    def start(self) -> None:
        """Make the machines and an etcd on them that holds nothing yet."""
        self.etcd.files.write()
        for box in self.etcd.boxes.values():
            box.start()
            self._fabric.plug(box)
        self.etcd.start()

    def fill(self, snapshot: Snapshot) -> None:
        """Put in what is declared there; not what agents report."""
        for node in snapshot.nodes:
            self.put(f"nodes/{node.name}", make_node_document(node.name, node.spec))
        if snapshot.settings:
            self.put("settings", make_settings_document(snapshot.settings))
        for peer in snapshot.peers:
            self.put_peer(peer)

    def let_in(self, host: str) -> None:
        """Put on a host's disk what its agent shows to members; the host need not run yet."""
        disk = self._lab / "hosts" / host / "disk"
        disk.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.etcd.files.let_in(host, disk / HOST_DIRECTORY.name)

    def flags(self, host: str) -> tuple[str, ...]:  # noqa: ARG002 - each finds its own on its disk
        members = self.etcd.files.members
        return (f"--backend={ETCD}", *make_client_flags(HOST_DIRECTORY, members, prefix="etcd-"))

    def read_snapshot(self) -> Snapshot:
        return self._last.read_snapshot()

    def _read(self) -> dict[str, str]:
        return self.etcd.get_prefix(f"{PREFIX}/")

    def set_settings(self, **fields: object) -> None:
        settings = self.read_snapshot().settings | parse_settings(fields)
        self.put("settings", make_settings_document(settings))

    def put_peer(self, peer: Peer) -> None:
        self.put(f"peers/{peer.name}", make_peer_document(peer))

    def put(self, key: str, document: Mapping[str, object]) -> None:
        """Write a document under a key, given without the prefix: ``peers/squat``."""
        self.etcd.put(f"{PREFIX}/{key}", json.dumps(document))

    def befall(self, word: str, members: Sequence[str]) -> None:
        choose_action(word, ACTIONS)(self.etcd, *members)

    def describe(self) -> str:
        return f"etcd, {self.etcd.describe()}"


def _make_snapshot(pairs: Mapping[str, str]) -> Snapshot:
    """What an agent would make of the same keys and values."""
    readings = [
        _read_value(key, text)
        for key, text in pairs.items()
        if key.removeprefix(PREFIX).split("/")[1] in KINDS
    ]
    return join_objects(
        [one for reading in readings for one in reading.found],
        [one for reading in readings for one in reading.problems],
    )


def _read_value(key: str, text: str) -> Reading:
    try:
        document: object = json.loads(text)
    except ValueError:
        document = text  # which is reported as no document
    return read_document(document, source=key)
