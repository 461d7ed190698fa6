"""The last good snapshot on disk, for a start while the store is away.

Written in the same documents that the file backend reads, so that an operator can read it and
one parser serves both. It holds no secret: peers with a preshared key are listed as such, and
come back with the key withheld.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from kilo.backends.documents import (
    make_node_document,
    make_peer_document,
    make_report_document,
    make_settings_document,
    read_document,
)
from kilo.backends.objects import join_objects
from kilo.backends.parts import join_parts, mark_part
from kilo.errors import BackendError
from kilo.log import get_logger
from kilo.mesh.keys import WITHHELD
from kilo.mesh.model import Snapshot

DEFAULT_PATH = Path("/var/lib/kilo/snapshot.json")
_WITHHELD = "withheldPresharedKeys"
_HOME, _PARTS = "home", "stores"


class SnapshotFile:
    """One file, replaced atomically; a broken one is the same as none."""

    def __init__(self, path: Path = DEFAULT_PATH) -> None:
        self._path = path
        self._log = get_logger("snapshot")

    def load(self) -> Snapshot | None:
        """What was saved last, or None; never raises."""
        try:
            content = json.loads(self._path.read_text())
            return parse_snapshot(content, source=str(self._path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            self._log.warning("snapshot unusable", path=str(self._path), error=str(error))
            return None

    def save(self, snapshot: Snapshot) -> None:
        """Replace the file; ``BackendError`` names it."""
        temporary = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                # Not ``json.dump``, nor indented: both are written in Python, ten times slower.
                file.write(json.dumps(format_snapshot(snapshot)))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            raise BackendError(f"snapshot {self._path}: {error.strerror}") from error

    def remove(self) -> None:
        """Forget it; absent is not an error."""
        self._path.unlink(missing_ok=True)


def format_snapshot(snapshot: Snapshot) -> dict[str, object]:
    """A snapshot as JSON can hold it, without its problems and secrets; of several stores, what
    each says.
    """
    if snapshot.parts:
        parts = {
            kind: format_snapshot(replace(part, last_seen=_select_stamps(snapshot, part)))
            for kind, part in snapshot.parts.items()
        }
        return {_HOME: snapshot.home, _PARTS: parts}
    return {
        _WITHHELD: [peer.name for peer in snapshot.peers if peer.preshared_key is not None],
        "items": list(_make_documents(snapshot)),
    }


def _select_stamps(snapshot: Snapshot, part: Snapshot) -> dict[str, int]:
    """Those of the part's nodes that count."""
    return {name: stamp for name, stamp in snapshot.last_seen.items() if name in part.last_seen}


def _make_documents(snapshot: Snapshot) -> Iterator[dict[str, object]]:
    yield make_settings_document(snapshot.settings)
    for node in snapshot.nodes:
        yield make_node_document(node.name, node.spec)
        if node.report is not None:
            yield make_report_document(node.report, last_seen=snapshot.last_seen.get(node.name))
    for peer in snapshot.peers:
        yield make_peer_document(replace(peer, preshared_key=None))


def parse_snapshot(content: dict[str, Any], *, source: str) -> Snapshot:
    """The snapshot that ``format_snapshot`` made; ``ValueError`` if it is none."""
    if isinstance(content, dict) and isinstance(content.get(_PARTS), dict):
        return _parse_parts(content, source=source)
    if not isinstance(content, dict) or not isinstance(content.get("items"), list):
        raise ValueError("is not a snapshot")  # noqa: TRY004 - to a reader any bad file is alike
    withheld = set(content.get(_WITHHELD, ()))
    readings = [read_document(item, source=source) for item in content["items"]]
    problems = [problem for reading in readings for problem in reading.problems]
    if problems:
        raise ValueError(str(problems[0]))
    snapshot = join_objects((found for reading in readings for found in reading.found), ())
    peers = (
        replace(peer, preshared_key=WITHHELD) if peer.name in withheld else peer
        for peer in snapshot.peers
    )
    return replace(snapshot, peers=tuple(peers))


def _parse_parts(content: dict[str, Any], *, source: str) -> Snapshot:
    parts = {
        kind: mark_part(parse_snapshot(part, source=source), kind)
        for kind, part in content[_PARTS].items()
    }
    return join_parts(parts, home=str(content.get(_HOME, "")))
