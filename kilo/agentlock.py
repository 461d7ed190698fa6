"""One agent at a time on an interface: two would undo each other's work."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kilo.errors import ConfigError


@contextmanager
def hold_lock(directory: Path, interface: str) -> Iterator[None]:
    """Hold the interface's lock; ``ConfigError`` names the process that has it.

    The kernel lets go of it when the process ends, however it ends.
    """
    path = directory / f"{interface}.lock"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = file.read().strip() or "unknown"
            raise ConfigError(
                f"interface {interface}: an agent is running already, process {holder}"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
