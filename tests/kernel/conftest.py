"""A fresh network namespace for every test that asks for one.

The main thread itself moves into it, so sockets, subprocesses and worker threads started by
the test are inside as well; afterwards it moves back and the namespace, left by all, is gone.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kilo.dataplane import nftables
from kilo.dataplane.nftables import list_table
from kilo.mesh.state import FORWARDING, Firewall
from tests.dataplane.contract import OTHER_ADDRESSES, OTHER_LINK
from tests.kernel.linux_host import LinuxHost
from tests.kernel.namespace import Namespace

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


@contextmanager
def _inside_new_namespace() -> Iterator[Namespace]:
    # Python 3.11 has neither os.unshare nor os.setns.
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        namespace = Namespace()
        try:
            yield namespace
        finally:
            namespace.delete_links()
            _check(_libc.setns(home, CLONE_NEWNET), "setns")
    finally:
        os.close(home)


@pytest.fixture
def bare() -> Iterator[Namespace]:
    """Nothing has been done in it yet."""
    with _inside_new_namespace() as namespace:
        yield namespace


@pytest.fixture
def netns() -> Iterator[Namespace]:
    """As a host begins."""
    with _inside_new_namespace() as namespace:
        namespace.ip("link", "set", "lo", "up")
        yield namespace


@pytest.fixture
def interface_name() -> str:
    """Of no other test: userspace WireGuard's socket, named after it, is not in the namespace."""
    return f"kilo{os.getpid() % 100000}x{next(_numbers)}"


@pytest.fixture
async def host(netns: Namespace, interface_name: str, tmp_path: Path) -> AsyncIterator[LinuxHost]:
    netns.add_veth(OTHER_LINK, "peer0")
    for address in OTHER_ADDRESSES:
        netns.ip("address", "add", str(address), "dev", OTHER_LINK, "nodad")
    # What a new namespace begins with is the machine's matter.
    for name in FORWARDING.values():
        netns.set_sysctl(name.replace(".", "/"), "0")
    host = LinuxHost(netns, interface_name, state=tmp_path)
    yield host
    await host.dataplane.close()
    await host.wireguard.delete()


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each time that nft was asked for the table."""
    asked: list[None] = []

    async def list_counted() -> Firewall | None:
        asked.append(None)
        return await list_table()

    monkeypatch.setattr(nftables, "list_table", list_counted)
    return asked
