"""The nftables driver against the real kernel, in network namespaces of its own."""

import asyncio
import ctypes
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kilo.dataplane.nftables import FEW_REMOVALS, NOT_OURS, TABLE, NFTables
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.model import IPNetwork
from kilo.mesh.state import Firewall

CLONE_NEWNET = 0x40000000
ANSWER_SECONDS = 20.0
"""How long a datagram between two namespaces may take on a busy machine."""

_libc = ctypes.CDLL(None, use_errno=True)


class Host:
    """One of several: a network namespace that is gone as soon as its descriptor is closed."""

    def __init__(self) -> None:
        with _back_home():
            assert _libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            self.descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            run("ip link set lo up")

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        with _back_home():
            assert _libc.setns(self.descriptor, CLONE_NEWNET) == 0
            yield

    def close(self) -> None:
        os.close(self.descriptor)


@contextmanager
def _back_home() -> Iterator[None]:
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


def table_handle() -> int:
    """Changes when the table is made anew, stays when only elements change."""
    listing = json.loads(run(f"nft -j list table inet {TABLE}"))["nftables"]
    return int(next(entry["table"]["handle"] for entry in listing if "table" in entry))


def nets(*texts: str) -> frozenset[IPNetwork]:
    return frozenset(map(ip_network, texts))


EXAMPLE = Firewall(
    known=nets("10.2.0.0/24", "10.2.1.0/24", "10.4.0.1/32", "fd00::/64", "2001:db8::1/128"),
    masquerade_destinations=nets("192.168.7.0/24"),
    masquerade_sources=nets("10.5.0.1/32", "fd00:5::/64"),
    forward=nets("10.2.0.0/24", "192.168.0.1/32"),
)


async def make_example() -> NFTables:
    nft = NFTables()
    await nft.apply(Change(new=EXAMPLE))
    return nft


# What is written is what is read


@pytest.mark.usefixtures("netns")
async def test_without_a_table_there_is_no_firewall() -> None:
    assert await NFTables().read() is None


@pytest.mark.usefixtures("netns")
async def test_what_was_written_is_read_back() -> None:
    nft = await make_example()
    assert await nft.read() == EXAMPLE


@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize(
    "networks",
    [
        pytest.param(nets("10.2.0.0/24", "10.2.1.0/24"), id="halves of one network"),
        pytest.param(nets("10.2.0.0/32", "10.2.0.1/32", "10.2.0.2/31"), id="neighbouring hosts"),
        pytest.param(nets("0.0.0.0/0", "::/0"), id="everything"),
        pytest.param(nets("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"), id="everything halved"),
        pytest.param(nets("255.255.255.255/32", "ffff::/16"), id="the end of the space"),
        pytest.param(nets("0.0.0.0/32", "::/128"), id="the beginning of the space"),
        pytest.param(nets("fd00::/128", "fd00::1/128", "fd00::2/127"), id="IPv6 neighbours"),
        pytest.param(nets("224.0.0.0/4", "192.0.0.0/3"), id="adjacent ones of different size"),
    ],
)
async def test_the_kernel_keeps_networks_apart_that_touch(networks: frozenset[IPNetwork]) -> None:
    nft, firewall = NFTables(), Firewall(known=networks, forward=networks)
    await nft.apply(Change(new=firewall))
    assert await nft.read() == firewall


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
)


@pytest.mark.usefixtures("netns")
@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # examples follow one another
)
@given(firewalls=st.lists(FIREWALLS, min_size=2, max_size=4))
def test_from_any_firewall_to_any_other_the_kernel_holds_the_other(
    firewalls: list[Firewall],
) -> None:
    async def follow() -> None:
        nft = NFTables()
        for firewall in firewalls:
            await nft.apply(Change(old=await nft.read(), new=firewall))
            assert await nft.read() == firewall

    asyncio.run(follow())


# Least change


@pytest.mark.usefixtures("netns")
async def test_a_network_more_or_less_leaves_the_table_and_its_rules_in_place() -> None:
    nft = await make_example()
    handle = table_handle()
    fewer = Firewall(known=nets("10.2.0.0/23", "fd00::/63"), forward=EXAMPLE.forward)
    await nft.apply(Change(old=EXAMPLE, new=fewer))
    await nft.apply(Change(old=fewer, new=EXAMPLE))
    assert await nft.read() == EXAMPLE
    assert table_handle() == handle


@pytest.mark.usefixtures("netns")
async def test_five_thousand_networks_of_each_family_come_and_go() -> None:
    many = Firewall(
        known=frozenset(
            network
            for i in range(5000)
            for network in (
                IPv4Network(((10 << 24) + (i << 8), 24)),
                IPv6Network(((0xFD00 << 112) + (i << 64), 64)),
            )
        )
    )
    nft = await make_example()
    await nft.apply(Change(old=EXAMPLE, new=many))
    assert await nft.read() == many
    await nft.apply(Change(old=many, new=EXAMPLE))
    assert await nft.read() == EXAMPLE


@pytest.mark.usefixtures("netns")
async def test_many_removals_at_once_leave_exactly_the_rest() -> None:
    hosts = [ip_network(f"10.2.0.{i}/32") for i in range(4 * FEW_REMOVALS)]
    all_hosts, few = Firewall(known=frozenset(hosts)), Firewall(known=frozenset(hosts[:5]))
    nft = NFTables()
    await nft.apply(Change(new=all_hosts))
    await nft.apply(Change(old=all_hosts, new=few))
    assert await nft.read() == few


# What others do


@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize(
    "command",
    [
        "nft flush chain inet kilo postrouting",
        "nft delete chain inet kilo forward",
        "nft add rule inet kilo forward drop",
        "nft insert rule inet kilo postrouting ip saddr 10.0.0.0/8 masquerade",
        "nft add set inet kilo other '{ type ipv4_addr; }'",
        "nft add chain inet kilo other",
        "nft add chain inet kilo forward '{ policy drop; }'",
        "nft add element inet kilo known4 '{ 10.9.0.1-10.9.0.6 }'",
        "nft delete element inet kilo local4 '{ 127.0.0.0/8 }'",
        "nft add table inet kilo '{ flags dormant; }'",
        "nft delete rule inet kilo postrouting handle {first_rule}",
        "nft replace rule inet kilo postrouting handle {first_rule} oifname lo masquerade",
        "nft replace rule inet kilo postrouting handle {first_rule} oifname lo counter return",
    ],
)
async def test_a_table_changed_by_hand_is_seen_and_put_right(command: str) -> None:
    nft = await make_example()
    rules = json.loads(run("nft -j list chain inet kilo postrouting"))["nftables"]
    first_rule = next(entry["rule"]["handle"] for entry in rules if "rule" in entry)
    run(command.replace("{first_rule}", str(first_rule)))

    found = await nft.read()
    assert found == NOT_OURS
    await nft.apply(Change(old=found, new=EXAMPLE))
    assert await nft.read() == EXAMPLE


@pytest.mark.usefixtures("netns")
async def test_a_network_added_or_removed_by_hand_is_seen() -> None:
    nft = await make_example()
    run("nft add element inet kilo known4 '{ 10.9.0.0/24 }'")
    run("nft delete element inet kilo known6 '{ fd00::/64 }'")
    found = await nft.read()
    assert found is not None
    assert found.known == EXAMPLE.known - nets("fd00::/64") | nets("10.9.0.0/24")


@pytest.mark.usefixtures("netns")
async def test_an_addition_replaces_a_table_left_by_a_crash() -> None:
    run("nft -f -", "table inet kilo { chain input { type filter hook input priority 0; drop; }; }")
    nft = await make_example()
    assert await nft.read() == EXAMPLE


@pytest.mark.usefixtures("netns")
async def test_a_table_that_vanished_meanwhile_stops_neither_change_nor_removal() -> None:
    nft = await make_example()
    run("nft delete table inet kilo")
    await nft.apply(Change(old=EXAMPLE))
    assert await nft.read() is None
    smaller = Firewall(known=EXAMPLE.known)
    await nft.apply(Change(old=EXAMPLE, new=smaller))
    assert await nft.read() == smaller


@pytest.mark.usefixtures("netns")
async def test_tables_of_others_are_left_as_they_are() -> None:
    run("nft -f -", "table inet kilo2 { chain c { type nat hook postrouting priority 100; }; }")
    run("nft -f -", "table ip kilo { set known4 { type ipv4_addr; elements = { 10.2.0.1 } }; }")
    before = run("nft list ruleset")
    nft = await make_example()
    await nft.apply(Change(old=EXAMPLE))
    assert await nft.read() is None
    assert run("nft list ruleset") == before


@pytest.mark.usefixtures("netns")
async def test_a_refused_change_leaves_the_table_as_it_was_and_says_why() -> None:
    nft = await make_example()
    overlapping = Firewall(known=nets("10.2.0.0/16", "10.2.0.0/24"))
    with pytest.raises(DataplaneError, match=r"^nft: .*[Ii]nterval"):
        await nft.apply(Change(old=EXAMPLE, new=overlapping))
    assert await nft.read() == EXAMPLE


# Packets

POD, ROUTER, WORLD, MESH = "10.2.0.2", "192.168.0.1", "192.168.0.9", "192.168.0.10"
POD6, ROUTER6, WORLD6, MESH6 = "fd00:2::2", "2001:db8::1", "2001:db8::9", "2001:db8::10"
PORT = 5000

MASQUERADING = Firewall(
    known=nets("192.168.0.10/32", "2001:db8::10/128"),
    masquerade_sources=nets("10.2.0.0/24", "fd00:2::/64"),
)


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
        return await _send(sender, receiver, address)


async def _send(sender: socket.socket, receiver: socket.socket, address: str) -> str:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(ANSWER_SECONDS):
        await asyncio.sleep(0)  # both calls below return at once: let other tasks run, too
        await loop.sock_sendto(sender, b"hello", (address, PORT))
        _, source = await loop.sock_recvfrom(receiver, 100)
    return str(source[0])


@pytest.mark.parametrize(
    ("destination", "source"),
    [
        pytest.param(WORLD, ROUTER, id="the world sees the router"),
        pytest.param(MESH, POD, id="the mesh sees the pod"),
        pytest.param(WORLD6, ROUTER6, id="the IPv6 world sees the router"),
        pytest.param(MESH6, POD6, id="the IPv6 mesh sees the pod"),
    ],
)
async def test_a_masqueraded_source_shows_itself_only_to_known_destinations(
    three_hosts: tuple[Host, Host, Host], destination: str, source: str
) -> None:
    pod, _, server = three_hosts
    await NFTables().apply(Change(new=MASQUERADING))
    assert await source_seen(pod, server, destination) == source


async def test_what_goes_to_a_masqueraded_destination_bears_the_routers_address(
    three_hosts: tuple[Host, Host, Host],
) -> None:
    pod, _, server = three_hosts
    printer = Firewall(masquerade_destinations=nets(f"{WORLD}/32"))
    await NFTables().apply(Change(new=printer))
    assert await source_seen(pod, server, WORLD) == ROUTER
    assert await source_seen(pod, server, MESH) == POD


async def test_what_a_host_says_to_itself_is_not_masqueraded(
    three_hosts: tuple[Host, Host, Host],
) -> None:
    _, router, _ = three_hosts
    everything = Firewall(masquerade_sources=nets("0.0.0.0/0"))
    await NFTables().apply(Change(new=everything))
    with new_socket(ROUTER) as sender, listen(router, "10.2.0.1") as receiver:
        sender.bind((ROUTER, 0))
        assert await _send(sender, receiver, "10.2.0.1") == ROUTER


async def test_while_other_networks_come_and_go_no_packet_escapes_unmasqueraded(
    three_hosts: tuple[Host, Host, Host],
) -> None:
    pod, _, server = three_hosts
    nft = NFTables()
    others = nets(*(f"10.9.{i}.0/24" for i in range(4 * FEW_REMOVALS)))
    more = replace(MASQUERADING, masquerade_sources=MASQUERADING.masquerade_sources | others)
    await nft.apply(Change(new=MASQUERADING))
    with pod.entered():
        senders = [new_socket(WORLD) for _ in range(200)]

    async def come_and_go() -> None:
        for _ in range(10):
            await nft.apply(Change(old=MASQUERADING, new=more))
            await nft.apply(Change(old=more, new=MASQUERADING))

    with listen(server, WORLD) as receiver:
        async with asyncio.TaskGroup() as group:
            changing = group.create_task(come_and_go())
            seen = [await _send(sender, receiver, WORLD) for sender in senders]
            while not changing.done():
                seen.append(await _send(senders[-1], receiver, WORLD))
    for sender in senders:
        sender.close()
    assert set(seen) == {ROUTER}
