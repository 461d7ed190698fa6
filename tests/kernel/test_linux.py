"""The Linux dataplane with a part of the host missing, and over a link that comes and goes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from kilo.dataplane.linux import LinuxDataplane
from kilo.dataplane.nftables_shape import TABLE
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change, Changes, diff
from kilo.mesh.host import ForwardDrop
from kilo.mesh.state import DataplaneState, Firewall, WireGuardDevice, WireGuardPeer
from tests.dataplane.contract import establish, expect_failures, make_state
from tests.kernel.linux_host import LinuxHost
from tests.kernel.namespace import Namespace

NOTICE_SECONDS = 10.0


async def test_without_nft_only_the_firewall_fails(
    host: LinuxHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    desired = make_state(host)
    await establish(host, replace(desired, routes=frozenset(), firewall=None))
    monkeypatch.setenv("PATH", str(tmp_path))

    (failure,) = await expect_failures(host, *diff(await host.dataplane.read(), desired))

    assert failure.startswith(f"+ {desired.firewall}: ")
    assert "nft" in failure
    assert await host.dataplane.read() == replace(desired, firewall=None)


async def test_what_cannot_be_read_is_one_error_that_says_so(
    host: LinuxHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nft").write_text("#!/bin/sh\necho nonsense\n")
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(DataplaneError, match=r"^nft: list table inet kilo: answered no JSON"):
        await host.dataplane.read()


@pytest.mark.skipif(
    Path("/sys/module/wireguard").exists(), reason="this kernel has a WireGuard of its own"
)
async def test_without_a_wireguard_the_rest_of_what_can_be_done_is_done(
    host: LinuxHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    desired = make_state(host)
    needed = replace(desired, firewall=None)
    monkeypatch.setenv("PATH", str(tmp_path))

    failures = await expect_failures(host, *diff(await host.dataplane.read(), needed))

    assert [line.split()[1] for line in failures].count("link") == 1
    assert not any(line.split()[1] == "rule" for line in failures)
    done = DataplaneState(barriers=desired.barriers, rules=desired.rules, sysctls=desired.sysctls)
    assert await host.dataplane.read() == done


class Sets:
    """A firewall whose change is no transaction of nftables'; meanwhile somebody makes one."""

    is_transactional = False

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    async def read(self) -> Firewall | None:
        return None

    async def apply(self, change: Change) -> None:  # noqa: ARG002  the contract's
        self._namespace.run("nft", "add", "table", "inet", TABLE)

    async def find_forward_drops(self) -> tuple[ForwardDrop, ...]:
        return ()


async def test_what_others_do_in_the_moment_of_our_change_is_not_taken_for_ours(
    host: LinuxHost, netns: Namespace
) -> None:
    dataplane = LinuxDataplane(host.interface, wireguard=host.wireguard, firewall=Sets(netns))
    await dataplane.read()
    drift = dataplane.drift()

    await dataplane.apply(Changes((Change(new=Firewall(clamp_links=frozenset({"eth0"}))),)))

    async with asyncio.timeout(NOTICE_SECONDS):
        await anext(drift)
    await dataplane.close()


async def test_a_link_deleted_by_hand_is_made_again_with_all_that_was_on_it(
    host: LinuxHost, netns: Namespace
) -> None:
    desired = make_state(host)
    await establish(host, desired)
    netns.ip("link", "delete", host.interface)

    await establish(host, desired)

    assert await host.dataplane.read() == desired


@pytest.mark.parametrize("version", [4, 6])
async def test_a_foreign_route_in_our_place_that_goes_is_reported(
    host: LinuxHost, netns: Namespace, version: int
) -> None:
    """Ours had to stay out as long as that was there."""
    desired = make_state(host)
    route = next(
        route
        for route in desired.routes
        if route.destination.version == version and route.gateway is not None
    )
    foreign = replace(route, gateway=None, onlink=False, source=None)
    await establish(host, replace(desired, routes=desired.routes - {route}))
    await host.add_route(foreign, protocol="static")
    await expect_failures(host, *diff(await host.dataplane.read(), desired))
    drift = host.dataplane.drift()

    await host.delete_route(foreign)

    async with asyncio.timeout(NOTICE_SECONDS):
        await anext(drift)


async def test_another_pass_writes_nothing(host: LinuxHost, netns: Namespace) -> None:
    desired = make_state(host)
    await establish(host, desired)

    for _ in range(3):
        assert diff(await host.dataplane.read(), desired) == Changes()


async def test_a_leader_that_is_one_no_longer_keeps_neither_address_nor_peer(
    host: LinuxHost, netns: Namespace
) -> None:
    """Linux takes an address for its own though its link is down: what is sent to the next leader
    that bears it would stay here (spec 13.5).
    """
    desired = make_state(host)
    await establish(host, desired)
    led = DataplaneState(
        links=frozenset(replace(link, up=False) for link in desired.links), devices=desired.devices
    )

    await establish(host, led)

    assert await host.dataplane.read() == led
    assert "inet" not in netns.ip("address", "show", "dev", host.interface, "scope", "global")
    assert netns.run("wg", "show", host.interface, "peers") == ""
    for address in ("10.4.0.1", "fd00:4::1"):
        assert not netns.ip("route", "show", "table", "local", address)
    netns.ip("link", "set", host.interface, "up")
    (link,) = (await host.dataplane.read()).links
    assert await host.dataplane.read() == replace(led, links=frozenset({link})), "none comes back"


@pytest.mark.parametrize("address", ["10.4.0.9/16", "fd00:4::9/64"])
async def test_an_address_left_on_the_link_while_it_is_down_goes_too(
    host: LinuxHost, netns: Namespace, address: str
) -> None:
    desired = make_state(host)
    (link,) = desired.links
    led = DataplaneState(links=frozenset({replace(link, up=False)}), devices=desired.devices)
    await establish(host, led)
    netns.ip("address", "add", address, "dev", host.interface)

    await establish(host, led)

    assert await host.dataplane.read() == led
    assert "inet" not in netns.ip("address", "show", "dev", host.interface, "scope", "global")


async def test_every_failure_begins_with_its_step(host: LinuxHost) -> None:
    desired = make_state(host)
    steps = [
        step
        for step in diff(DataplaneState(), desired)
        if isinstance(step.resource, WireGuardDevice | WireGuardPeer)
    ]

    failures = await expect_failures(host, *steps)

    assert sorted(line.split(": ")[0] for line in failures) == sorted(
        str(step).split(": ", maxsplit=1)[0] for step in steps
    )


async def test_a_table_of_our_name_with_other_rules_differs_from_any_desired(
    host: LinuxHost, netns: Namespace
) -> None:
    desired = make_state(host)
    await establish(host, desired)
    netns.run("nft", "flush", "chain", "inet", "kilo", "postrouting")

    assert (await host.dataplane.read()).firewall != desired.firewall

    await establish(host, desired)

    assert isinstance((await host.dataplane.read()).firewall, Firewall)
    assert await host.dataplane.read() == desired


async def test_what_a_change_of_the_firewall_came_to_need_not_be_listed_by_the_next_pass(
    host: LinuxHost, netns: Namespace, listings: list[None]
) -> None:
    desired = make_state(host)
    await establish(host, desired)
    listings.clear()
    assert await host.dataplane.read() == desired
    assert not listings
    netns.run("nft", "add", "table", "inet", "other")
    assert await host.dataplane.read() == desired
    assert len(listings) == 1


async def test_a_foreign_link_of_our_name_is_not_ours_and_stays_as_it_is(
    host: LinuxHost, netns: Namespace
) -> None:
    netns.ip("link", "add", host.interface, "type", "bridge")
    netns.ip("link", "set", host.interface, "mtu", "1400", "up")
    assert (await host.dataplane.read()).links == frozenset()
    desired = make_state(host)

    failures = await expect_failures(host, *diff(DataplaneState(), desired))

    assert any(line.startswith(f"+ link {host.interface}") for line in failures)
    assert "mtu 1400" in netns.ip("link", "show", host.interface)
