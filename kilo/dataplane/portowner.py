"""Who holds a UDP port: what an operator asks next when it is in use.

Read from ``/proc``, only after a failure. A guess that cannot be made is left out of the message.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
TABLES = ("thread-self/net/udp", "thread-self/net/udp6")
"""Sockets of the network namespace of this thread; the first line of each names the columns."""
LOCAL_ADDRESS = 1
INODE = 9


def describe_owner(port: int) -> str:
    """The process behind a UDP port, as ``wireguard-go (pid 7)``; empty if nothing holds it."""
    inodes = find_sockets(port)
    if not inodes:
        return ""
    owners = sorted({describe_process(process) for process in find_holders(inodes)})
    # Sockets that the kernel opened for itself are in no process's table.
    return ", ".join(owners) or "the kernel (another WireGuard interface?)"


def find_sockets(port: int) -> frozenset[str]:
    """The inodes of the UDP sockets bound to a port."""
    return frozenset(
        columns[INODE]
        for table in TABLES
        for line in read_lines(PROC / table)[1:]
        if len(columns := line.split()) > INODE
        and columns[LOCAL_ADDRESS].rpartition(":")[2] == f"{port:04X}"
    )


def find_holders(inodes: frozenset[str]) -> Iterator[Path]:
    """The processes that have one of the sockets open; those that vanish meanwhile have not."""
    names = {f"socket:[{inode}]" for inode in inodes}
    for process in PROC.glob("[0-9]*"):
        try:
            if any(str(file.readlink()) in names for file in (process / "fd").iterdir()):
                yield process
        except OSError:
            continue


def describe_process(process: Path) -> str:
    """A process's name and number."""
    name = " ".join(read_lines(process / "comm")) or "a process"
    return f"{name} (pid {process.name})"


def read_lines(path: Path) -> list[str]:
    """The lines of a file, none if it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
