"""What a lab writes down: ``/run/kilo-lab/NAME``, gone after ``down``.

    state.json      the step under way, the cuts; replaced before each step
    lab.yaml        as it was at ``up``
    mesh/           the mesh directory that all agents share; of another store only until that is
                    filled with it
    store/ etcd/    what such a store keeps: data, certificates, logs
    etc-hosts       the hosts' /etc/hosts
    hosts/HOST/     disk/ (its /var/lib/kilo, which outlives a kill) and mount points
    logs/HOST.log   its agent's JSON lines

An exclusive lock on the directory itself keeps two commands from building at once; the kernel
lets go of it when its holder dies, however it dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kilo.errors import LabError
from kilo.lab.stores import FILE

ROOT = Path("/run/kilo-lab")
LOCK_TIMEOUT_SECONDS = 60.0
UP = "up"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabState:
    """What the state file holds."""

    source: str
    """The directory the lab was made from."""
    step: str
    """What was being done when it was written; ``up`` when nothing was."""
    backend: str = FILE
    """Which store the agents share."""
    members: int = 1
    """Of an etcd."""
    cuts: tuple[tuple[str, ...], ...] = ()
    """Hosts, or pairs of hosts, that are cut off now."""


class Storage:
    """The directory of one lab."""

    def __init__(self, name: str) -> None:
        if not name or "/" in name or name.startswith("."):
            raise LabError(f"lab {name!r}: is not a name for a directory")
        self.name = name
        self.path = ROOT / name

    @property
    def exists(self) -> bool:
        """Whether anything of the lab was written down."""
        return self.path.is_dir()

    def create(self, state: LabState) -> None:
        """Make the directory; raises ``LabError`` if the lab exists, saying how far it got."""
        ROOT.mkdir(mode=0o755, exist_ok=True)
        try:
            self.path.mkdir(mode=0o755)
        except FileExistsError:
            raise LabError(self._explain_existing()) from None
        self.write(state)

    def _explain_missing(self) -> str:
        return f"lab {self.name!r}: there is none; 'kgctl lab up DIR' makes one"

    def _explain_existing(self) -> str:
        step = self.read().step if (self.path / "state.json").exists() else "beginning"
        how = "is up" if step == UP else f"was left half-built ({step})"
        return f"lab {self.name!r}: {how}; 'kgctl lab down --name {self.name}' takes it down"

    def read(self) -> LabState:
        """The state; raises ``LabError`` if there is no lab."""
        try:
            document = json.loads((self.path / "state.json").read_text())
        except FileNotFoundError:
            raise LabError(self._explain_missing()) from None
        cuts = tuple(tuple(cut) for cut in document["cuts"])
        return LabState(**document | {"cuts": cuts})

    def write(self, state: LabState) -> None:
        """Replace the state, atomically."""
        temporary = self.path / "state.json.new"
        temporary.write_text(json.dumps(asdict(state)))
        temporary.replace(self.path / "state.json")

    def enter_step(self, step: str) -> None:
        """Note what is about to be done."""
        self.write(replace(self.read(), step=step))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lab for one command; raises ``LabError`` if another holds it for too long."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise LabError(self._explain_missing()) from None
        try:
            self._wait_for_lock(handle)
            if not os.fstat(handle).st_nlink:  # taken down while we waited
                raise LabError(self._explain_missing())
            yield
        finally:
            os.close(handle)

    def _wait_for_lock(self, handle: int) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LabError(
                        f"lab {self.name!r}: another command has been at work on it for too long"
                    ) from None
                time.sleep(0.05)  # flock has no time limit of its own
            else:
                return

    def remove(self) -> None:
        """Delete everything written down, the common parent too when it was the last lab."""
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            ROOT.rmdir()
        except OSError:
            return  # other labs, or never made
