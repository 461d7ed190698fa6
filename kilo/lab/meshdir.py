"""The lab's copy of a mesh directory: one directory that all its agents share.

The copy is changed where it must be: keys that only their owners have the private halves of are
replaced by keys made here. The documents are changed as YAML; what they mean is the backend's.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import yaml

from kilo.backends.documents import API_VERSION, DEFAULT_TOPOLOGY_LABEL, make_peer_document
from kilo.backends.file import scanning
from kilo.backends.file.tree import Tree
from kilo.errors import ConfigError
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import IPInterface, Node, Peer, Settings, Snapshot
from kilo.mesh.readiness import find_ready_nodes, note_heartbeats
from kilo.mesh.topology import Topology, build_topology

Document = dict[str, Any]


def copy_mesh(source: Path, target: Path) -> None:
    """Copy the directory, without reports that a real agent may have left there."""
    if not source.is_dir():
        raise ConfigError(f"{source}: is not a directory; a lab needs DIR/mesh and DIR/lab.yaml")
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("reports"))
    (target / "reports").mkdir()


def list_files(directory: Path) -> list[Path]:
    """The files that an agent would read, sorted. Raises ``BackendError``."""
    return [directory / path for path in scanning.list_files(directory).files]


def read_documents(path: Path) -> list[Document]:
    """The documents of a file; those that are no mappings are left out.

    A file just taken away, as a report may be, holds none. Raises ``ConfigError`` for one that is
    not YAML: a lab of it would prove nothing.
    """
    try:
        loaded = list(yaml.safe_load_all(path.read_text()))
    except FileNotFoundError:
        return []
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    return [document for document in loaded if isinstance(document, dict)]


def write_documents(path: Path, documents: list[Document]) -> None:
    """Replace a file, atomically, as an editor that knows better would."""
    # A name that no agent reads.
    temporary = path.with_name(f".{path.name}.new")
    if path.suffix == ".json" and len(documents) == 1:
        temporary.write_text(json.dumps(documents[0], indent=2))
    else:
        temporary.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    temporary.replace(path)


def _flatten(document: Document) -> list[Document]:
    items = document.get("items")
    return [i for i in items if isinstance(i, dict)] if isinstance(items, list) else [document]


def name_of(document: Document) -> str:
    """The object's name; empty if it has none."""
    metadata = document.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""


def edit_objects(directory: Path, kind: str, edit: Callable[[Document], bool]) -> int:
    """Let ``edit`` change the ``spec`` of each object of a kind; rewrite the files it changed.

    ``edit`` gets the whole object, whose ``spec`` is a mapping, and says whether it changed it.
    Returns how many were changed.
    """
    total = 0
    for path in list_files(directory):
        documents = read_documents(path)
        changed = [
            edit(item)
            for document in documents
            for item in _flatten(document)
            if item.get("kind") == kind and isinstance(item.setdefault("spec", {}), dict)
        ]
        if any(changed):
            write_documents(path, documents)
            total += sum(changed)
    return total


def set_public_key(directory: Path, kind: str, name: str, key: PublicKey) -> None:
    """Replace the ``publicKey`` of a Node or Peer, if the mesh has it."""

    def edit(document: Document) -> bool:
        if name_of(document) != name:
            return False
        document["spec"]["publicKey"] = key.text
        return True

    edit_objects(directory, kind, edit)


def read_snapshot(directory: Path) -> Snapshot:
    """The mesh as an agent that starts now would read it, reports included.

    Raises ``BackendError`` where the directory cannot be read.
    """
    return Tree(directory, DEFAULT_TOPOLOGY_LABEL).look({}, time.monotonic()).snapshot


def read_topology(snapshot: Snapshot) -> Topology:
    """The mesh as an agent that starts now would build it; raises ``MeshError``.

    Settings are those of the directory: flags that say otherwise are not known here.
    """
    now = time.monotonic()
    heartbeats = note_heartbeats({}, snapshot.last_seen, now=now, wall=time.time())
    ready = find_ready_nodes(snapshot, heartbeats, now=now, local="")
    return build_topology(ready, snapshot.peers, replace(Settings(), **snapshot.settings))


def find_pod_addresses(node: Node) -> tuple[IPInterface, ...]:
    """The first address of each of a node's pod subnets, with its prefix length."""
    return tuple(
        ip_interface(f"{subnet.network_address + 1}/{subnet.prefixlen}")
        for subnet in node.pod_subnets
    )


def add_peer(directory: Path, peer: Peer) -> None:
    """Write a new Peer into a file of its own."""
    write_documents(directory / f"peer-{peer.name}.yaml", [make_peer_document(peer)])


def set_settings(directory: Path, **fields: object) -> None:
    """Change fields of the mesh's Settings, which are made if there are none."""

    def edit(document: Document) -> bool:
        document["spec"].update(fields)
        return True

    if not edit_objects(directory, "Settings", edit):
        document = {
            "apiVersion": API_VERSION,
            "kind": "Settings",
            "metadata": {"name": "mesh"},
            "spec": fields,
        }
        write_documents(directory / "settings.yaml", [document])
