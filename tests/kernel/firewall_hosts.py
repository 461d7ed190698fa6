"""Network namespaces joined as a pod, a router and the world, and firewalls to try on them.

``driver`` is for tests that every firewall driver has to pass.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from pathlib import Path

import pytest
from hypothesis import strategies as st

from kilo.dataplane.iptables import IPTables, Kind
from kilo.dataplane.nftables import NFTables
from kilo.mesh.model import IPNetwork
from kilo.mesh.state import Firewall

CLONE_NEWNET = 0x40000000
ANSWER_SECONDS = 60.0
"""How long a datagram between two namespaces may take on a busy machine."""

_libc = ctypes.CDLL(None, use_errno=True)


class Host:
    """One of several: a network namespace that is gone as soon as its descriptor is closed."""

    def __init__(self) -> None:
        with back_home():
            assert _libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            self.descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            run("ip link set lo up")

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        with back_home():
            assert _libc.setns(self.descriptor, CLONE_NEWNET) == 0
            yield

    def close(self) -> None:
        os.close(self.descriptor)


@contextmanager
def back_home() -> Iterator[None]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        yield
    finally:
        assert _libc.setns(home, CLONE_NEWNET) == 0
        os.close(home)


@contextmanager
def new_host() -> Iterator[Host]:
    host = Host()
    try:
        yield host
    finally:
        host.close()


def run(command: str, stdin: str = "") -> str:
    done = subprocess.run(
        command, shell=True, input=stdin, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def nets(*texts: str) -> frozenset[IPNetwork]:
    return frozenset(map(ip_network, texts))


EXAMPLE = Firewall(
    known=nets("10.2.0.0/24", "10.2.1.0/24", "10.4.0.1/32", "fd00::/64", "2001:db8::1/128"),
    masquerade_destinations=nets("192.168.7.0/24"),
    masquerade_sources=nets("10.5.0.1/32", "fd00:5::/64"),
    forward=nets("10.2.0.0/24", "192.168.0.1/32"),
    tunnel_sources=nets("192.168.0.2/32"),
    clamp_links=frozenset({"kilo0", "tunl0"}),
)

V4 = st.builds(
    lambda prefix, number: IPv4Network(((number >> (32 - prefix)) << (32 - prefix), prefix)),
    st.integers(1, 32),
    st.integers(0, 2**32 - 1),
)
V6 = st.builds(
    lambda prefix, number: IPv6Network(((number >> (128 - prefix)) << (128 - prefix), prefix)),
    st.integers(1, 128),
    st.integers(0, 2**128 - 1),
)
NEIGHBOURS = st.builds(
    lambda prefix, number: IPv4Network(((10 << 24) + (number << (32 - prefix)), prefix)),
    st.integers(28, 32),
    st.integers(0, 30),
)
"""Networks so close to each other that successive firewalls overlap and touch."""


def _disjoint(
    v4: list[IPv4Network], v6: list[IPv6Network], near: list[IPv4Network]
) -> frozenset[IPNetwork]:
    return frozenset([*collapse_addresses(v4 + near), *collapse_addresses(v6)])


def _lists(networks: st.SearchStrategy[IPv4Network]) -> st.SearchStrategy[list[IPv4Network]]:
    return st.lists(networks, max_size=6)


NETWORKS = st.builds(_disjoint, _lists(V4), st.lists(V6, max_size=6), _lists(NEIGHBOURS))
FIREWALLS = st.builds(
    Firewall,
    known=NETWORKS,
    masquerade_destinations=NETWORKS,
    masquerade_sources=NETWORKS,
    forward=NETWORKS,
    tunnel_sources=NETWORKS,
    clamp_links=st.frozensets(st.sampled_from(["kilo0", "tunl0", "flannel.1"])),
)

Driver = NFTables | IPTables
DRIVERS: dict[str, Callable[[], Driver]] = {
    "nftables": NFTables,
    "iptables-nft": lambda: IPTables(Kind.NFT),
    "iptables-legacy": lambda: IPTables(Kind.LEGACY),
}


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    """Each in turn."""
    return DRIVERS[request.param]()


# Packets

POD, ROUTER, WORLD, MESH = "10.2.0.2", "192.168.0.1", "192.168.0.9", "192.168.0.10"
POD6, ROUTER6, WORLD6, MESH6 = "fd00:2::2", "2001:db8::1", "2001:db8::9", "2001:db8::10"
PORT = 5000


@pytest.fixture
def three_hosts() -> Iterator[tuple[Host, Host, Host]]:
    """A pod, Kilo's router, in which the test runs, and a server with two addresses."""
    with ExitStack() as stack:
        pod, router, server = (stack.enter_context(new_host()) for _ in range(3))
        stack.enter_context(router.entered())
        _connect(router, "to-pod", pod, ("10.2.0.1/24", "fd00:2::1/64"), (POD, POD6))
        _connect(router, "to-world", server, (ROUTER + "/24", ROUTER6 + "/64"), (WORLD, WORLD6))
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path(f"/proc/sys/net/{name}").write_text("1")
        with pod.entered():
            run("ip route add default via 10.2.0.1 && ip -6 route add default via fd00:2::1")
        with server.entered():
            run(f"ip address add {MESH}/24 dev eth0 && ip address add {MESH6}/64 dev eth0 nodad")
            run(f"ip route add 10.2.0.0/24 via {ROUTER}")
            run(f"ip -6 route add fd00:2::/64 via {ROUTER6}")
        yield pod, router, server


def _connect(
    router: Host,
    link: str,
    other: Host,
    own: tuple[str, str],
    theirs: tuple[str, str],
) -> None:
    run(f"ip link add {link} type veth peer name eth0 netns {other.path}")
    run(f"ip address add {own[0]} dev {link} && ip address add {own[1]} dev {link} nodad")
    run(f"ip link set {link} up")
    with other.entered():
        run(f"ip address add {theirs[0]}/24 dev eth0")
        run(f"ip address add {theirs[1]}/64 dev eth0 nodad && ip link set eth0 up")


def listen(server: Host, address: str) -> socket.socket:
    with server.entered():
        receiver = new_socket(address)
        receiver.bind((address, PORT))
        return receiver


def new_socket(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.settimeout(0)
    return made


async def source_seen(pod: Host, server: Host, address: str) -> str:
    """The source address with which a datagram from the pod arrives at an address of the server."""
    with pod.entered():
        sender = new_socket(address)
    with sender, listen(server, address) as receiver:
        return await send(sender, receiver, address)


async def send(
    sender: socket.socket, receiver: socket.socket, address: str, text: bytes = b"hello"
) -> str:
    """Send it; the source of what arrives, which must be this and nothing sent before."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(ANSWER_SECONDS):
        await asyncio.sleep(0)  # both calls below return at once: let other tasks run, too
        await loop.sock_sendto(sender, text, (address, PORT))
        heard, source = await loop.sock_recvfrom(receiver, 100)
    assert heard == text
    return str(source[0])
