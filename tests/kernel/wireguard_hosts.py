"""Two hosts joined by a cable, each a network and a mount namespace with real WireGuard.

A host is a thread that has entered namespaces of its own and runs an event loop there; the
threads and processes it starts inherit them. So the driver under test runs as it would on a
machine, and the test beside it. Imports little: it also runs in an emulated machine.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from kilo.dataplane.links import create_link, delete_link
from kilo.dataplane.nlsocket import KernelRefusalError, open_socket

T = TypeVar("T")

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_REC_PRIVATE = 0x4000 | 0x40000
LIMIT_SECONDS = 90.0
"""For anything to happen: the machine may be an emulated one."""
INTERVAL_SECONDS = 0.01
ECHO_PORT = 7000

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def kernel_has_wireguard() -> bool:
    """Whether this kernel can make a WireGuard link."""
    return kernel_has("wireguard")


def kernel_has(kind: str) -> bool:
    """Whether this kernel can make such a link; tried in a namespace of its own."""
    with Host("probe") as host:
        return host.call(try_link, kind)


def try_link(kind: str) -> bool:
    with open_socket() as netlink:
        try:
            create_link(netlink, "probe", kind)
        except KernelRefusalError as error:
            # The kernel's own tunnel has the parameters of the one asked for.
            return error.number == errno.EEXIST
        delete_link(netlink, "probe")
    return True


class Host:
    """Namespaces with a thread and an event loop inside; gone when closed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop = asyncio.new_event_loop()
        self.tid = 0
        self._ready = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(LIMIT_SECONDS)
        if self._error:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LIMIT_SECONDS)

    def _live(self) -> None:
        try:
            # Working directory and mounts are shared by threads until they say otherwise.
            check(libc.unshare(CLONE_FS))
            check(libc.unshare(CLONE_NEWNS | CLONE_NEWNET))
            check(libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None))
            Path("/run/wireguard").mkdir(exist_ok=True)
            check(libc.mount(b"tmpfs", b"/run/wireguard", b"tmpfs", 0, None))
            self.tid = threading.get_native_id()
            sh("ip link set lo up")
        except OSError as error:
            self._error = error
        self._ready.set()
        if self._error is None:
            self.loop.run_forever()
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, run inside."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LIMIT_SECONDS)

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """The result of a function, run inside."""

        async def work() -> T:
            return function(*arguments)

        return self.run(work())

    def sh(self, command: str) -> str:
        return self.call(sh, command)

    def open_socket(self) -> socket.socket:
        """A UDP socket of this host, which may be used from outside: a socket keeps its network."""
        return self.call(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))


def sh(command: str) -> str:
    """What a shell command prints; fails with what it complains about."""
    done = subprocess.run(
        ["bash", "-ec", command],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
    return done.stdout


def connect_hosts(left: Host, right: Host, *, link: str = "eth0", subnet: int = 0) -> None:
    """A cable between two hosts, 192.168.0.1 on the left and 192.168.0.2 on the right."""
    left.sh(f"ip link add {link} type veth peer name {link} netns {right.tid}")
    prefix6 = f"fd00:{subnet}::" if subnet else "fd00::"
    for host, address in ((left, 1), (right, 2)):
        host.sh(
            f"ip address add 192.168.{subnet}.{address}/24 dev {link} &&"
            f"ip address add {prefix6}{address}/64 dev {link} nodad && ip link set {link} up"
        )


def map_address(address: str) -> str:
    return address if ":" in address else f"::ffff:{address}"


@contextmanager
def echo(host: Host, *addresses: str) -> Iterator[None]:
    """Answers every datagram to port 7000 of the host's addresses, from the address asked."""
    servers = [host.open_socket() for _ in addresses]
    for server, address in zip(servers, addresses, strict=True):
        server.bind((map_address(address), ECHO_PORT))
    stop_reading, stop = os.pipe()

    def serve() -> None:
        poll = select.poll()
        numbered = {server.fileno(): server for server in servers}
        for descriptor in (stop_reading, *numbered):
            poll.register(descriptor, select.POLLIN)
        while stop_reading not in (ready := {descriptor for descriptor, _ in poll.poll()}):
            for descriptor in ready:
                server = numbered[descriptor]
                server.sendto(*server.recvfrom(64))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.write(stop, b"x")
        thread.join(LIMIT_SECONDS)
        for descriptor in (stop, stop_reading):
            os.close(descriptor)
        for server in servers:
            server.close()


class Flow:
    """A datagram every 10 ms to an echoing address, each of them accounted for."""

    def __init__(self, host: Host, address: str) -> None:
        self._socket = host.open_socket()
        self._socket.connect((map_address(address), ECHO_PORT))
        self._stopping = threading.Event()
        self._news = threading.Condition()
        self.sent = 0
        self.answered: set[int] = set()
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._send, self._receive)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT_SECONDS)
        self._socket.close()

    def _send(self) -> None:
        while not self._stopping.wait(INTERVAL_SECONDS):
            with self._news:
                number = self.sent
                self.sent += 1
                self._news.notify_all()
            try:
                self._socket.send(struct.pack("!Q", number))
            except OSError:
                continue  # an answer that will be missing

    def _receive(self) -> None:
        while not self._stopping.is_set():
            try:
                answer = self._socket.recv(64)
            except OSError:
                continue  # somebody's ICMP message: that answer will be missing
            if len(answer) == 8:
                with self._news:
                    self.answered.add(struct.unpack("!Q", answer)[0])
                    self._news.notify_all()

    def _wait(self, condition: Callable[[], bool]) -> bool:
        with self._news:
            return self._news.wait_for(condition, LIMIT_SECONDS)

    def await_answers(self, count: int = 25) -> None:
        """Until that many datagrams sent from now on are answered."""
        start = self.sent
        assert self._wait(lambda: sum(number >= start for number in self.answered) >= count), (
            f"{len(self.answered)} of {self.sent} answered"
        )

    def count_answers_from_now(self, sending: int = 50) -> int:
        """How many of the next datagrams are answered."""
        start = self.sent
        assert self._wait(lambda: self.sent >= start + sending)
        return sum(number >= start for number in self.answered)

    def stop(self) -> list[int]:
        """End the flow and return the numbers of the datagrams that were never answered."""
        self._stopping.set()
        self._threads[0].join(LIMIT_SECONDS)
        wanted = set(range(self.sent))
        deadline = time.monotonic() + 5
        with self._news:
            self._news.wait_for(lambda: self.answered >= wanted, deadline - time.monotonic())
            return sorted(wanted - self.answered)


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it is so; looked at again and again, for what announces itself to nobody."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(INTERVAL_SECONDS)
