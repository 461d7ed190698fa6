"""The iptables driver of both kinds against the real kernel, and how a host gets its driver."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from kilo.dataplane.drift import DeviceWatch, Drift, Relevance
from kilo.dataplane.firewall import Choice, HostFirewall, choose_driver
from kilo.dataplane.firewall_terms import NOT_OURS
from kilo.dataplane.iptables import IPTables, Kind
from kilo.dataplane.nftables import NFTables
from kilo.dataplane.owndoing import OwnDoing
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.state import Firewall
from tests.kernel.firewall_hosts import (
    EXAMPLE,
    ROUTER,
    WORLD,
    Host,
    listen,
    nets,
    new_socket,
    run,
    send,
    three_hosts,
)

__all__ = ["three_hosts"]  # fixtures


@pytest.fixture(params=Kind)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each in turn."""
    return Kind(request.param)


async def make_example(kind: Kind) -> IPTables:
    driver = IPTables(kind)
    await driver.apply(Change(new=EXAMPLE))
    return driver


def list_ours() -> str:
    """Every trace of ours, wherever."""
    saves = "iptables-nft-save ip6tables-nft-save iptables-legacy-save ip6tables-legacy-save"
    listings = [run("nft list ruleset"), run("ipset save"), *(run(save) for save in saves.split())]
    lines = (line for listing in listings for line in listing.splitlines())
    return "\n".join(line for line in lines if "kilo" in line.lower())


# What others do


@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize(
    "command",
    [
        "{v4} -t nat -F KILO-NAT",
        "{v4} -t nat -D KILO-NAT 1",
        "{v4} -t nat -A KILO-NAT -j MASQUERADE",
        "{v4} -t nat -R KILO-NAT 1 -o eth0 -m comment --comment 'Kilo: x' -j RETURN",
        "{v4} -t nat -F POSTROUTING",
        "{v4} -t nat -A POSTROUTING -s 10.0.0.0/8 -m comment --comment 'mine' -j KILO-NAT",
        "{v4} -A OUTPUT -m addrtype --dst-type LOCAL -g KILO-FORWARD",
        "{v4} -D FORWARD 1 && {v4} -D INPUT 1",
        "{v4} -I FORWARD -j KILO-FORWARD",
        "{v4} -N KILO-X && {v4} -N KILO-MSS && {v4} -F KILO-FORWARD",
        "{v6} -t mangle -F && {v6} -t mangle -X",
        "{v6} -t nat -F && {v6} -t nat -X",
        "{v4} -t mangle -A KILO-MSS -o eth9 -j RETURN",
        "ipset flush kilo-swap4 || ipset create kilo-swap4 hash:net",
        "ipset add kilo-known4 10.2.0.7 nomatch",
        "ipset create mine hash:net maxelem 1048576 timeout 60 && ipset swap mine kilo-known4",
    ],
)
async def test_rules_and_sets_changed_by_hand_are_seen_and_put_right(
    kind: Kind, command: str
) -> None:
    driver = await make_example(kind)
    run(command.format(v4=f"iptables-{kind}", v6=f"ip6tables-{kind}"))

    found = await driver.read()
    assert found == NOT_OURS
    await driver.apply(Change(old=found, new=EXAMPLE))
    assert await driver.read() == EXAMPLE


@pytest.mark.usefixtures("netns")
async def test_rules_changed_by_hand_are_seen_though_they_were_read_before() -> None:
    driver = await make_example(Kind.NFT)
    for command in ("-t nat -F KILO-NAT", "-D FORWARD 1", "-t mangle -F"):
        assert await driver.read() == EXAMPLE
        run(f"iptables-nft {command}")
        assert await driver.read() == NOT_OURS
        await driver.apply(Change(old=NOT_OURS, new=EXAMPLE))


@pytest.mark.usefixtures("netns")
async def test_a_network_added_or_removed_by_hand_is_seen(kind: Kind) -> None:
    driver = await make_example(kind)
    run("ipset add kilo-known4 10.9.0.0/24 && ipset del kilo-known6 fd00::/64")
    found = await driver.read()
    assert found is not None
    assert found.known == EXAMPLE.known - nets("fd00::/64") | nets("10.9.0.0/24")


@pytest.mark.usefixtures("netns")
async def test_a_change_of_what_vanished_meanwhile_makes_it_anew(kind: Kind) -> None:
    driver = await make_example(kind)
    await IPTables(kind).apply(Change(old=EXAMPLE))
    smaller = replace(EXAMPLE, known=nets("10.2.0.0/24"))
    await driver.apply(Change(old=EXAMPLE, new=smaller))
    assert await driver.read() == smaller
    await driver.apply(Change(old=smaller))
    await driver.apply(Change(old=smaller))
    assert await driver.read() is None


@pytest.mark.usefixtures("netns")
async def test_sets_of_our_names_that_are_something_else_make_room(kind: Kind) -> None:
    run("ipset create kilo-known4 hash:ip && ipset create kilo-swap6 hash:net,port")
    run(f"iptables-{kind} -A INPUT -j ACCEPT")
    driver = IPTables(kind)
    assert await driver.read() == NOT_OURS
    await driver.apply(Change(old=NOT_OURS, new=EXAMPLE))
    assert await driver.read() == EXAMPLE


@pytest.mark.usefixtures("netns")
async def test_a_set_of_ours_that_others_rules_use_is_an_error_that_says_so(kind: Kind) -> None:
    driver = await make_example(kind)
    run(f"iptables-{kind} -A INPUT -m set --match-set kilo-known4 src -j ACCEPT")
    with pytest.raises(DataplaneError, match=r"^ipset: .*in use"):
        await driver.apply(Change(old=EXAMPLE))
    assert await driver.read() == NOT_OURS


@pytest.mark.usefixtures("netns")
async def test_a_table_that_iptables_cannot_read_is_an_error_with_the_way_out() -> None:
    driver = await make_example(Kind.NFT)
    run("nft add set ip nat foreign '{ type ipv4_addr; }'")
    run("nft add rule ip nat POSTROUTING ip saddr @foreign ct state new counter accept")
    with pytest.raises(DataplaneError, match=r"^iptables: table nat .*--firewall=nftables"):
        await driver.read()


@pytest.mark.usefixtures("netns")
async def test_an_accept_comes_before_what_was_there_and_masquerading_after(kind: Kind) -> None:
    run(f"iptables-{kind} -A FORWARD -j DROP; iptables-{kind} -A INPUT -j DROP")
    run(f"iptables-{kind} -t nat -A POSTROUTING -s 10.9.0.0/16 -j ACCEPT")
    await make_example(kind)
    saved = run(f"iptables-{kind}-save").splitlines()
    for hook, last in (("FORWARD", "DROP"), ("INPUT", "DROP"), ("POSTROUTING", "KILO-NAT")):
        rules = [line for line in saved if line.startswith(f"-A {hook} ")]
        assert rules[-1].endswith(last)
        assert len(rules) >= 2


@pytest.mark.usefixtures("netns")
async def test_what_others_do_to_chains_of_ours_in_nf_tables_wakes_the_agent() -> None:
    async def fingerprint() -> bytes | None:
        return None

    await make_example(Kind.NFT)
    drift = Drift(Relevance(table="kilo", routes=tuple, own=OwnDoing()), DeviceWatch(fingerprint))
    try:
        run("iptables-nft -t nat -A POSTROUTING -j ACCEPT")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.7):
                await anext(drift)
        for command in ("-D FORWARD 1", "-t nat -F KILO-NAT", "-t mangle -F"):
            run(f"iptables-nft {command}")
            async with asyncio.timeout(60):
                await anext(drift)
    finally:
        await drift.aclose()


async def test_while_rules_are_put_right_no_packet_escapes_unmasqueraded(
    kind: Kind, three_hosts: tuple[Host, Host, Host]
) -> None:
    pod, _, server = three_hosts
    wanted = Firewall(masquerade_sources=nets("10.2.0.0/24"))
    driver = IPTables(kind)
    await driver.apply(Change(new=wanted))
    with pod.entered():
        senders = [new_socket(WORLD) for _ in range(200)]

    async def touch_and_mend() -> None:
        for _ in range(3):
            run(f"iptables-{kind} -t nat -A KILO-NAT -j RETURN")
            await driver.apply(Change(old=await driver.read(), new=wanted))

    with listen(server, WORLD) as receiver:
        async with asyncio.TaskGroup() as group:
            mending = group.create_task(touch_and_mend())
            seen = [await send(sender, receiver, WORLD) for sender in senders]
            while not mending.done():
                seen.append(await send(senders[-1], receiver, WORLD))
    for sender in senders:
        sender.close()
    assert set(seen) == {ROUTER}


# Processes


PROGRAMS = (
    "ipset",
    "nft",
    *("iptables-nft-restore", "ip6tables-nft-restore", "iptables-nft-save", "ip6tables-nft-save"),
)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Notes each program that the driver starts; what was started since the last call."""
    log = tmp_path / "log"
    log.touch()
    for program in PROGRAMS:
        wrapper = tmp_path / program
        wrapper.write_text(
            f'#!/bin/sh\necho "{program} $*" >> {log}\nexec {shutil.which(program)} "$@"\n'
        )
        wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def take_notes() -> list[str]:
        noted = log.read_text().splitlines()
        log.write_text("")
        return noted

    return take_notes


@pytest.mark.usefixtures("netns")
async def test_one_network_more_in_a_thousand_is_one_process_and_no_rule(
    watched: Callable[[], list[str]],
) -> None:
    known = frozenset(IPv4Network(((10 << 24) + (i << 8), 24)) for i in range(1000))
    large = replace(EXAMPLE, known=known)
    driver = IPTables(Kind.NFT)
    await driver.apply(Change(new=large))
    assert await driver.read() == large
    rules = run("iptables-nft-save").count("\n-A")
    watched()

    assert await driver.read() == large
    larger = replace(large, known=known | nets("10.9.0.0/24"))
    await driver.apply(Change(old=large, new=larger))

    # Nobody's rules are read, for none has been changed since the first time.
    assert watched() == ["ipset list -name", "ipset -", "ipset restore"]
    assert run("iptables-nft-save").count("\n-A") == rules
    assert await driver.read() == larger


@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize(
    "half",
    [
        "ipset destroy kilo-known4; true",
        "{v4} -t nat -F POSTROUTING; {v4} -t nat -F KILO-NAT; {v4} -t nat -X KILO-NAT",
        "{v6} -t nat -F; {v6} -t nat -X; {v6} -t mangle -F; {v6} -t mangle -X",
        "ipset create kilo-swap4 hash:net",
    ],
)
async def test_what_a_crash_has_left_half_done_is_removed_whole(kind: Kind, half: str) -> None:
    await make_example(kind)
    run(half.format(v4=f"iptables-{kind}", v6=f"ip6tables-{kind}"))
    await IPTables(kind).apply(Change(old=NOT_OURS))
    assert list_ours() == ""


# Choosing


KUBELET = "-t mangle -N KUBE-KUBELET-CANARY"


@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        pytest.param([], "nftables", id="nobody uses any"),
        pytest.param(["iptables-legacy -L"], "nftables", id="a legacy table with nothing in it"),
        pytest.param([f"iptables-legacy {KUBELET}"], "legacy", id="a kubelet's canary"),
        pytest.param([f"ip6tables-nft {KUBELET}"], "nft", id="of one family only"),
        pytest.param(["iptables-nft -t mangle -N KUBE-IPTABLES-HINT"], "nft", id="its hint"),
        pytest.param(
            [f"iptables-legacy {KUBELET}", "iptables-nft -P FORWARD DROP"],
            "legacy",
            id="a canary before anything else",
        ),
        pytest.param(["iptables-nft -P FORWARD DROP"], "nft", id="a policy that drops"),
        pytest.param(["iptables-legacy -P FORWARD DROP"], "legacy", id="a legacy one"),
        pytest.param(["ip6tables-legacy -A FORWARD -j ACCEPT"], "legacy", id="any rule at all"),
        pytest.param(
            ["iptables-nft -A INPUT -j ACCEPT", *["iptables-legacy -A INPUT -j ACCEPT"] * 2],
            "legacy",
            id="the kind with more rules",
        ),
        pytest.param(
            ["nft add table inet firewalld", "ipset create other hash:net"],
            "nftables",
            id="what is not iptables' does not count",
        ),
    ],
)
async def test_the_driver_is_what_the_host_uses(commands: list[str], expected: str) -> None:
    for command in commands:
        run(command)
    driver = await choose_driver(Choice.AUTO)
    assert (driver.kind if isinstance(driver, IPTables) else "nftables") == expected
    assert isinstance(await choose_driver(Choice.NFTABLES), NFTables)
    forced = await choose_driver(Choice.IPTABLES)
    assert isinstance(forced, IPTables)
    assert forced.kind == (expected if expected in list(Kind) else Kind.NFT)


@pytest.mark.usefixtures("netns")
async def test_what_we_wrote_ourselves_does_not_make_the_host_one_of_iptables(kind: Kind) -> None:
    await make_example(kind)
    assert isinstance(await choose_driver(Choice.AUTO), NFTables)


@pytest.mark.usefixtures("netns")
async def test_without_ipset_only_who_forces_iptables_gets_it_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("iptables-nft -P FORWARD DROP")
    for program in ("iptables-nft-save", "ip6tables-nft-save", "iptables", "nft"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(await choose_driver(Choice.AUTO), NFTables)
    forced = HostFirewall(Choice.IPTABLES)
    with pytest.raises(DataplaneError, match=r"^ipset: not installed \(Debian: ipset\)$"):
        await forced.apply(Change(new=EXAMPLE))


@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize("before", ["nftables", *Kind])
@pytest.mark.parametrize("after", ["nftables", *Kind])
async def test_another_driver_at_the_next_start_takes_over_and_leaves_nothing_of_the_first(
    before: str, after: str
) -> None:
    await start_with(before).apply(Change(new=EXAMPLE))
    for family in ("iptables", "ip6tables"):
        for one in Kind:
            run(f"{family}-{one} -t mangle -X KUBE-KUBELET-CANARY || true")
    second = start_with(after)
    found = await second.read()
    assert found == (EXAMPLE if before == after else NOT_OURS)
    await second.apply(Change(old=found, new=EXAMPLE))
    assert await second.read() == EXAMPLE
    assert await start_with(after).read() == EXAMPLE, "and nothing of the first is there"
    await second.apply(Change(old=EXAMPLE))
    assert list_ours() == ""


@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize("before", ["nftables", *Kind])
@pytest.mark.parametrize("after", ["nftables", *Kind])
async def test_an_uninstall_removes_what_any_driver_has_made(before: str, after: str) -> None:
    await start_with(before).apply(Change(new=EXAMPLE))
    uninstalling = start_with(after)
    found = await uninstalling.read()
    assert found is not None
    await uninstalling.apply(Change(old=found))
    assert await uninstalling.read() is None
    assert list_ours() == ""


def start_with(name: str) -> HostFirewall:
    """On a host that uses what is named."""
    for one in Kind:
        run(f"iptables-{one} {KUBELET if one == name else '-t mangle -X KUBE-KUBELET-CANARY'} || :")
    return HostFirewall(Choice.NFTABLES if name == "nftables" else Choice.IPTABLES)
