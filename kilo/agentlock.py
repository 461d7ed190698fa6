"""One agent at a time on a host: two would undo each other's work.

Of whatever interface: their routes, rules and table bear the same marks, so each would take the
other's for its own and remove them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kilo.errors import ConfigError

STATE = Path("/var/lib/kilo")
"""The agent's directory. Who changes the host's network and is no agent holds its lock, too."""
KEY = STATE / "key"
"""The agent's: whoever has it is the node, whatever the host is called."""
LOCK = "agent.lock"
"""The file in the agent's directory."""


@contextmanager
def hold_lock(directory: Path, interface: str) -> Iterator[None]:
    """Hold the host's lock; ``ConfigError`` names the process and the interface that have it.

    The kernel lets go of it when the process ends, however it ends. Only who holds it writes to
    the directory, so what an agent was writing there when it was killed is swept away first.
    """
    path = directory / LOCK
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "; kg works as root" if os.geteuid() else ""
        raise ConfigError(f"{path}: {error.strerror}{hint}") from error
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = file.read().strip() or "unknown"
            raise ConfigError(
                f"interface {interface}: an agent is running on this host already, {holder}"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()}, interface {interface}")
        file.flush()
        for half_written in directory.glob("*.tmp"):
            half_written.unlink(missing_ok=True)
        yield
