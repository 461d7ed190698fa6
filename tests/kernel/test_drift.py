"""What the kernel tells of, and what of it wakes us."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from kilo.dataplane.drift import (
    GAP_SECONDS,
    POLL_SHARE,
    DeviceWatch,
    Drift,
    Relevance,
)
from kilo.dataplane.owndoing import OwnDoing
from kilo.errors import DataplaneError
from tests.kernel.namespace import Namespace

NOTICE_SECONDS = 10.0
QUIET_SECONDS = 0.7
FLOOD = 40_000


class Device:
    """Something with a fingerprint."""

    def __init__(self) -> None:
        self.print: bytes | None = b"first"
        self.error = ""
        self.seconds = 0.0
        self.polled = asyncio.Event()

    async def fingerprint(self) -> bytes | None:
        self.polled.set()
        await asyncio.sleep(self.seconds)
        if self.error:
            raise DataplaneError(self.error)
        return self.print


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
async def drift(netns: Namespace, device: Device) -> AsyncIterator[Drift]:
    """Listening on a host where everything that was to be done first is done."""
    netns.add_veth("eth0", "other0")
    netns.ip("address", "add", "192.168.0.1/24", "dev", "eth0")
    netns.ip("address", "add", "fd00:192::1/64", "dev", "eth0", "nodad")
    netns.ip("route", "add", "default", "via", "192.168.0.9")
    netns.run("nft", "add", "table", "inet", "kilo")
    netns.run("nft", "add", "table", "inet", "other")
    drift = Drift(
        Relevance(table="kilo", routes=tuple, own=OwnDoing()), DeviceWatch(device.fingerprint)
    )
    yield drift
    await drift.aclose()


async def is_reported(drift: Drift, *, within_seconds: float = NOTICE_SECONDS) -> bool:
    try:
        async with asyncio.timeout(within_seconds):
            await anext(drift)
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "command",
    [
        "ip link set eth0 mtu 1400",
        "ip link set eth0 down",
        "ip link add br0 type bridge",
        "ip link delete eth0",
        "ip address add 192.168.0.2/24 dev eth0",
        "ip address delete 192.168.0.1/24 dev eth0",
        "ip address add fd00:192::2/64 dev eth0 nodad",
        "ip address delete fd00:192::1/64 dev eth0",
        "ip route add default via 192.168.0.8 metric 5",
        "ip route delete default",
        "ip route add 10.2.0.0/16 dev eth0 proto 107",
        "ip route add blackhole 10.2.0.0/16 proto 107",
        "ip -6 route add fd00:2::/48 dev eth0 proto 107 table 1107",
        "ip rule add to 10.2.0.0/16 lookup 1107 pref 11070 protocol 107",
        "ip rule add to 10.2.0.0/16 lookup 1107 pref 11079",
        "ip -6 rule add to fd00:2::/48 lookup 1107 protocol 107",
        "nft delete table inet kilo",
        "nft add chain inet kilo more",
        "nft add set inet kilo more { type ipv4_addr; }",
        "nft flush ruleset",
    ],
)
async def test_it_is_reported_that_somebody_said(
    netns: Namespace, drift: Drift, command: str
) -> None:
    netns.run(*command.split())

    assert await is_reported(drift)


@pytest.mark.parametrize(
    "command",
    [
        "ip route add 10.99.0.0/16 dev eth0",
        "ip route replace 10.99.0.0/16 dev eth0 proto static",
        "ip -6 route add fd00:99::/48 dev eth0",
        "ip route add default via 192.168.0.9 table 77",
        "ip rule add to 10.99.0.0/16 lookup 77",
        "ip address add 169.254.9.9/16 dev eth0 scope link",
        "ip neighbour add 192.168.0.9 lladdr 02:00:00:00:00:01 dev eth0",
        "nft add table inet kilo2",
        "nft add table ip kilo",
        "nft add chain inet other more",
    ],
)
async def test_it_is_nothing_to_us_that_somebody_said(
    netns: Namespace, drift: Drift, command: str
) -> None:
    netns.run(*command.split())

    assert not await is_reported(drift, within_seconds=QUIET_SECONDS)


async def test_a_message_that_repeats_what_was_so_before_is_no_news(
    netns: Namespace, drift: Drift
) -> None:
    netns.ip("link", "set", "eth0", "alias", "said again")
    netns.ip(
        "address",
        "change",
        "fd00:192::1/64",
        "dev",
        "eth0",
        "valid_lft",
        "9999",
        "preferred_lft",
        "9999",
    )

    assert not await is_reported(drift, within_seconds=QUIET_SECONDS)


async def test_what_happened_before_the_first_wait_is_not_lost(
    netns: Namespace, drift: Drift
) -> None:
    netns.ip("route", "add", "10.2.0.0/16", "dev", "eth0", "proto", "107")
    netns.ip("route", "delete", "10.2.0.0/16", "dev", "eth0", "proto", "107")

    assert await is_reported(drift)


async def test_a_flood_that_does_not_fit_counts_as_touched(netns: Namespace, drift: Drift) -> None:
    flood = "".join(
        f"route add 10.{number >> 8}.{number & 255}.1 dev eth0\n" for number in range(FLOOD)
    )
    # The loop does not turn meanwhile, so that nobody takes the messages off the socket.
    netns.run("ip", "-batch", "-", stdin=flood)

    assert await is_reported(drift)
    await asyncio.sleep(0)
    assert not await is_reported(drift, within_seconds=QUIET_SECONDS), "and that is over then"


async def test_reports_keep_their_distance(netns: Namespace, drift: Drift) -> None:
    loop = asyncio.get_running_loop()
    reported_at = []
    for number in range(3):
        netns.ip("route", "add", f"10.2.{number}.0/24", "dev", "eth0", "proto", "107")
        assert await is_reported(drift)
        reported_at.append(loop.time())

    first, second, third = reported_at
    assert second - first >= GAP_SECONDS * 0.9
    assert third - second >= GAP_SECONDS * 0.9


async def test_closing_ends_a_wait(drift: Drift) -> None:
    waiting = asyncio.create_task(anext(drift, "ended"))
    await asyncio.sleep(0)

    await drift.aclose()

    async with asyncio.timeout(NOTICE_SECONDS):
        assert await waiting == "ended"


@pytest.mark.parametrize(
    "change",
    [
        lambda device: setattr(device, "print", b"second"),
        lambda device: setattr(device, "print", None),
        lambda device: setattr(device, "error", "wireguard kilo0: no answer"),
    ],
)
async def test_another_fingerprint_of_the_device_is_reported_once(
    drift: Drift, device: Device, change: Callable[[Device], None]
) -> None:
    assert await is_quiet_over_a_poll(drift, device), "the first one is no change"

    change(device)

    assert await is_reported(drift)
    assert await is_quiet_over_a_poll(drift, device)


async def is_quiet_over_a_poll(drift: Drift, device: Device) -> bool:
    waiting = asyncio.ensure_future(anext(drift))
    device.polled.clear()
    try:
        async with asyncio.timeout(NOTICE_SECONDS):
            await device.polled.wait()
        done, _ = await asyncio.wait({waiting}, timeout=QUIET_SECONDS)
        return not done
    finally:
        waiting.cancel()


async def test_a_change_between_reading_the_device_and_the_first_poll_is_reported(
    drift: Drift, device: Device
) -> None:
    watch = DeviceWatch(device.fingerprint)
    watch.know(await device.fingerprint())

    device.print = b"second"

    assert await watch.notice_change()


async def test_a_fingerprint_that_is_dear_is_taken_less_often(device: Device) -> None:
    device.seconds = 0.1
    watch = DeviceWatch(device.fingerprint)

    await watch.notice_change()

    assert watch.interval_seconds >= POLL_SHARE * device.seconds


async def test_one_fingerprint_that_happened_to_take_long_changes_nothing(device: Device) -> None:
    watch = DeviceWatch(device.fingerprint)
    await watch.notice_change()
    device.seconds = 0.1

    await watch.notice_change()

    assert watch.interval_seconds < POLL_SHARE * device.seconds
