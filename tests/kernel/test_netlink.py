"""Our link, addresses and rules on the real kernel: what the contract does not already say."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from socket import AF_INET, AF_IPX

import pytest

from kilo.dataplane import netlink, netlinkchanges
from kilo.dataplane.netlink import RULE_PRIORITIES, RULE_PROTOCOL
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.state import Address, Link, Rule
from tests.kernel.namespace import Namespace

RULE = Rule(destination=ip_network("192.168.0.2/32"), table=1107)
RULE_WORDS = ("to", "192.168.0.2/32", "lookup", "1107")


@pytest.fixture
def link(netns: Namespace) -> str:
    netns.add_veth("kilo0", "other0")
    return "kilo0"


def make_address(text: str) -> Address:
    return Address(link="kilo0", interface=ip_interface(text))


async def test_an_ipv6_address_can_be_used_at_once(netns: Namespace, link: str) -> None:
    await netlinkchanges.apply_step(Change(new=make_address("fd00:4::1/64")))

    assert "tentative" not in netns.ip("-6", "address", "show", "dev", link, "to", "fd00:4::1")


async def test_only_our_link_promotes_its_secondary_addresses(netns: Namespace, link: str) -> None:
    await netlinkchanges.apply_step(Change(new=make_address("10.4.0.1/16")))

    assert netns.sysctl(f"net/ipv4/conf/{link}/promote_secondaries") == "1"
    assert netns.sysctl("net/ipv4/conf/other0/promote_secondaries") == "0"


async def test_addresses_of_a_narrower_scope_are_not_ours(netns: Namespace, link: str) -> None:
    netns.await_output("fe80", "ip", "-6", "address", "show", "dev", link)
    netns.ip("address", "add", "169.254.9.9/16", "dev", link, "scope", "link")
    netns.ip("address", "add", "10.9.9.9/16", "dev", link, "scope", "site")
    netns.ip("address", "add", "10.4.0.1/16", "dev", link)
    netns.ip("address", "add", "192.168.0.1/24", "dev", "other0")

    assert await netlink.read_addresses(link) == {make_address("10.4.0.1/16")}


async def test_a_link_is_read_by_its_exact_name(netns: Namespace, link: str) -> None:
    netns.ip("link", "set", link, "mtu", "1420", "down")

    assert await netlink.read_link(link) == Link(name=link, mtu=1420, up=False)
    assert await netlink.read_link("kilo") is None
    assert await netlink.read_addresses("kilo") == frozenset()


@pytest.mark.parametrize("protocol", ["5", str(RULE_PROTOCOL)])
async def test_rules_need_both_our_number_and_our_range_to_be_ours(
    netns: Namespace, protocol: str
) -> None:
    ours = protocol == str(RULE_PROTOCOL)
    priority = str(RULE_PRIORITIES.start if not ours else RULE_PRIORITIES.stop)
    netns.ip("rule", "add", *RULE_WORDS, "pref", priority, "protocol", protocol)

    assert await netlink.read_rules() == frozenset()


async def test_a_foreign_rule_at_our_priority_stays_and_ours_is_added(netns: Namespace) -> None:
    first = str(RULE_PRIORITIES.start)
    netns.ip("rule", "add", *RULE_WORDS, "pref", first, "protocol", "5")

    await netlinkchanges.apply_step(Change(new=RULE))

    assert await netlink.read_rules() == {RULE}
    protocols = [rule.get("protocol") for rule in netns.ip_json("rule", "show")]
    assert "5" in protocols

    await netlinkchanges.apply_step(Change(old=RULE))

    assert await netlink.read_rules() == frozenset()
    assert len(netns.ip_json("rule", "show")) == len(protocols) - 1


async def test_doubles_of_a_rule_go_with_it(netns: Namespace) -> None:
    for priority in tuple(RULE_PRIORITIES)[:3]:
        ours = ("pref", str(priority), "protocol", str(RULE_PROTOCOL))
        netns.ip("rule", "add", *RULE_WORDS, *ours)

    await netlinkchanges.apply_step(Change(old=RULE))

    assert "1107" not in netns.ip("rule", "show")


async def test_rules_of_actions_that_we_never_write_are_not_ours(netns: Namespace) -> None:
    ours = ("pref", str(RULE_PRIORITIES.start), "protocol", str(RULE_PROTOCOL))
    netns.ip("rule", "add", "to", "192.168.0.2/32", "prohibit", *ours)

    assert await netlink.read_rules() == frozenset()


async def test_a_failure_begins_with_the_step_and_ends_with_the_reason(netns: Namespace) -> None:
    step = Change(new=make_address("10.4.0.1/16"))

    with pytest.raises(DataplaneError) as caught:
        await netlinkchanges.apply_step(step)

    assert str(caught.value) == f"{step}: No such device"


async def test_a_family_that_the_kernel_has_no_rules_of_has_none(netns: Namespace) -> None:
    """As IPv6 where it is switched off at boot; here one that nobody has."""
    await netlinkchanges.apply_step(Change(new=RULE))
    assert [rule for rule, _ in await netlink.list_rules((AF_IPX, AF_INET))] == [RULE]


async def test_a_rule_with_more_bits_than_its_network_has_hinders_nothing(netns: Namespace) -> None:
    marks = ("priority", str(RULE_PRIORITIES.start + 5), "protocol", str(RULE_PROTOCOL))
    netns.ip("rule", "add", "to", "10.0.0.1/8", "lookup", "1107", *marks)
    (found,) = await netlink.read_rules()
    assert str(found.destination) == "10.0.0.0/8"
