"""Two hosts with a tunnel between them, and the words in which tests speak of its settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_network

from kilo.dataplane.wireguard import WireGuard
from kilo.keyfile import generate_private_key, public_key
from kilo.mesh.diff import Change
from kilo.mesh.keys import PrivateKey, PublicKey
from kilo.mesh.model import Endpoint, IPNetwork
from kilo.mesh.state import PeerStats, Resource, WireGuardDevice, WireGuardPeer
from tests.kernel.wireguard_hosts import Host, connect_hosts, kernel_has_wireguard, wait_for

LINK = "kilo0"
PORT = 51820
WANTED = "KILO_TEST_WIREGUARD"
"""The environment says ``kernel`` where the tests shall meet the kernel's own WireGuard."""


def networks(*texts: str) -> frozenset[IPNetwork]:
    return frozenset(ip_network(text) for text in texts)


def make_peer(*allowed_ips: str, key: PublicKey | None = None, **fields: object) -> WireGuardPeer:
    """A peer with a key of its own unless one is given."""
    peer = WireGuardPeer(
        link=LINK,
        public_key=key or public_key(generate_private_key()),
        allowed_ips=networks(*allowed_ips),
    )
    return replace(peer, **fields)  # type: ignore[arg-type]  # the caller names WireGuardPeer's


def add(*resources: Resource) -> list[Change]:
    return [Change(new=resource) for resource in resources]


def remove(*resources: Resource) -> list[Change]:
    return [Change(old=resource) for resource in resources]


@dataclass
class Side:
    """One of the two hosts: its tunnel and what it is set to."""

    host: Host
    private_key: PrivateKey
    wireguard: WireGuard
    number: int

    @property
    def key(self) -> PublicKey:
        return public_key(self.private_key)

    def start(self) -> None:
        """The interface, up, with an address."""
        if os.environ.get(WANTED) != "kernel" and kernel_has_wireguard():
            start_userspace_first(self.host)
        self.host.run(self.wireguard.ensure())
        self.host.sh(
            f"ip address add 10.4.0.{self.number}/16 dev {LINK} &&"
            f"ip address add fd00:4::{self.number}/64 dev {LINK} nodad && ip link set {LINK} up"
        )

    def apply(self, *steps: Change) -> None:
        self.host.run(self.wireguard.apply(steps))

    def read(self) -> tuple[WireGuardDevice | None, frozenset[WireGuardPeer]]:
        return self.host.run(self.wireguard.read())

    def device(self) -> WireGuardDevice:
        device, _ = self.read()
        assert device is not None
        return device

    def peers(self) -> dict[PublicKey, WireGuardPeer]:
        return {peer.public_key: peer for peer in self.read()[1]}

    def stats(self) -> dict[PublicKey, PeerStats]:
        return dict(self.host.run(self.wireguard.observe()))

    def fingerprint(self) -> bytes | None:
        return self.host.run(self.wireguard.fingerprint())


def start_userspace_first(host: Host) -> None:
    """wireguard-go, running before the driver looks, on a kernel that could do without it."""
    host.sh(f"wireguard-go {LINK} >&- 2>&-")
    wait_for(lambda: not host.sh(f"wg show {LINK} >/dev/null 2>&1 || echo no"))


@dataclass
class Pair:
    """Both sides, and what the left one says of the right one."""

    left: Side
    right: Side
    peer: WireGuardPeer


@contextmanager
def open_side(number: int) -> Iterator[Side]:
    """A host that is to have a tunnel; whatever it has in the end is taken away."""
    key = generate_private_key()
    with Host(f"host{number}") as host:
        side = Side(host, key, WireGuard(LINK, key), number)
        try:
            yield side
        finally:
            host.run(side.wireguard.delete())


@contextmanager
def open_pair() -> Iterator[Pair]:
    """A tunnel in use: the left host reaches 10.4.0.2 and 10.2.2.1, .2 and fd00:2::1 behind it."""
    with open_side(1) as left, open_side(2) as right:
        connect_hosts(left.host, right.host)
        for side in (left, right):
            side.start()
            device = WireGuardDevice(link=LINK, public_key=side.key, listen_port=PORT)
            side.apply(Change(old=side.device(), new=device))
        peer = make_peer(
            "10.4.0.2/32",
            "10.2.2.1/32",
            "10.2.2.2/32",
            "fd00:2::/64",
            key=right.key,
            endpoint=Endpoint(host="192.168.0.2", port=PORT),
        )
        right.apply(*add(make_peer("10.4.0.1/32", "fd00:4::1/128", key=left.key)))
        left.apply(*add(peer))
        left.host.sh(f"ip route add 10.2.0.0/16 dev {LINK} && ip route add fd00:2::/64 dev {LINK}")
        for address in ("10.2.2.1/32", "10.2.2.2/32", "fd00:2::1/128"):
            right.host.sh(f"ip address add {address} dev lo nodad")
        yield Pair(left, right, peer)
