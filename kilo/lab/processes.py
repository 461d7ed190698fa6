"""Processes of the machine as ``/proc`` tells of them. Nothing here remembers a process id."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from kilo.errors import LabError

PROC = Path("/proc")
KILL_TIMEOUT_SECONDS = 60.0


def list_processes() -> Iterator[int]:
    """The ids of all processes, as the machine sees them."""
    for entry in os.listdir(PROC):  # noqa: PTH208 - a thousand Path objects a scan cost more than it
        if entry.isdigit():
            yield int(entry)


def read_arguments(process: int) -> list[str]:
    """A process's command line; empty if it is gone or a zombie."""
    try:
        return (PROC / str(process) / "cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def read_pid_namespace(process: int) -> str:
    """The pid namespace it lives in; empty if it is gone."""
    try:
        return str((PROC / str(process) / "ns/pid").readlink())
    except OSError:
        return ""


def read_inner_id(process: int) -> int:
    """Its id inside its own pid namespace; 0 if it is gone."""
    try:
        status = (PROC / str(process) / "status").read_text()
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith("NSpid:")), "0")
    return int(line.split()[-1])


def is_stopped(process: int) -> bool:
    """Whether it was stopped by a signal and has not been let go on."""
    try:
        stat = (PROC / str(process) / "stat").read_text()
    except OSError:
        return False
    # The name before the state may hold anything, spaces and brackets too.
    return stat.rpartition(")")[2].split()[0] == "T"


def end_processes(
    processes: Iterable[int],
    *,
    number: signal.Signals = signal.SIGKILL,
    timeout: float = KILL_TIMEOUT_SECONDS,
) -> None:
    """Send a signal and wait until each has ended; raises ``LabError`` after ``timeout`` seconds.

    When the first process of a pid namespace has ended, so has every other in it.
    """
    handles = {}
    try:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                handles[process] = os.pidfd_open(process)
        for handle in handles.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
        for process, handle in handles.items():
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            if not poll.poll(timeout * 1000):
                raise LabError(f"process {process}: still there {timeout:g} s after {number.name}")
    finally:
        for handle in handles.values():
            os.close(handle)
