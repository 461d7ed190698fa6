"""The nftables driver against the real kernel, in network namespaces of its own."""

import json
from dataclasses import replace
from ipaddress import ip_network

import pytest

from kilo.dataplane import nftables
from kilo.dataplane.firewall_terms import NOT_OURS
from kilo.dataplane.nftables import FEW_REMOVALS, NFTables, list_table
from kilo.dataplane.nftables_shape import TABLE
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.state import Firewall
from tests.kernel.firewall_hosts import EXAMPLE, nets, run


def table_handle() -> int:
    """Changes when the table is made anew, stays when only elements change."""
    listing = json.loads(run(f"nft -j list table inet {TABLE}"))["nftables"]
    return int(next(entry["table"]["handle"] for entry in listing if "table" in entry))


async def make_example() -> NFTables:
    nft = NFTables()
    await nft.apply(Change(new=EXAMPLE))
    return nft


# What is written is what is read


@pytest.mark.usefixtures("netns")
async def test_the_kernel_keeps_halves_apart() -> None:
    halves = nets("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")
    nft, firewall = NFTables(), Firewall(known=halves, forward=halves)
    await nft.apply(Change(new=firewall))
    assert await nft.read() == firewall


# Nothing is listed that cannot have changed


@pytest.mark.usefixtures("netns")
async def test_while_nobody_changes_the_ruleset_it_is_listed_once(listings: list[None]) -> None:
    nft = NFTables()
    assert await nft.read() is None
    assert await nft.read() is None
    assert len(listings) == 1
    await nft.apply(Change(new=EXAMPLE))
    assert await nft.read() == EXAMPLE == await nft.read()
    assert len(listings) == 2


@pytest.mark.usefixtures("netns")
async def test_what_others_change_is_read_whenever_they_do(listings: list[None]) -> None:
    nft = await make_example()
    assert await nft.read() == EXAMPLE
    run("nft add table inet other")
    assert await nft.read() == EXAMPLE
    run(f"nft flush chain inet {TABLE} postrouting")
    assert await nft.read() == NOT_OURS
    run("nft flush ruleset")
    assert await nft.read() is None
    assert len(listings) == 4


@pytest.mark.usefixtures("netns")
async def test_what_another_program_wrote_just_before_us_is_read() -> None:
    nft = await make_example()
    more = replace(EXAMPLE, known=EXAMPLE.known | nets("10.77.0.0/16"))
    assert await nft.read() == EXAMPLE
    # What is left for us to add is there then, so ours is no transaction and has no number.
    run(f"nft add element inet {TABLE} known4 {{ 10.77.0.0/16, 10.78.0.0/16 }}")
    await nft.apply(Change(old=EXAMPLE, new=more))
    assert await nft.read() == replace(more, known=more.known | nets("10.78.0.0/16"))


@pytest.mark.usefixtures("netns")
async def test_what_changes_while_it_is_listed_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nft = await make_example()

    async def list_and_lose() -> Firewall | None:
        found = await list_table()
        run(f"nft delete table inet {TABLE}")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(nftables, "list_table", list_and_lose)
        assert await nft.read() == EXAMPLE
    assert await nft.read() is None


@pytest.mark.usefixtures("netns")
async def test_a_kernel_that_does_not_tell_the_age_is_asked_each_time(
    listings: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tell_nothing() -> None:
        return None

    monkeypatch.setattr(nftables, "find_nft_age", tell_nothing)
    nft = await make_example()
    assert await nft.read() == EXAMPLE == await nft.read()
    assert len(listings) == 2


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
