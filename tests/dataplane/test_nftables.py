"""What the nftables driver writes, what it makes of listings, and how it runs nft."""

import asyncio
import json
import os
from copy import deepcopy
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from kilo.dataplane.firewall_terms import NOT_OURS
from kilo.dataplane.nftables import (
    FEW_REMOVALS,
    NFTables,
    parse_listing,
    write_difference,
    write_table,
)
from kilo.dataplane.nftables_shape import CLAMP, CLAMP_LISTED, RULES, Rule
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.state import Firewall, Link

SMALL = Firewall(
    known=frozenset({ip_network("10.2.1.0/24"), ip_network("fd00::/64")}),
    masquerade_sources=frozenset({ip_network("10.2.0.0/24")}),
)

TABLE_TEXT = """\
add table inet kilo
delete table inet kilo
add table inet kilo
add set inet kilo clamp_links { type ifname; }
add set inet kilo forward4 { type ipv4_addr; flags interval; }
add set inet kilo forward6 { type ipv6_addr; flags interval; }
add set inet kilo guarded { type inet_proto; }
add set inet kilo known4 { type ipv4_addr; flags interval; }
add set inet kilo known6 { type ipv6_addr; flags interval; }
add set inet kilo local4 { type ipv4_addr; flags interval; }
add set inet kilo local6 { type ipv6_addr; flags interval; }
add set inet kilo masquerade_destinations4 { type ipv4_addr; flags interval; }
add set inet kilo masquerade_destinations6 { type ipv6_addr; flags interval; }
add set inet kilo masquerade_sources4 { type ipv4_addr; flags interval; }
add set inet kilo masquerade_sources6 { type ipv6_addr; flags interval; }
add set inet kilo tunnel_sources4 { type ipv4_addr; flags interval; }
add set inet kilo tunnel_sources6 { type ipv6_addr; flags interval; }
add chain inet kilo postrouting { type nat hook postrouting priority 100; policy accept; }
add chain inet kilo forward { type filter hook forward priority 0; policy accept; }
add chain inet kilo input { type filter hook input priority 0; policy accept; }
add chain inet kilo clamp { type filter hook forward priority -150; policy accept; }
"""

RULES_TEXT = """\
postrouting oifname lo return
postrouting ip daddr @local4 return
postrouting ip6 daddr @local6 return
postrouting ip daddr @known4 return
postrouting ip6 daddr @known6 return
postrouting ip daddr @masquerade_destinations4 masquerade
postrouting ip6 daddr @masquerade_destinations6 masquerade
postrouting ip saddr @masquerade_sources4 masquerade
postrouting ip6 saddr @masquerade_sources6 masquerade
forward ip saddr @forward4 accept
forward ip6 saddr @forward6 accept
forward ip daddr @forward4 accept
forward ip6 daddr @forward6 accept
input ip saddr @tunnel_sources4 return
input ip protocol @guarded drop
clamp oifname @clamp_links tcp flags syn tcp option maxseg size set rt mtu
"""


def make_listing(**networks: list[Any]) -> dict[str, Any]:
    """What nft 1.0.6 lists for our table with these elements in its sets."""
    local: dict[str, list[Any]] = {
        "local4": [
            _prefix("127.0.0.0", 8),
            _prefix("169.254.0.0", 16),
            _prefix("224.0.0.0", 4),
            "255.255.255.255",
        ],
        "local6": ["::1", _prefix("fe80::", 10), _prefix("ff00::", 8)],
    }
    entries: list[dict[str, Any]] = [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "kilo", "handle": 7}},
    ]
    for line in TABLE_TEXT.splitlines():
        words = line.split()
        if words[:2] == ["add", "set"]:
            flags = [words[9].rstrip(";")] if "flags" in words else []
            entries.append(_listed_set(words[4], words[7].rstrip(";"), flags, local | networks))
        elif words[:2] == ["add", "chain"]:
            priority = int(words[11].rstrip(";"))
            entries.append(_listed_chain(words[4], words[7], words[9], priority))
    entries += [_listed_rule(number, rule) for number, rule in enumerate(RULES)]
    return {"nftables": entries}


def _prefix(address: str, length: int) -> dict[str, Any]:
    return {"prefix": {"addr": address, "len": length}}


def _listed_set(
    name: str, kind: str, flags: list[str], networks: dict[str, list[Any]]
) -> dict[str, Any]:
    entry = {"family": "inet", "name": name, "table": "kilo", "type": kind, "handle": 3}
    elements = {"elem": networks[name]} if name in networks else {}
    return {"set": entry | ({"flags": flags} if flags else {}) | elements}


def _listed_chain(name: str, kind: str, hook: str, priority: int) -> dict[str, Any]:
    entry = {"family": "inet", "table": "kilo", "name": name, "handle": 1, "type": kind}
    return {"chain": entry | {"hook": hook, "prio": priority, "policy": "accept"}}


def _listed_rule(number: int, rule: Rule) -> dict[str, Any]:
    protocol, _, field = rule.left.partition(" ")
    left: dict[str, Any] = {"payload": {"protocol": protocol, "field": field}}
    if not field:
        left = {"meta": {"key": rule.left}}
    match = {"match": {"op": "==", "left": left, "right": rule.right}}
    entry = {"family": "inet", "table": "kilo", "chain": rule.chain, "handle": number}
    statements = CLAMP_LISTED if rule.verdict == CLAMP else [{rule.verdict: None}]
    return {"rule": entry | {"comment": rule.comment, "expr": [match, *statements]}}


def find(listing: dict[str, Any], kind: str, **fields: str) -> dict[str, Any]:
    for entry in listing["nftables"]:
        value: dict[str, Any] = entry.get(kind, {})
        if value and all(value.get(key) == wanted for key, wanted in fields.items()):
            return value
    raise LookupError(kind, fields)


# Writing


def test_a_new_table_replaces_the_old_one_in_the_same_script() -> None:
    assert write_table(SMALL).startswith(TABLE_TEXT)


def test_the_rules_are_these_whatever_the_mesh() -> None:
    lines = write_table(SMALL).splitlines()
    rules = [line.partition(" comment ")[0] for line in lines if line.startswith("add rule")]
    assert [rule.removeprefix("add rule inet kilo ") for rule in rules] == RULES_TEXT.splitlines()


def test_every_rule_says_that_it_is_kilos_and_why() -> None:
    assert all(rule.comment.startswith("Kilo: ") for rule in RULES)


def test_elements_are_listed_by_family_in_order() -> None:
    assert write_table(SMALL).splitlines()[-3:] == [
        "add element inet kilo known4 { 10.2.1.0/24 }",
        "add element inet kilo known6 { fd00::/64 }",
        "add element inet kilo masquerade_sources4 { 10.2.0.0/24 }",
    ]


def test_only_what_differs_is_written_and_removals_come_first() -> None:
    wider = Firewall(known=frozenset({ip_network("10.2.0.0/23"), ip_network("fd00::/64")}))
    assert write_difference(SMALL, wider) == (
        "delete element inet kilo known4 { 10.2.1.0/24 }\n"
        "add element inet kilo known4 { 10.2.0.0/23 }\n"
        "delete element inet kilo masquerade_sources4 { 10.2.0.0/24 }\n"
    )


def test_many_removals_from_a_set_are_one_flush() -> None:
    hosts = [ip_network(f"10.2.0.{i}/32") for i in range(FEW_REMOVALS + 2)]
    many, one = (Firewall(forward=frozenset(some)) for some in (hosts, hosts[:1]))
    assert write_difference(many, one) == (
        "flush set inet kilo forward4\nadd element inet kilo forward4 { 10.2.0.0/32 }\n"
    )


def test_ipip_is_guarded_while_somebody_may_send_it() -> None:
    guarding = Firewall(tunnel_sources=frozenset({ip_network("192.168.1.1/32")}))
    assert write_difference(Firewall(), guarding) == (
        "add element inet kilo tunnel_sources4 { 192.168.1.1/32 }\n"
        "add element inet kilo guarded { 4 }\n"
    )
    assert write_difference(guarding, Firewall()) == (
        "delete element inet kilo tunnel_sources4 { 192.168.1.1/32 }\n"
        "delete element inet kilo guarded { 4 }\n"
    )


@pytest.mark.parametrize("protocol", ["ipencap", "ipip", 4])
def test_a_guard_is_read_whatever_its_protocol_is_called(protocol: object) -> None:
    listing = make_listing(tunnel_sources4=["192.168.1.1"], guarded=[protocol])
    expected = Firewall(tunnel_sources=frozenset({ip_network("192.168.1.1/32")}))
    assert parse_listing(listing) == expected


def test_sources_without_a_guard_or_a_guard_without_sources_are_not_ours() -> None:
    assert parse_listing(make_listing(tunnel_sources4=["192.168.1.1"])) == NOT_OURS
    assert parse_listing(make_listing(guarded=["ipencap"])) == NOT_OURS


def test_no_difference_is_an_empty_script() -> None:
    assert write_difference(SMALL, SMALL) == ""


# Reading


def test_a_listing_gives_the_firewall() -> None:
    listing = make_listing(
        known4=[_prefix("10.2.1.0", 24)],
        known6=[_prefix("fd00::", 64)],
        masquerade_sources4=[_prefix("10.2.0.0", 24)],
    )
    assert parse_listing(listing) == SMALL


def test_a_single_address_is_a_network_of_full_length() -> None:
    listing = make_listing(known4=["192.168.0.1"], known6=["2001:db8::1"])
    hosts = frozenset({ip_network("192.168.0.1/32"), ip_network("2001:db8::1/128")})
    assert parse_listing(listing) == Firewall(known=hosts)


def test_newer_listings_that_give_a_single_flag_or_element_without_a_list_are_read() -> None:
    listing = make_listing(known4=[_prefix("10.2.1.0", 24)])
    entry = find(listing, "set", name="known4")
    entry["flags"], entry["elem"] = "interval", _prefix("10.2.1.0", 24)
    assert parse_listing(listing) == Firewall(known=frozenset({ip_network("10.2.1.0/24")}))


def test_where_foreign_objects_are_listed_does_not_hide_them() -> None:
    listing = make_listing(known4=["192.168.0.1"])
    foreign: dict[str, Any]
    for foreign in ({"map": {"name": "m"}}, {"counter": {"name": "c"}}, {"rule": {}}):
        for place in (1, len(listing["nftables"])):
            changed = deepcopy(listing)
            changed["nftables"].insert(place, foreign)
            assert parse_listing(changed) == NOT_OURS


@pytest.mark.parametrize(
    ("kind", "name", "field", "value"),
    [
        ("table", "kilo", "flags", "dormant"),
        ("table", "kilo", "flags", ["owner"]),
        ("chain", "forward", "policy", "drop"),
        ("chain", "forward", "prio", 10),
        ("chain", "forward", "hook", "input"),
        ("chain", "postrouting", "type", "filter"),
        ("set", "known4", "flags", ["interval", "timeout"]),
        ("set", "known4", "flags", None),
        ("set", "known4", "type", "inet_service"),
        ("set", "known4", "auto-merge", True),
        ("set", "known4", "elem", [{"range": ["10.2.0.1", "10.2.0.9"]}]),
        ("set", "known4", "elem", [{"elem": {"val": "10.2.0.1", "comment": "mine"}}]),
        ("set", "known4", "elem", ["localhost"]),
        ("set", "known4", "elem", 7),
        ("set", "known4", "name", "known5"),
        ("set", "local4", "elem", []),
    ],
)
def test_any_other_shape_is_not_ours(kind: str, name: str, field: str, value: object) -> None:
    listing = make_listing(known4=["192.168.0.1"])
    find(listing, kind, name=name)[field] = value
    assert parse_listing(listing) == NOT_OURS


@pytest.mark.parametrize(
    "expression",
    [
        [],
        [{"accept": None}],
        [{"match": {"op": "!=", "left": {"meta": {"key": "oifname"}}, "right": "lo"}}],
        [
            {"match": {"op": "!=", "left": {"meta": {"key": "oifname"}}, "right": "lo"}},
            {"return": None},
        ],
        [
            {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}},
            {"return": None},
        ],
        [
            {"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "lo"}},
            {"masquerade": {"flags": "random"}},
        ],
        [{"match": {"op": "==", "left": {"ct": {"key": "state"}}, "right": 1}}, {"return": None}],
    ],
)
def test_a_rule_rewritten_by_hand_is_not_ours(expression: list[dict[str, Any]]) -> None:
    listing = make_listing()
    find(listing, "rule", chain="postrouting")["expr"] = expression
    assert parse_listing(listing) == NOT_OURS


def test_rules_in_another_order_are_not_ours() -> None:
    listing = make_listing(known4=["192.168.0.1"])
    listing["nftables"][-6:-4] = reversed(listing["nftables"][-6:-4])
    assert parse_listing(listing) == NOT_OURS


@pytest.mark.parametrize("document", [{}, {"nftables": None}, {"nftables": [7]}, json.loads("[]")])
def test_a_listing_that_is_none_is_not_ours(document: Any) -> None:
    assert parse_listing(document) == NOT_OURS


# Running nft


def install_nft(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program of that name, with that behaviour, before the real one."""
    program = directory / "nft"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


async def test_a_missing_nft_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataplaneError, match=r"^nft: not installed \(Debian: nftables\)$"):
        await NFTables().read()
    with pytest.raises(DataplaneError, match=r"^nft: not installed \(Debian: nftables\)$"):
        await NFTables().apply(Change(new=SMALL))


async def test_an_nft_that_may_not_run_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nft(tmp_path, monkeypatch, "")
    (tmp_path / "nft").chmod(0o600)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataplaneError, match=r"^nft: cannot be started: Permission denied$"):
        await NFTables().read()


async def test_a_complaint_is_passed_on_as_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nft(tmp_path, monkeypatch, "echo 'Error: Operation not permitted\nmore' >&2; exit 1")
    with pytest.raises(DataplaneError) as reading:
        await NFTables().read()
    assert str(reading.value) == "nft: list table inet kilo: Operation not permitted"
    with pytest.raises(DataplaneError) as writing:
        await NFTables().apply(Change(new=SMALL))
    assert str(writing.value) == "nft: Operation not permitted"


async def test_an_nft_without_json_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nft(tmp_path, monkeypatch, "echo table inet kilo")
    with pytest.raises(DataplaneError, match="answered no JSON"):
        await NFTables().read()


async def test_an_nft_that_dies_before_it_reads_its_script_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nft(tmp_path, monkeypatch, "kill -9 $$")
    large = Firewall(
        known=frozenset(ip_network(f"10.{i // 250}.{i % 250}.0/24") for i in range(9999))
    )
    with pytest.raises(DataplaneError, match="failed without a word"):
        await NFTables().apply(Change(new=large))


async def test_a_cancelled_change_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    install_nft(tmp_path, monkeypatch, f"echo $$ > {fifo}; exec tail -f /dev/null")
    applying = asyncio.create_task(NFTables().apply(Change(new=SMALL)))
    process = int(await asyncio.to_thread(fifo.read_text))  # blocks until the program runs
    applying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await applying
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


async def test_only_a_change_of_the_firewall_is_taken() -> None:
    with pytest.raises(TypeError):
        await NFTables().apply(Change(new=Link(name="kilo0", mtu=1420, up=True)))
