"""What a lab must leave as it was: this machine's own network, mounts and processes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from kilo.lab.processes import list_processes, read_arguments

COMMANDS = (
    ["ip", "-o", "link"],
    ["ip", "-brief", "address"],
    ["ip", "route", "show", "table", "all"],
    ["ip", "-6", "route", "show", "table", "all"],
    ["ip", "rule"],
    ["nft", "list", "ruleset"],
)


def describe_machine() -> dict[str, str]:
    """Links, addresses, routes, rules, filters, mounts and forwarding of the machine itself."""
    shown = {" ".join(command): _read_output(command) for command in COMMANDS}
    files = ("/proc/self/mountinfo", "/proc/sys/net/ipv4/ip_forward")
    return shown | {file: Path(file).read_text() for file in files}


def _read_output(command: list[str]) -> str:
    shown = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - a constant above
    return re.sub(r" expires \d+sec", "", shown.stdout)  # of routes that routers announce


def list_namespaces(processes: list[int]) -> set[str]:
    """The network namespaces of processes, without ours and those of processes that are gone."""
    return {read_network_namespace(pid) for pid in processes} - {
        read_network_namespace(os.getpid()),
        "",
    }


def read_network_namespace(process: int) -> str:
    """The network namespace of a process; empty if it is gone."""
    try:
        return str(Path(f"/proc/{process}/ns/net").readlink())
    except OSError:
        return ""


def find_inhabitants(namespaces: set[str]) -> list[list[str]]:
    """The command lines of all processes that live in any of the namespaces."""
    return [
        read_arguments(pid) for pid in list_processes() if read_network_namespace(pid) in namespaces
    ]
