"""The facts of a host, as a real kernel gives them."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_interface

from kilo.dataplane.hostfacts import HostnameLookup, read_facts
from kilo.mesh.host import HostFacts
from kilo.mesh.model import IPAddress
from tests.kernel.namespace import Namespace

LIMIT_SECONDS = 30.0


def make_lookup() -> HostnameLookup:
    return HostnameLookup("host-1", on_change=lambda: None, resolve=lambda _: ())


async def read() -> HostFacts:
    return await read_facts(make_lookup())


def list_addresses(facts: HostFacts, link: str) -> list[str]:
    return [str(found.interface) for found in facts.addresses if found.link == link]


async def test_links_are_known_by_name_mtu_and_kind(netns: Namespace) -> None:
    netns.ip("link", "add", "kube-bridge", "mtu", "1400", "type", "bridge")

    facts = await read()

    assert facts.mtus == {"lo": 65536, "kube-bridge": 1400}
    assert facts.kinds == {"lo": "", "kube-bridge": "bridge"}


async def test_addresses_of_host_and_link_scope_are_left_out(netns: Namespace) -> None:
    netns.add_veth("eth0", "other0")
    for address in ("192.168.0.1/24", "169.254.9.9/16", "fd00:192::1/64"):
        scope = "link" if address.startswith("169") else "global"
        netns.ip("address", "add", address, "dev", "eth0", "scope", scope, "nodad")

    facts = await read()

    assert list_addresses(facts, "eth0") == ["192.168.0.1/24", "fd00:192::1/64"]
    assert list_addresses(facts, "lo") == []


async def test_the_near_end_of_a_point_to_point_address_is_the_hosts(netns: Namespace) -> None:
    netns.add_veth("eth0", "other0")
    netns.ip("address", "add", "192.168.0.1", "peer", "192.168.0.2/32", "dev", "eth0")

    assert list_addresses(await read(), "eth0") == ["192.168.0.1/32"]


async def test_a_second_address_of_a_subnet_counts(netns: Namespace) -> None:
    netns.add_veth("eth0", "other0")
    netns.ip("address", "add", "192.168.0.1/24", "dev", "eth0")
    netns.ip("address", "add", "192.168.0.2/24", "dev", "eth0")

    assert list_addresses(await read(), "eth0") == ["192.168.0.1/24", "192.168.0.2/24"]


async def test_an_ipv6_address_counts_only_while_it_is_the_hosts_for_good(netns: Namespace) -> None:
    # Without a carrier the kernel does not begin to ask whether another host has an address.
    netns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other0")
    netns.ip("link", "set", "eth0", "up")
    add = ("-6", "address", "add")
    netns.ip(*add, "fd00:192::1/64", "dev", "eth0", "nodad")
    netns.ip(*add, "fd00:192::2/64", "dev", "eth0", "nodad", "preferred_lft", "0")
    netns.ip(*add, "fd00:192::3/64", "dev", "eth0")

    assert list_addresses(await read(), "eth0") == ["fd00:192::1/64"], "::3 is still tentative"

    netns.ip("link", "set", "other0", "up")
    netns.await_output("fd00:192::3", "ip", "-6", "address", "show", "-tentative")
    good = ["fd00:192::3/64", "fd00:192::1/64"]
    assert list_addresses(await read(), "eth0") == good, "::2 is deprecated"


async def test_an_address_that_another_host_has_too_is_left_out(netns: Namespace) -> None:
    netns.add_veth("eth0", "other0")
    netns.ip("-6", "address", "add", "fd00:192::1/64", "dev", "other0", "nodad")
    netns.ip("-6", "address", "add", "fd00:192::1/64", "dev", "eth0")

    netns.await_output("dadfailed", "ip", "-6", "address", "show", "dev", "eth0")

    assert list_addresses(await read(), "eth0") == []


async def test_default_links_are_ipv4_first_then_by_metric_each_once(netns: Namespace) -> None:
    for number, name in enumerate(("eth0", "eth1", "eth2")):
        netns.add_veth(name, f"other{number}")
        netns.ip("address", "add", f"192.168.{number}.1/24", "dev", name)
        netns.ip("-6", "address", "add", f"fd00:192:{number}::1/64", "dev", name, "nodad")
    netns.ip("route", "add", "default", "via", "192.168.1.9", "metric", "100")
    netns.ip("route", "add", "default", "via", "192.168.0.9", "metric", "200")
    netns.ip("route", "add", "default", "via", "192.168.2.9", "table", "77")
    netns.ip("route", "add", "unreachable", "default", "metric", "4000")
    netns.ip("-6", "route", "add", "default", "via", "fd00:192:2::9", "metric", "7")
    netns.ip("-6", "route", "add", "default", "via", "fd00:192:1::9", "metric", "5")

    assert (await read()).default_links == ("eth1", "eth0", "eth2")


async def test_every_nexthop_of_a_default_route_counts(netns: Namespace) -> None:
    hops = []
    for number, name in enumerate(("eth0", "eth1")):
        netns.add_veth(name, f"other{number}")
        netns.ip("address", "add", f"192.168.{number}.1/24", "dev", name)
        hops += ["nexthop", "via", f"192.168.{number}.9"]
    netns.ip("route", "add", "default", *hops)

    assert (await read()).default_links == ("eth0", "eth1")


async def test_a_host_that_never_had_a_route_has_no_default_link(bare: Namespace) -> None:
    """Beside policy rules the kernel makes table main with its first route."""
    bare.ip("rule", "add", "priority", "7", "lookup", "9")

    assert (await read()).default_links == ()


async def test_facts_that_have_not_changed_are_equal(netns: Namespace) -> None:
    netns.add_veth("eth0", "other0")
    netns.ip("address", "add", "192.168.0.1/24", "dev", "eth0")

    assert await read() == await read()


async def test_what_the_name_resolves_to_is_there_as_soon_as_it_is_known(netns: Namespace) -> None:
    answered = asyncio.Event()
    loop = asyncio.get_running_loop()
    answer: tuple[IPAddress, ...] = (ip_interface("192.168.0.1/24").ip, ip_address("fd00:192::1"))

    def announce() -> None:
        loop.call_soon_threadsafe(answered.set)

    lookup = HostnameLookup("host-1", on_change=announce, resolve=lambda _: answer)

    await read_facts(lookup)
    async with asyncio.timeout(LIMIT_SECONDS):
        await answered.wait()

    assert (await read_facts(lookup)).hostname_addresses == answer
