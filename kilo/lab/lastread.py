"""What was last read of a store that may be away; on disk, for all commands of ``kgctl lab``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kilo.errors import LabError
from kilo.lab.certificates import write_private
from kilo.mesh.model import Snapshot


class LastRead:
    """The answer of a store to ``read``, kept in a file; ``parse`` makes a snapshot of one."""

    def __init__(
        self, path: Path, read: Callable[[], Any], parse: Callable[[Any], Snapshot]
    ) -> None:
        """``read`` raises ``LabError`` while the store is away; what it returns goes into JSON."""
        self._path = path
        self._read = read
        self._parse = parse

    def read_snapshot(self) -> Snapshot:
        """As the store says, else as it said last; then heartbeats are as old as they were."""
        kept = self._read_anew()
        snapshot = self._parse(kept["answer"])
        elapsed = int(time.time() - kept["time"])
        seen = {name: stamp + elapsed for name, stamp in snapshot.last_seen.items()}
        return replace(snapshot, last_seen=MappingProxyType(seen))

    def _read_anew(self) -> dict[str, Any]:
        try:
            kept = {"time": time.time(), "answer": self._read()}
        except LabError:
            if not self._path.exists():
                raise
            return dict(json.loads(self._path.read_text()))
        # Under a name of its own: another command may be doing the same.
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        write_private(new, json.dumps(kept))
        new.replace(self._path)
        return kept
