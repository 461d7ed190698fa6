"""The kernel's own cost of a state: written once more by the fastest means that there are.

``ip -batch`` for routes, one transaction of ``nft``, one message to the WireGuard device. What was
there is read before the agent removes it, and written to a host that has none of it.
"""

# ruff: noqa: S603 - starts the programs it names

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass

from _host import LINK, SOCKET, clean_up, read_daemon_cpu

from kilo.dataplane.routes import ROUTE_PROTOCOL
from kilo.dataplane.wireguard_uapi import exchange

MEASURED = ("last_handshake_time", "rx_bytes", "tx_bytes", "protocol_version", "errno")
"""What a device says of itself beside what it was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the agent has written, in the words of those programs."""

    addresses: tuple[str, ...]
    mtu: str
    routes: str
    firewall: str
    device: bytes


def capture() -> State:
    """Of this network namespace."""
    routes = [
        f"{family} {line}"
        for family in ("-4", "-6")
        for line in call(
            "ip", family, "route", "show", "table", "all", "proto", str(ROUTE_PROTOCOL)
        )
    ]
    lines = exchange(SOCKET, b"get=1\n\n").decode().splitlines()
    kept = [line for line in lines if line and not line.startswith(MEASURED)]
    show = call("ip", "-o", "link", "show", LINK)[0].split()
    return State(
        addresses=tuple(
            line.split()[3] for line in call("ip", "-4", "-o", "address", "show", LINK)
        ),
        mtu=show[show.index("mtu") + 1],
        routes="".join(f"route add {line[3:]} proto {ROUTE_PROTOCOL}\n" for line in routes),
        firewall="\n".join(call("nft", "list", "table", "inet", "kilo")),
        device="\n".join(["set=1", *kept, "", ""]).encode(),
    )


def measure(state: State) -> dict[str, float]:
    """Seconds of CPU by which that state is written to a host with an empty device."""
    call("wireguard-go", LINK)
    try:
        call("ip", "link", "set", LINK, "mtu", state.mtu, "up")
        for address in state.addresses:
            call("ip", "address", "add", address, "dev", LINK)
        daemon, own = read_daemon_cpu(), time.thread_time()
        exchange(SOCKET, state.device)
        own, daemon = time.thread_time() - own, read_daemon_cpu() - daemon
        firewall = charge(("nft", "-f", "-"), state.firewall)
        routes = charge(("ip", "-batch", "-"), state.routes)
    finally:
        clean_up()
    return {
        "routes_cpu_seconds": routes,
        "firewall_cpu_seconds": firewall,
        "device_cpu_seconds": own,
        "daemon_cpu_seconds": daemon,
        "cpu_seconds": routes + firewall + own,
        "routes": state.routes.count("\n"),
        "peers": state.device.count(b"public_key="),
    }


def charge(command: Iterable[str], text: str) -> float:
    """Seconds of CPU that a program takes, fed with that."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(list(command), input=text, text=True, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def call(*command: str) -> list[str]:
    """The lines that a program prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
