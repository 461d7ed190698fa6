"""What systemd is told, over a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.servicemanager import ServiceManager

LIMIT_SECONDS = 60.0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(0)
        yield channel


def make(manager: socket.socket, *, watchdog_microseconds: int = 200_000) -> ServiceManager:
    environ = {
        "NOTIFY_SOCKET": manager.getsockname(),
        "WATCHDOG_USEC": str(watchdog_microseconds),
    }
    return ServiceManager(environ)


async def receive(manager: socket.socket) -> list[str]:
    async with asyncio.timeout(LIMIT_SECONDS):
        data = await asyncio.get_running_loop().sock_recv(manager, 4096)
    return data.decode().split("\n")


class Pass:
    """What an engine would say of its passes."""

    def __init__(self) -> None:
        self.why_not = "no pass yet"
        self.is_stuck = False


async def test_ready_is_told_once_a_pass_has_succeeded_and_then_life(
    manager: socket.socket,
) -> None:
    agent = Pass()
    run = make(manager).follow(lambda: agent.why_not, lambda: agent.is_stuck)
    following = asyncio.ensure_future(run)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await asyncio.get_running_loop().sock_recv(manager, 4096)
    agent.why_not = ""
    assert await receive(manager) == ["READY=1"]
    assert await receive(manager) == ["WATCHDOG=1", "STATUS=the network is as it should be"]
    agent.why_not = "+ route 10.2.1.0/24: refused"
    while await receive(manager) != ["WATCHDOG=1", "STATUS=+ route 10.2.1.0/24: refused"]:
        pass
    following.cancel()


async def test_the_watchdog_is_left_to_bite_while_a_pass_is_stuck(manager: socket.socket) -> None:
    agent = Pass()
    agent.why_not, agent.is_stuck = "", True
    run = make(manager).follow(lambda: agent.why_not, lambda: agent.is_stuck)
    following = asyncio.ensure_future(run)
    assert await receive(manager) == ["READY=1"]
    for _ in range(3):
        assert await receive(manager) == ["STATUS=the network is as it should be"]
    agent.is_stuck = False
    while "WATCHDOG=1" not in await receive(manager):
        pass
    following.cancel()


async def test_a_name_without_a_file_is_understood() -> None:
    name = f"kilo-test-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"\0{name}")
        channel.settimeout(0)
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).tell("STOPPING=1")
        assert await receive(channel) == ["STOPPING=1"]


async def test_without_a_manager_or_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    ServiceManager({}).tell("READY=1")
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).tell("READY=1")


async def test_a_line_cannot_smuggle_in_another(manager: socket.socket) -> None:
    make(manager).tell("STATUS=bad\nWATCHDOG=1")
    assert await receive(manager) == ["STATUS=bad WATCHDOG=1"]
