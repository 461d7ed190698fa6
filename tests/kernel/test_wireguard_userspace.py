"""wireguard-go's life: started where the kernel has no WireGuard, found, outlived, replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.dataplane.wireguard import WireGuard
from kilo.errors import DataplaneError
from kilo.keyfile import generate_private_key
from kilo.mesh.diff import Change
from kilo.mesh.state import WireGuardDevice
from tests.kernel.wireguard_hosts import Host, kernel_has_wireguard, wait_for
from tests.kernel.wireguard_mesh import LINK, PORT, Side, open_side, start_userspace_first

ROOT = Path(__file__).parents[2]
START = f"""
import asyncio
from kilo.dataplane.wireguard import WireGuard
from kilo.keyfile import generate_private_key
assert asyncio.run(WireGuard("{LINK}", generate_private_key()).ensure())
"""


NEEDS_NONE_IN_THE_KERNEL = pytest.mark.skipif(
    kernel_has_wireguard(), reason="this kernel has WireGuard, so wireguard-go is never started"
)


@pytest.fixture
def side() -> Iterator[Side]:
    with open_side(1) as side:
        yield side


def find_daemons(host: Host) -> list[int]:
    """The wireguard-go processes of the host's network namespace; zombies have none."""
    inode = host.call(lambda: Path("/proc/thread-self/ns/net").stat().st_ino)
    return [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if "wireguard-go" in read_text(process / "cmdline")
        and (process / "ns/net").exists()
        and (process / "ns/net").stat().st_ino == inode
    ]


def read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # the process has ended meanwhile


@NEEDS_NONE_IN_THE_KERNEL
def test_one_that_was_started_outlives_its_starter(side: Side) -> None:
    side.host.sh(f"cd {ROOT} && {sys.executable} -c '{START}'")
    assert side.device().public_key is None
    (daemon,) = find_daemons(side.host)
    assert os.getsid(daemon) != os.getsid(0)
    side.host.run(side.wireguard.delete())
    wait_for(lambda: find_daemons(side.host) == [])


@NEEDS_NONE_IN_THE_KERNEL
def test_one_that_was_killed_is_missed_and_replaced(side: Side) -> None:
    side.start()
    (daemon,) = find_daemons(side.host)
    os.kill(daemon, signal.SIGKILL)
    wait_for(lambda: find_daemons(side.host) == [])
    wait_for(lambda: side.read() == (None, frozenset()))
    assert side.host.run(side.wireguard.ensure()) is True
    device = WireGuardDevice(link=LINK, public_key=side.key, listen_port=PORT)
    side.apply(Change(old=side.device(), new=device))
    assert side.device() == device


@NEEDS_NONE_IN_THE_KERNEL
def test_two_programs_that_start_at_once_end_up_with_one(side: Side) -> None:
    other = WireGuard(LINK, side.private_key)

    async def start_both() -> tuple[bool, bool]:
        return await asyncio.gather(side.wireguard.ensure(), other.ensure())

    assert sorted(side.host.run(start_both())) == [False, True]
    wait_for(lambda: len(find_daemons(side.host)) == 1)
    assert side.device().public_key is None


@NEEDS_NONE_IN_THE_KERNEL
def test_without_the_program_the_error_says_what_to_install(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DataplaneError, match="install the package wireguard-go"):
        side.host.run(side.wireguard.ensure())


@NEEDS_NONE_IN_THE_KERNEL
def test_where_it_cannot_start_its_own_reason_is_in_the_error(side: Side) -> None:
    side.host.sh("mount -t tmpfs tmpfs /dev/net")
    with pytest.raises(DataplaneError, match=r"^interface kilo0: wireguard-go: .*tun"):
        side.host.run(side.wireguard.ensure())


def test_one_that_somebody_else_started_is_used(side: Side) -> None:
    given = WireGuard(LINK, side.private_key, create=False)
    with pytest.raises(
        DataplaneError, match=r"^interface kilo0 does not exist and --create-interf"
    ):
        side.host.run(given.ensure())
    start_userspace_first(side.host)
    assert side.host.run(given.ensure()) is False
    device, peers = side.host.run(given.read())
    assert device is not None
    assert peers == frozenset()


def test_one_of_another_network_namespace_is_told_from_ours(side: Side) -> None:
    side.host.sh(f"unshare --net wireguard-go {LINK} >&- 2>&-")
    wait_for(lambda: not side.host.sh(f"test -S /run/wireguard/{LINK}.sock || echo no"))
    (daemon,) = (
        int(pid) for pid in side.host.sh(f"pgrep --full '^wireguard-go {LINK}$' || true").split()
    )
    try:
        assert side.read() == (None, frozenset())
        if not kernel_has_wireguard():
            with pytest.raises(DataplaneError, match="it serves another network namespace"):
                side.host.run(side.wireguard.ensure())
    finally:
        os.kill(daemon, signal.SIGTERM)


def test_a_link_of_another_kind_is_left_alone(side: Side) -> None:
    side.host.sh(f"ip link add {LINK} type veth peer name other")
    assert side.read() == (None, frozenset())
    with pytest.raises(DataplaneError, match="interface kilo0 exists, of kind veth, and no Wire"):
        side.host.run(side.wireguard.ensure())
    side.host.run(side.wireguard.delete())
    assert LINK in side.host.sh("ip link")


def test_a_daemon_that_hangs_is_an_error_and_not_a_wait_for_ever(side: Side) -> None:
    start_userspace_first(side.host)
    (daemon,) = find_daemons(side.host)
    os.kill(daemon, signal.SIGSTOP)
    try:
        with pytest.raises(DataplaneError, match="does not answer within 10 s"):
            side.read()
    finally:
        os.kill(daemon, signal.SIGCONT)


def test_a_name_that_is_no_name_of_a_link_is_refused_with_it(side: Side) -> None:
    wireguard = WireGuard("a-name-too-long-for-linux", generate_private_key())
    with pytest.raises(DataplaneError, match="interface a-name-too-long-for-linux: "):
        side.host.run(wireguard.ensure())
