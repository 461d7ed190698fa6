"""The files we write ourselves: reports, and what operators declare by a command.

Each holds one document and is replaced in one step, so a reader finds the old or the new one.
A file that a person wrote is never changed. Blocks on the file system.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from kilo.backends.documents import (
    API_VERSION,
    check_object_name,
    make_peer_document,
    make_report_document,
)
from kilo.backends.file.reading import UnusableFileError, read_bytes
from kilo.backends.file.scanning import TEMPORARY
from kilo.backends.file.tree import Tree
from kilo.backends.yamltext import load_documents
from kilo.errors import BackendError
from kilo.mesh.model import NodeReport, Peer

STALE_SECONDS = 60.0
"""A temporary file older than this was left by a writer that died."""
WORLD_READABLE, OWNER_ONLY = 0o644, 0o600
FOLDERS = {"Node": "nodes", "NodeReport": "reports", "Peer": "peers"}
FILES = {"Settings": "settings.yaml"}
"""Of kinds of which there is one object in a mesh, whatever its name."""


def write_report(directory: Path, report: NodeReport, *, last_seen: int) -> None:
    """Replace the report of that node.

    ``BackendError`` where the file cannot be written, or is not one of ours.
    """
    path = _path_of(directory, "NodeReport", report.name)
    document = make_report_document(report, last_seen=last_seen)
    _check_ours(path, "NodeReport", report.name)
    _replace_file(path, document, mode=WORLD_READABLE)


def delete_report(tree: Tree, name: str) -> None:
    """Remove the report of that node; absent is no error."""
    path = _path_of(tree.directory, "NodeReport", name)
    _check_ours(path, "NodeReport", name)
    _unlink(tree, path)


def write_peer(tree: Tree, peer: Peer) -> None:
    """Write the peer; see ``write_object``."""
    mode = OWNER_ONLY if peer.preshared_key else WORLD_READABLE
    write_object(tree, lambda: make_peer_document(peer), mode=mode)


def write_object(
    tree: Tree, make: Callable[[], Mapping[str, object]], *, mode: int = WORLD_READABLE
) -> None:
    """Write what is made to the file that the object has to itself, or to a new one.

    ``BackendError`` where it stands among others, that file being a person's, and for a
    ``ValueError`` of ``make``.
    """
    try:
        document = make()
    except ValueError as error:
        raise BackendError(f"{tree.directory}: {error}") from error
    kind, name = _identify(document)
    path = next(iter(_find_own_files(tree, kind, name)), _path_of(tree.directory, kind, name))
    _check_ours(path, kind, name)
    _replace_file(path, document, mode=mode)


def delete_object(tree: Tree, kind: str, name: str) -> None:
    """Remove the file that holds the object alone; absent is no error.

    ``BackendError`` where it stands among others: that file is a person's.
    """
    for path in _find_own_files(tree, kind, name):
        _check_ours(path, kind, name)
        _unlink(tree, path)


def delete_node(tree: Tree, name: str) -> None:
    """Remove the node's declaration and its report: both, or neither if one is a person's."""
    _check_ours(_path_of(tree.directory, "NodeReport", name), "NodeReport", name)
    delete_object(tree, "Node", name)
    delete_report(tree, name)


def _find_own_files(tree: Tree, kind: str, name: str) -> list[Path]:
    """Where the object stands, the one in force first; each alone in its file."""
    places = tree.find(kind, None if kind in FILES else name)
    for place in places:
        if not place.is_alone:
            raise BackendError(
                f"{tree.directory / place.path}: {kind} {name} stands there among others:"
                " edit that file by hand"
            )
    return [tree.directory / place.path for place in places]


def _path_of(directory: Path, kind: str, name: str) -> Path:
    """Where the object's file is; the check of its name keeps it inside the directory."""
    try:
        check_object_name(kind, name)
    except ValueError as error:
        raise BackendError(f"{directory}: {error}") from error
    return directory / (FILES[kind] if kind in FILES else f"{FOLDERS[kind]}/{name}.yaml")


def _check_ours(path: Path, kind: str, name: str) -> None:
    """``BackendError`` unless the file is missing, blank or holds that one object."""
    try:
        data, _ = read_bytes(path)
        # A crash may leave a new file blank, or full of zeros.
        text = data.decode("utf-8").strip("\0 \t\r\n")
    except UnusableFileError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return
        raise BackendError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise BackendError(f"{path}: is not UTF-8 text, so not a file of ours") from error
    documents = list(load_documents(text, as_json=path.suffix == ".json"))
    if documents and not (len(documents) == 1 and _is_that(documents[0].value, kind, name)):
        raise BackendError(f"{path}: holds something else than {kind} {name}: left as it is")


def _is_that(value: object, kind: str, name: str) -> bool:
    """Whether it is the object, in the schema's own form: a ``v1`` Node is a cluster's."""
    if not isinstance(value, dict) or value.get("apiVersion") != API_VERSION:
        return False
    found_kind, found_name = _identify(value)
    return found_kind == kind and (kind in FILES or found_name == name)


def _identify(document: Mapping[str, object]) -> tuple[str, str]:
    """Kind and name; empty where there are none."""
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return str(document.get("kind", "")), str(name or "")


def _replace_file(path: Path, document: Mapping[str, object], *, mode: int) -> None:
    """Write beside the file, under a name that no reader takes, and rename.

    No fsync: a report is written again within the minute, and after a crash it is old or new.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        # Never the directory itself: if it is missing it is not mounted, not new.
        path.parent.mkdir(exist_ok=True)
        _remove_stale(path)
        try:
            _write_new(temporary, _render(document, path), mode)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    except OSError as error:
        raise BackendError(f"{path}: cannot be written: {error.strerror}") from error


def _render(document: Mapping[str, object], path: Path) -> str:
    if path.suffix == ".json":
        return json.dumps(document, indent=2) + "\n"
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _write_new(path: Path, text: str, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "w", encoding="utf-8") as file:
        file.write(text)


def _remove_stale(path: Path) -> None:
    """Temporary files of this file's former writers."""
    for old in path.parent.glob(f".{path.name}.*{TEMPORARY}"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE_SECONDS:
                old.unlink()


def _unlink(tree: Tree, path: Path) -> None:
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise BackendError(f"{path}: cannot be removed: {error.strerror}") from error
    tree.forget(str(path.relative_to(tree.directory)))
