"""The agent's host: namespaces of its own, the agent's process, what it uses, what it writes."""

# ruff: noqa: S603, S607 - starts the programs it names

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self
from urllib.request import urlopen

from kilo.dataplane.nlsocket import RECEIVE_BYTES, parse_attributes, split_messages
from kilo.dataplane.routes import ROUTE_HEADER, ROUTE_PROTOCOL, RTM_DELROUTE, RTM_NEWROUTE, UNICAST
from kilo.dataplane.wireguard_uapi import exchange
from kilo.errors import DataplaneError, LabError
from kilo.mesh.model import IPNetwork

ROOT = Path(__file__).parents[1]
INSIDE = "KILO_BENCH_INSIDE"
"""Set in the environment of the program once it runs in namespaces of its own."""
PORT = 1107
LINK = "kilo0"
SOCKET = Path(f"/run/wireguard/{LINK}.sock")
START_SECONDS = 300.0
CHANGE_SECONDS = 60.0
TICKS = os.sysconf("SC_CLK_TCK")
NETLINK_ROUTES = 1 << 6 | 1 << 10
"""RTMGRP_IPV4_ROUTE and RTMGRP_IPV6_ROUTE."""


def enter_namespaces() -> None:
    """Start over in namespaces that end, with every process in them, when this one does."""
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command = [*unshare, sys.executable, *sys.argv]
    os.execvpe("unshare", command, os.environ | {INSIDE: "1"})  # noqa: S606 - as above


def make_network() -> None:
    """A host with one link and a default route; state and sockets of its own."""
    lines = (
        "mount -t tmpfs none /run",
        "mount -t tmpfs none /var/lib",
        "ip link set lo up",
        "ip link add eth0 type veth peer name far",
        "ip link set far up",
        "ip link set eth0 up",
        "ip address add 192.168.0.1/16 dev eth0",
        "ip route add default via 192.168.255.254",
    )
    for line in lines:
        subprocess.run(line.split(), check=True)


class Agent:
    """A real agent, a child of ours; ``with`` ends it and removes all it made."""

    def __init__(self, flags: Sequence[str], directory: Path, *, code: Path = ROOT) -> None:
        """``code``: the tree whose ``kilo`` is to run."""
        self._flags = (*flags, "--hostname=node-00000", f"--listen=127.0.0.1:{PORT}")
        self._log = directory / "agent.log"
        self._notify = str(directory / "notify")
        self._code = code
        self._environment = os.environ | {
            "NOTIFY_SOCKET": self._notify,
            "PYTHONPATH": str(code),
        }

    def __enter__(self) -> Self:
        Path(self._notify).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.bind(self._notify)
            started_at = time.monotonic()
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "kilo.kg", *self._flags],
                    stdout=log,
                    stderr=log,
                    cwd=self._code,
                    env=self._environment,
                )
            try:
                self._await_ready(channel)
            except BaseException:
                self._process.kill()
                raise
        self.start_cpu_seconds = self.read_cpu()
        self.start_children_cpu_seconds = self.read_children_cpu()
        self.start_seconds = time.monotonic() - started_at
        return self

    def _await_ready(self, channel: socket.socket) -> None:
        """Until it says that a pass has succeeded: no other question, no work for the agent."""
        limit, said = time.monotonic() + START_SECONDS, b""
        channel.settimeout(1.0)
        while b"READY=1" not in said:
            with suppress(TimeoutError):
                said = channel.recv(4096)
            if self._process.poll() is not None or time.monotonic() > limit:
                raise LabError(f"has ended, or is not ready: {self._log.read_text()[-600:]}")
        # It also says so after 15 s, for the service manager's sake.
        while self.read_metrics().get("kilo_ready") != 1.0:
            if time.monotonic() > limit:
                raise LabError(f"not ready: {self._log.read_text()[-600:]}")
            time.sleep(0.2)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            print(self.describe(), file=sys.stderr)  # noqa: T201 - for whoever looks why
        self._process.kill()
        self._process.wait()
        clean_up()

    def describe(self) -> str:
        """Whether it lives, and what it complained of last."""
        lines = [line for line in self._log.read_text().splitlines() if '"change"' not in line]
        end = self._process.poll()
        return "\n".join(("the agent lives" if end is None else f"status {end}", *lines[-20:]))

    def read_cpu(self) -> float:
        """Seconds of CPU that the process has used, exactly: its own POSIX clock."""
        return time.clock_gettime(~self._process.pid << 3 | 2)  # MAKE_PROCESS_CPUCLOCK(SCHED)

    def read_children_cpu(self) -> float:
        """Seconds of CPU that programs it has waited for have used, in ticks of 10 ms."""
        # After the name, which may hold anything and ends with a parenthesis: proc(5).
        text = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / TICKS

    def read_total_cpu(self) -> float:
        """The process and the programs that it has started."""
        return self.read_cpu() + self.read_children_cpu()

    def read_memory(self) -> dict[str, float]:
        """MiB: ``now`` resident, and the most there ever was."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        names = {"now": "VmRSS:", "peak": "VmHWM:"}
        return {key: int(text.partition(word)[2].split()[0]) / 1024 for key, word in names.items()}

    def read_metrics(self) -> dict[str, float]:
        """``name{labels}`` -> value."""
        with urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def read_counts(self) -> Counts:
        """What it has done so far."""
        metrics = self.read_metrics()
        prefix = "kilo_kernel_writes_total"
        return Counts(
            passes=metrics["kilo_reconciles_total"],
            writes=sum(value for name, value in metrics.items() if name.startswith(prefix)),
            errors=sum(v for name, v in metrics.items() if name.startswith("kilo_errors_total")),
        )


def clean_up() -> None:
    """Remove what an agent has made, as an operator could without it."""
    for command in (
        f"ip link delete {LINK}",
        f"ip route flush table all proto {ROUTE_PROTOCOL}",
        f"ip route flush table all type unreachable proto {ROUTE_PROTOCOL}",
        "nft delete table inet kilo",
    ):
        subprocess.run(command.split(), check=False, capture_output=True)
    for path in Path("/var/lib/kilo").glob("snapshot*"):
        path.unlink()
    limit = time.monotonic() + CHANGE_SECONDS
    while list_daemons() and time.monotonic() < limit:
        time.sleep(0.05)  # its end takes the socket away, which the next one's has the name of


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """An agent's counters at one moment."""

    passes: float
    writes: float
    errors: float

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            passes=self.passes - other.passes,
            writes=self.writes - other.writes,
            errors=self.errors - other.errors,
        )


class RouteWatch:
    """Hears of every route that comes or goes, as it does."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        self._socket.bind((0, NETLINK_ROUTES))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def expect(self, network: IPNetwork, *, there: bool) -> Callable[[], float]:
        """What waits for the unicast route to the network to come or go, and tells when that was,
        on the monotonic clock. What was told before is forgotten.
        """
        while self._is_readable(0.0):
            self._socket.recv(RECEIVE_BYTES)
        return partial(self._wait_for, network, RTM_NEWROUTE if there else RTM_DELROUTE)

    def _wait_for(self, network: IPNetwork, kind: int) -> float:
        limit = time.monotonic() + CHANGE_SECONDS
        while time.monotonic() < limit:
            if self._is_readable(1.0):
                messages = split_messages(self._socket.recv(RECEIVE_BYTES))
                if any(
                    message.type == kind and is_to(network, message.body) for message in messages
                ):
                    return time.monotonic()
        raise TimeoutError(f"no word of the route to {network} in {CHANGE_SECONDS:.0f} s")

    def _is_readable(self, seconds: float) -> bool:
        return bool(select.select([self._socket], [], [], seconds)[0])


def is_to(network: IPNetwork, body: memoryview) -> bool:
    """Whether a route leads to that network; barriers do not lead anywhere."""
    _, length, *_, kind, _ = ROUTE_HEADER.unpack_from(body)
    destination = parse_attributes(body, ROUTE_HEADER.size).get(1, b"")
    same = bytes(destination) == network.network_address.packed and length == network.prefixlen
    return kind == UNICAST and same


def wait_for_peer(key: bytes, *, there: bool) -> float:
    """When, on the monotonic clock, the device has that peer, or has it no more."""
    limit, line = time.monotonic() + CHANGE_SECONDS, b"public_key=" + key.hex().encode()
    while time.monotonic() < limit:
        with suppress(DataplaneError):  # many ask at once
            if (line in exchange(SOCKET, b"get=1\n\n")) == there:
                return time.monotonic()
        time.sleep(0.002)
    raise TimeoutError(f"the device does not change in {CHANGE_SECONDS:.0f} s")


def read_daemon_cpu() -> float:
    """Seconds of CPU that wireguard-go has used; 0 where the kernel has WireGuard itself."""
    daemons = list_daemons()
    return time.clock_gettime(~max(daemons) << 3 | 2) if daemons else 0.0


def list_daemons() -> list[int]:
    """The process numbers of those wireguard-go that have not ended."""
    found = []
    for directory in Path("/proc").iterdir():
        with suppress(OSError):  # it ends just now
            if directory.name.isdigit():
                name, _, rest = (directory / "stat").read_text().rpartition(")")
                is_daemon = name.endswith("(wireguard-go") and rest.split()[0] != "Z"
                found += [int(directory.name)] if is_daemon else []
    return found
