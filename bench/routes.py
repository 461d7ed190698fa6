"""How many times faster than pyroute2, one message at a time, our batches of routes are.

    sudo python bench/routes.py [ROUTES]

Runs in a network namespace of its own and leaves nothing behind. Ratios are to be compared, not
seconds: machines differ.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Awaitable
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2 import AsyncIPRoute

from kilo.dataplane.nlsocket import run_with_socket
from kilo.dataplane.ownroutes import OwnRoutes
from kilo.dataplane.routes import apply_routes
from kilo.mesh.diff import Change
from kilo.mesh.state import Route

CLONE_NEWNET = 0x40000000
LINK = "bench0"
TABLE = 77  # pyroute2's routes go here, ours into the main table


def enter_namespace() -> None:
    """A fresh namespace with one link, for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for command in (
        f"ip link add {LINK} type veth peer name bench1",
        "ip link set bench1 up",
        f"ip link set {LINK} up",
        f"ip address add 10.4.0.1/16 dev {LINK}",
    ):
        subprocess.run(command.split(), check=True)  # noqa: S603  # the words above


def make_routes(count: int, gateway: str) -> list[Route]:
    """Distinct /24s via one gateway."""
    first = int(ip_address("10.16.0.0"))
    return [
        Route(
            destination=ip_network((first + 256 * number, 24)),
            link=LINK,
            gateway=ip_address(gateway),
            onlink=True,
        )
        for number in range(count)
    ]


async def measure(work: Awaitable[object]) -> float:
    """Seconds."""
    started_at = time.perf_counter()
    await work
    return time.perf_counter() - started_at


async def apply(changes: list[Change]) -> None:
    """All of them, in one batch."""
    failures = await run_with_socket(partial(apply_routes, steps=changes))
    if failures:
        raise ExceptionGroup("routes", failures)


async def call_pyroute2(ipr: Any, command: str, routes: list[Route]) -> None:
    """One message and its answer after the other."""
    (index,) = await ipr.link_lookup(ifname=LINK)
    for route in routes:
        await ipr.route(
            command,
            dst=str(route.destination),
            gateway=str(route.gateway),
            oif=index,
            table=TABLE,
        )


async def dump_pyroute2(ipr: Any) -> int:
    """How many it lists."""
    return len([route async for route in await ipr.get_routes(family=2, table=TABLE)])


async def run(count: int) -> None:
    """Print a row an operation: ours, pyroute2's, and the ratio."""
    routes, others = make_routes(count, "10.4.0.2"), make_routes(count, "10.4.0.3")
    async with AsyncIPRoute() as ipr:
        rows = [
            (
                "add",
                await measure(apply([Change(new=route) for route in routes])),
                await measure(call_pyroute2(ipr, "add", routes)),
            ),
            (
                "list",
                await measure(run_with_socket(OwnRoutes().read)),
                await measure(dump_pyroute2(ipr)),
            ),
            (
                "replace",
                await measure(
                    apply([Change(old=a, new=b) for a, b in zip(routes, others, strict=True)])
                ),
                await measure(call_pyroute2(ipr, "replace", others)),
            ),
            (
                "remove",
                await measure(apply([Change(old=route) for route in others])),
                await measure(call_pyroute2(ipr, "del", others)),
            ),
        ]
    print(f"{count} routes      ours  routes/s   pyroute2  routes/s   times faster")  # noqa: T201  # a program's output
    for name, ours, theirs in rows:
        print(  # noqa: T201  # a program's output
            f"{name:8} {ours * 1e3:9.1f} ms {count / ours:9.0f} {theirs * 1e3:7.0f} ms"
            f" {count / theirs:9.0f} {theirs / ours:14.0f}"
        )


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("bench/routes.py needs root, for a network namespace of its own")
    enter_namespace()
    asyncio.run(run(int(sys.argv[1]) if len(sys.argv) > 1 else 3000))
