"""How long a device with 1,000 peers takes: to set, to read, to watch, to change a little.

Runs as root, in a network and a mount namespace of its own; prints one line a measurement.
The WireGuard measured is the kernel's where it has one, else wireguard-go.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_network

from kilo.dataplane.links import find_link
from kilo.dataplane.nlsocket import open_socket
from kilo.dataplane.wireguard import WireGuard
from kilo.keyfile import generate_private_key, public_key
from kilo.mesh.diff import Change
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint
from kilo.mesh.state import WireGuardDevice, WireGuardPeer

LINK = "kilo0"
PEERS = 1000
INSIDE = "inside"
ENTER = (
    "mkdir -p /run/wireguard && mount -t tmpfs tmpfs /run/wireguard && ip link set lo up && "
    'exec "$@"'
)


def enter_namespaces() -> None:
    """Start this program again where nothing else is."""
    command = [sys.executable, __file__, INSIDE]
    os.execvp(  # noqa: S606 - the same program once more, no input of anybody's
        "unshare",  # noqa: S607 - wherever util-linux is
        ["unshare", "--net", "--mount", "sh", "-c", ENTER, "sh", *command],
    )


def make_peers() -> list[WireGuardPeer]:
    """Peers as a big mesh has them: an endpoint, a pod subnet, a tunnel and an internal address."""
    return [
        WireGuardPeer(
            link=LINK,
            public_key=public_key(generate_private_key()),
            allowed_ips=frozenset(
                map(
                    ip_network,
                    (
                        f"10.{16 + number // 256}.{number % 256}.0/24",
                        f"10.4.{number // 256}.{number % 256}/32",
                        f"192.168.{number // 256}.{number % 256}/32",
                    ),
                )
            ),
            endpoint=Endpoint(host=f"198.51.{number // 256}.{number % 256}", port=51820),
        )
        for number in range(PEERS)
    ]


def report(what: str, value: str) -> None:
    """One line on standard output."""
    sys.stdout.write(f"{what:40} {value}\n")


async def measure(what: str, work: Callable[[], Awaitable[object]], times: int = 1) -> None:
    """Print the shortest time that the work took."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        await work()
        took.append(time.perf_counter() - start)
    report(what, f"{min(took) * 1000:9.1f} ms")


async def run() -> None:
    """All measurements, on one device."""
    key = generate_private_key()
    wireguard = WireGuard(LINK, key)
    await measure("interface made", wireguard.ensure)
    try:
        with open_socket() as netlink:
            link = find_link(netlink, LINK)
        report("kind of interface", f"{link.kind if link else 'none':>12}")
        await measure_device(wireguard, public_key(key))
    finally:
        await measure("interface deleted", wireguard.delete)


async def measure_device(wireguard: WireGuard, key: PublicKey) -> None:
    """What an agent does with a device, at its first pass and at later ones."""
    device, _ = await wireguard.read()
    assert isinstance(device, WireGuardDevice)  # noqa: S101 - it was just made
    peers = make_peers()
    wanted = replace(device, public_key=key, listen_port=51820)
    first = [Change(old=device, new=wanted), *(Change(new=peer) for peer in peers)]
    await measure(f"{PEERS} peers set", lambda: wireguard.apply(first))
    await measure(f"{PEERS} peers read, first time", wireguard.read)
    await measure(f"{PEERS} peers read", wireguard.read, 5)
    await measure(f"{PEERS} peers observed", wireguard.observe, 5)
    await measure(f"{PEERS} peers fingerprinted", wireguard.fingerprint, 5)
    less = replace(peers[0], allowed_ips=frozenset(list(peers[0].allowed_ips)[:1]))
    one = [Change(old=peers[0], new=less)]
    await measure("one allowed IP revoked", lambda: wireguard.apply(one))
    gone = [Change(old=peer) for peer in peers]
    await measure(f"{PEERS} peers removed", lambda: wireguard.apply(gone))


if __name__ == "__main__":
    if sys.argv[1:] == [INSIDE]:
        asyncio.run(run())
    else:
        enter_namespaces()
