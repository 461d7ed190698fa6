"""Who holds a port: what an operator asks next when it is in use.

Read from ``/proc``, only after a failure. A guess that cannot be made is left out of the message.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

PROC = Path("/proc")
SOCKETS = "thread-self/net"
"""Those of the network namespace of this thread, in a table a protocol and family."""
LOCAL_ADDRESS, STATE, INODE = 1, 3, 9
"""Columns of the tables; the first line of each names them."""
TCP_LISTEN = "0A"


class Protocol(StrEnum):
    """A port of which protocol."""

    TCP = "tcp"
    UDP = "udp"


def describe_owner(protocol: Protocol, port: int) -> str:
    """The process that holds a UDP port or listens on a TCP one, as ``wireguard-go (pid 7)``.

    Empty if nothing does, or nothing that can be seen.
    """
    inodes = frozenset(find_sockets(protocol, port))
    owners = sorted({describe_process(process) for process in find_holders(inodes)})
    if inodes and not owners and protocol is Protocol.UDP:
        # Sockets that the kernel opened for itself are in no process's table.
        return "the kernel (another WireGuard interface?)"
    return ", ".join(owners)


def find_sockets(protocol: Protocol, port: int) -> Iterator[str]:
    """The inodes of the sockets bound to a port, of TCP only those that listen."""
    for table in (protocol, f"{protocol}6"):
        for line in read_lines(PROC / SOCKETS / table)[1:]:
            columns = line.split()
            is_bound = columns[LOCAL_ADDRESS].rpartition(":")[2] == f"{port:04X}"
            if is_bound and (protocol is Protocol.UDP or columns[STATE] == TCP_LISTEN):
                yield columns[INODE]


def find_holders(inodes: frozenset[str]) -> Iterator[Path]:
    """The processes that have one of the sockets open; those that vanish meanwhile have not."""
    names = {f"socket:[{inode}]" for inode in inodes}
    for process in PROC.glob("[0-9]*") if names else ():
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
