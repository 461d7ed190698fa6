"""What every firewall driver must do, on the real kernel: nftables and iptables of both kinds."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kilo.dataplane.iptables import IPTables, Kind
from kilo.dataplane.nftables import FEW_REMOVALS
from kilo.mesh.diff import Change
from kilo.mesh.host import ForwardDrop
from kilo.mesh.model import IPNetwork
from kilo.mesh.state import Firewall
from tests.kernel.firewall_hosts import (
    EXAMPLE,
    FIREWALLS,
    MESH,
    MESH6,
    POD,
    POD6,
    PORT,
    ROUTER,
    ROUTER6,
    WORLD,
    WORLD6,
    Driver,
    Host,
    driver,
    listen,
    nets,
    new_socket,
    run,
    send,
    source_seen,
    three_hosts,
)

__all__ = ["driver", "three_hosts"]  # fixtures

MASQUERADING = Firewall(
    known=nets("192.168.0.10/32", "2001:db8::10/128"),
    masquerade_sources=nets("10.2.0.0/24", "fd00:2::/64"),
)
FORWARDING = Firewall(forward=nets("10.2.0.0/24", "fd00:2::/64"))
ThreeHosts = tuple[Host, Host, Host]

# What is written is what is read


@pytest.mark.usefixtures("netns")
async def test_where_nothing_was_written_there_is_no_firewall(driver: Driver) -> None:
    assert await driver.read() is None


@pytest.mark.usefixtures("netns")
async def test_what_was_written_is_read_back(driver: Driver) -> None:
    await driver.apply(Change(new=EXAMPLE))
    assert await driver.read() == EXAMPLE


@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize(
    "networks",
    [
        pytest.param(nets("10.2.0.0/24", "10.2.1.0/24"), id="halves of one network"),
        pytest.param(nets("10.2.0.0/32", "10.2.0.1/32", "10.2.0.2/31"), id="neighbouring hosts"),
        pytest.param(nets("0.0.0.0/0", "::/0"), id="everything"),
        pytest.param(nets("0.0.0.0/1", "8000::/1"), id="half of everything"),
        pytest.param(nets("255.255.255.255/32", "ffff::/16"), id="the end of the space"),
        pytest.param(nets("0.0.0.0/32", "::/128"), id="the beginning of the space"),
        pytest.param(nets("fd00::/128", "fd00::1/128", "fd00::2/127"), id="IPv6 neighbours"),
        pytest.param(nets("224.0.0.0/4", "192.0.0.0/4"), id="adjacent ones"),
    ],
)
async def test_networks_that_touch_are_kept_apart(
    driver: Driver, networks: frozenset[IPNetwork]
) -> None:
    firewall = Firewall(known=networks, forward=networks)
    await driver.apply(Change(new=firewall))
    assert await driver.read() == firewall


@pytest.mark.usefixtures("netns")
def test_from_any_firewall_to_any_other_the_kernel_holds_the_other(driver: Driver) -> None:
    # The legacy library takes half a second to load, for each change of the rules.
    examples = 3 if isinstance(driver, IPTables) and driver.kind is Kind.LEGACY else 20

    async def follow(firewalls: list[Firewall]) -> None:
        for firewall in firewalls:
            await driver.apply(Change(old=await driver.read(), new=firewall))
            assert await driver.read() == firewall

    @settings(
        deadline=None,
        max_examples=examples,
        suppress_health_check=list(HealthCheck),  # examples follow one another, slowly
    )
    @given(firewalls=st.lists(FIREWALLS, min_size=2, max_size=4))
    def follow_any(firewalls: list[Firewall]) -> None:
        asyncio.run(follow(firewalls))

    follow_any()


@pytest.mark.usefixtures("netns")
async def test_five_thousand_networks_of_each_family_come_and_go(driver: Driver) -> None:
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
    await driver.apply(Change(new=EXAMPLE))
    await driver.apply(Change(old=EXAMPLE, new=many))
    assert await driver.read() == many
    await driver.apply(Change(old=many, new=EXAMPLE))
    assert await driver.read() == EXAMPLE


@pytest.mark.usefixtures("netns")
async def test_others_rules_are_to_the_byte_what_they_were_before(driver: Driver) -> None:
    install_others()
    before = list_everything()
    await driver.apply(Change(new=EXAMPLE))
    during = list_everything()
    await driver.apply(Change(old=EXAMPLE, new=replace(EXAMPLE, forward=frozenset())))
    await driver.apply(Change(old=EXAMPLE))
    assert list_everything() == before
    assert await driver.read() is None
    theirs = [line for line in during.splitlines() if "kilo" not in line.lower()]
    # Nothing of theirs is missing meanwhile, or in another order.
    rest = iter(theirs)
    assert all(line in rest for line in before.splitlines() if line.startswith(("-A", ":")))


def install_others() -> None:
    """Docker's and a kubelet's of the nf_tables kind, a legacy program's, and plain nftables."""
    run(
        "iptables-nft-restore",
        "*filter\n:FORWARD DROP\n:DOCKER-USER -\n-A FORWARD -j DOCKER-USER\n"
        "-A FORWARD -o docker0 -j ACCEPT\n-A DOCKER-USER -j RETURN\nCOMMIT\n"
        "*nat\n:KUBE-POSTROUTING -\n-A POSTROUTING -j KUBE-POSTROUTING\n"
        "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\nCOMMIT\n",
    )
    for family in ("ip", "ip6"):
        # Loading a table is for ever; so these are all loaded before.
        run(f"{family}tables-legacy -t nat -L; {family}tables-legacy -t mangle -L")
        run(f"{family}tables-legacy -A FORWARD -p tcp --dport 53 -j REJECT --reject-with tcp-reset")
        run(f"{family}tables-legacy -t mangle -A POSTROUTING -m comment --comment 'a b' -j ACCEPT")
    run("nft -f -", "table inet kilo2 { chain c { type nat hook postrouting priority 100; }; }")
    run("nft -f -", "table ip kilo { set known4 { type ipv4_addr; elements = { 10.2.0.1 } }; }")
    run("ipset restore", "create other hash:net\nadd other 10.2.0.0/24\n")


def list_everything() -> str:
    saves = "iptables-nft-save ip6tables-nft-save iptables-legacy-save ip6tables-legacy-save"
    listings = [run("nft list ruleset"), run("ipset save"), *(run(save) for save in saves.split())]
    return "".join(
        f"{line}\n"
        for listing in listings
        for line in listing.splitlines()
        if not line.startswith("#")
    )


# Packets


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
    driver: Driver, three_hosts: ThreeHosts, destination: str, source: str
) -> None:
    pod, _, server = three_hosts
    await driver.apply(Change(new=MASQUERADING))
    assert await source_seen(pod, server, destination) == source


async def test_what_goes_to_a_masqueraded_destination_bears_the_routers_address(
    driver: Driver, three_hosts: ThreeHosts
) -> None:
    pod, _, server = three_hosts
    printer = Firewall(masquerade_destinations=nets(f"{WORLD}/32"))
    await driver.apply(Change(new=printer))
    assert await source_seen(pod, server, WORLD) == ROUTER
    assert await source_seen(pod, server, MESH) == POD


async def test_what_a_host_says_to_itself_is_not_masqueraded(
    driver: Driver, three_hosts: ThreeHosts
) -> None:
    _, router, _ = three_hosts
    everything = Firewall(masquerade_sources=nets("0.0.0.0/0"))
    await driver.apply(Change(new=everything))
    with new_socket(ROUTER) as sender, listen(router, "10.2.0.1") as receiver:
        sender.bind((ROUTER, 0))
        assert await send(sender, receiver, "10.2.0.1") == ROUTER


async def test_while_other_networks_come_and_go_no_packet_escapes_unmasqueraded(
    driver: Driver, three_hosts: ThreeHosts
) -> None:
    pod, _, server = three_hosts
    others = nets(*(f"10.9.{i}.0/24" for i in range(4 * FEW_REMOVALS)))
    more = replace(MASQUERADING, masquerade_sources=MASQUERADING.masquerade_sources | others)
    await driver.apply(Change(new=MASQUERADING))
    with pod.entered():
        senders = [new_socket(WORLD) for _ in range(200)]

    async def come_and_go() -> None:
        for _ in range(10):
            await driver.apply(Change(old=MASQUERADING, new=more))
            await driver.apply(Change(old=more, new=MASQUERADING))

    with listen(server, WORLD) as receiver:
        async with asyncio.TaskGroup() as group:
            changing = group.create_task(come_and_go())
            seen = [await send(sender, receiver, WORLD) for sender in senders]
            while not changing.done():
                seen.append(await send(senders[-1], receiver, WORLD))
    for sender in senders:
        sender.close()
    assert set(seen) == {ROUTER}


@pytest.mark.parametrize("destination", [WORLD, WORLD6])
@pytest.mark.parametrize("drop", ["policy", "last rule"])
@pytest.mark.parametrize("kind", Kind)
async def test_with_forward_rules_the_mesh_passes_where_iptables_drops(
    three_hosts: ThreeHosts, kind: Kind, drop: str, destination: str
) -> None:
    pod, _, server = three_hosts
    drop_forwarded(kind, drop)
    with pod.entered():
        sender = new_socket(destination)
    with sender, listen(server, destination) as receiver:
        sender.sendto(b"before", (destination, PORT))
        await IPTables(kind).apply(Change(new=FORWARDING))
        await send(sender, receiver, destination, b"after")


def drop_forwarded(kind: Kind, how: str) -> None:
    for family in ("ip", "ip6"):
        rule = "-P FORWARD DROP" if how == "policy" else "-A FORWARD -j REJECT"
        run(f"{family}tables-{kind} {rule}")


@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize("drop", ["policy", "last rule"])
@pytest.mark.parametrize("kind", Kind)
async def test_the_chain_that_drops_is_named_and_whether_our_accept_would_win(
    driver: Driver, kind: Kind, drop: str
) -> None:
    assert await driver.find_forward_drops() == ()
    drop_forwarded(kind, drop)
    legacy = "legacy " if kind is Kind.LEGACY else ""
    same = isinstance(driver, IPTables) and driver.kind is kind
    assert await driver.find_forward_drops() == (
        ForwardDrop(
            chain=f"chain FORWARD of table {legacy}ip filter",
            families=frozenset({4}),
            overruled=same,
        ),
        ForwardDrop(
            chain=f"chain FORWARD of table {legacy}ip6 filter",
            families=frozenset({6}),
            overruled=same,
        ),
    )


@pytest.mark.usefixtures("netns")
async def test_a_chain_of_plain_nftables_that_drops_is_overruled_by_nobody(driver: Driver) -> None:
    run(
        "nft -f -",
        "table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10;\n"
        "ct state established accept; reject with icmpx admin-prohibited; }; }",
    )
    await driver.apply(Change(new=EXAMPLE))
    (drop,) = await driver.find_forward_drops()
    assert drop.chain == "chain filter_FORWARD of table inet firewalld"
    assert drop.families == {4, 6}
    assert not drop.overruled


@pytest.mark.usefixtures("netns")
async def test_rules_that_drop_only_some_of_what_is_forwarded_are_no_warning(
    driver: Driver,
) -> None:
    run("iptables-nft -A FORWARD -s 10.9.0.0/16 -j DROP && iptables-nft -A FORWARD -j ACCEPT")
    run("iptables-legacy -A FORWARD -s 10.9.0.0/16 -j DROP")
    run("nft -f -", "table inet t { chain c { type filter hook input priority 0; policy drop; }; }")
    assert await driver.find_forward_drops() == ()


IPIP = 4


async def test_ipip_is_let_in_only_from_the_location(
    driver: Driver, three_hosts: ThreeHosts
) -> None:
    _, _, server = three_hosts
    guard = Firewall(tunnel_sources=nets(f"{WORLD}/32"))
    with raw_socket() as receiver:
        await driver.apply(Change(new=guard))
        assert await hear_first(receiver, server, [MESH, WORLD]) == WORLD
        await driver.apply(Change(old=guard))
        assert await hear_first(receiver, server, [MESH]) == MESH


@contextmanager
def raw_socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, IPIP) as made:
        made.settimeout(0)
        yield made


async def hear_first(receiver: socket.socket, server: Host, sources: list[str]) -> str:
    """Of IPIP packets sent from these addresses, the source of the first that arrives."""
    with server.entered():
        for source in sources:
            with raw_socket() as sender:
                sender.bind((source, 0))
                sender.sendto(b"inner", (ROUTER, 0))
    async with asyncio.timeout(60):
        _, source = await asyncio.get_running_loop().sock_recvfrom(receiver, 100)
    return str(source[0])


@pytest.mark.parametrize(("destination", "headers"), [(WORLD, 40), (WORLD6, 60)])
async def test_a_forwarded_connection_is_told_what_the_link_takes(
    driver: Driver, three_hosts: ThreeHosts, destination: str, headers: int
) -> None:
    pod, _, server = three_hosts
    run("ip link set to-world mtu 1300")
    assert connect(pod, server, destination) > 1300 - headers
    await driver.apply(Change(new=Firewall(clamp_links=frozenset({"to-world"}))))
    assert connect(pod, server, destination) <= 1300 - headers


def connect(pod: Host, server: Host, destination: str) -> int:
    """The largest segment that the server would send to a client in the pod."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with server.entered():
        listener = socket.create_server((destination, 0), family=family)
    with pod.entered():
        client = socket.socket(family, socket.SOCK_STREAM)
    with listener, client:
        client.settimeout(60)
        client.connect(listener.getsockname()[:2])
        served, _ = listener.accept()
        with served:
            return served.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
