"""Netlink framing and one blocking socket: all that the drivers need of netlink, hand-packed.

pyroute2 encodes some 1,300 routes a second and parses as slowly, WireGuard's peers too; a mesh of
thousands of nodes needs a hundred times that (``bench/routes.py`` measures it). The formats are
the kernel's ``linux/netlink.h`` and ``linux/rtnetlink.h``; everything is in the host's byte order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import starmap
from typing import NamedTuple, Self, TypeVar

from kilo.errors import DataplaneError

HEADER = struct.Struct("=IHHII")
"""Length with the header, type, flags, sequence number, port."""
ATTRIBUTE = struct.Struct("=HH")
"""Length with these four bytes, type."""
U32 = struct.Struct("=I")
_I32 = struct.Struct("=i")

NLMSG_ERROR = 2
NLMSG_DONE = 3
FIRST_OWN_TYPE = 16
"""Types below are netlink's own, the same in every family."""

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300

NETLINK_GENERIC = 16
"""Missing in ``socket``."""

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_GET_STRICT_CHK = 12
_SO_RCVBUFFORCE = 33
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF  # without the bits "nested" and "network byte order"

RECEIVE_BYTES = 64 * 1024
"""The kernel fills at most 32 KiB a datagram of a dump, if offered that much."""
BUFFER_BYTES = 4 * 1024 * 1024
BATCH_MESSAGES = 256
"""So many acknowledgements, at under 1 KiB of kernel memory each, fit any receive buffer."""
TIMEOUT_SECONDS = 10.0
"""The kernel answers at once, but may first wait for a lock that others hold."""
DUMP_ATTEMPTS = 8


# Apart from the event loop's own threads, all of which slow name lookups may occupy. One only:
# what a cancelled caller has begun is over before the next one looks.
_threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netlink")

Result = TypeVar("Result")
Buffer = TypeVar("Buffer", bytes, memoryview)


class KernelRefusalError(DataplaneError):
    """The kernel's answer to a request is an error; what to do next may depend on which."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what}: {os.strerror(number)}")
        self.number = number


class Message(NamedTuple):
    """One netlink message: a view of its body, without the header."""

    type: int
    flags: int
    sequence: int
    port: int
    body: memoryview


def pack_message(message_type: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A request with its header, padded to four bytes."""
    length = HEADER.size + len(body)
    header = HEADER.pack(length, message_type, flags | NLM_F_REQUEST, sequence, 0)
    return header + body + bytes(-length % 4)


def pack_attribute(attribute: int, value: bytes) -> bytes:
    """An attribute, padded to four bytes."""
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, attribute) + value + bytes(-length % 4)


def pack_nested(attribute: int, attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return pack_attribute(attribute | _NESTED, attributes)


def pack_text(attribute: int, text: str) -> bytes:
    """An attribute that is a NUL-terminated string."""
    return pack_attribute(attribute, os.fsencode(text) + b"\0")


def split_messages(datagram: bytes) -> Iterator[Message]:
    """The messages of a datagram; ``DataplaneError`` for lengths that cannot be."""
    return starmap(Message, _split(datagram))


def _split(datagram: bytes) -> Iterator[tuple[int, int, int, int, memoryview]]:
    """The fields of each message: of thousands, to make a ``Message`` is half of the work."""
    view = memoryview(datagram)
    offset, end = 0, len(view)
    while offset < end:
        if end - offset < HEADER.size:
            raise DataplaneError(f"netlink: {end - offset} bytes are too few for a message")
        length, message_type, flags, sequence, port = HEADER.unpack_from(view, offset)
        if not HEADER.size <= length <= end - offset:
            raise DataplaneError(f"netlink: a message of {length} bytes in {end - offset}")
        body = view[offset + HEADER.size : offset + length]
        yield message_type, flags, sequence, port, body
        offset += (length + 3) & ~3


def split_attributes(body: Buffer, offset: int = 0) -> Iterator[tuple[int, Buffer]]:
    """The type and value of each attribute from ``offset`` on; a list has many of one type.

    Raises ``DataplaneError`` for lengths that cannot be.
    """
    end = len(body)
    while end - offset >= ATTRIBUTE.size:
        length, attribute = ATTRIBUTE.unpack_from(body, offset)
        if not ATTRIBUTE.size <= length <= end - offset:
            raise DataplaneError(f"netlink: an attribute of {length} bytes in {end - offset}")
        yield attribute & _TYPE_MASK, body[offset + ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    if offset < end:
        raise DataplaneError(f"netlink: {end - offset} bytes are too few for an attribute")


def parse_attributes(body: memoryview, offset: int) -> dict[int, memoryview]:
    """Type -> value, the last of each type; as ``split_attributes``."""
    return dict(split_attributes(body, offset))


def read_u32(value: memoryview) -> int:
    """An attribute of four bytes; ``DataplaneError`` if it has fewer."""
    return int(unpack(U32, value)[0])


def read_name(value: memoryview) -> str:
    """A NUL-terminated name; a link's may hold any bytes, which are kept as surrogates."""
    return os.fsdecode(bytes(value).split(b"\0", 1)[0])


def unpack(layout: struct.Struct, body: memoryview) -> tuple[int, ...]:
    """The fixed part at the start of a body; ``DataplaneError`` if it is cut short."""
    if len(body) < layout.size:
        raise DataplaneError(f"netlink: {len(body)} bytes where {layout.size} belong")
    return layout.unpack_from(body)


def parse_error(body: memoryview) -> int:
    """The errno of an acknowledgement or of a dump's end, 0 for success."""
    return -unpack(_I32, body)[0]


class NetlinkSocket:
    """A blocking socket for one operation; to be used in a thread, made where it is asked for.

    A socket stays in the network namespace of the thread that makes it. One socket an operation
    costs 20 microseconds and spares every lock and every answer that comes too late.
    """

    def __init__(self, family: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family)
        self._socket.settimeout(TIMEOUT_SECONDS)
        widen_buffer(self._socket)
        # Without strict checking (before Linux 4.20) a dump is not filtered by the kernel: slower,
        # and no different for us, who look at every message anyway.
        with contextlib.suppress(OSError):
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def dump(
        self, message_type: int, body: bytes, decode: Callable[[memoryview], Result | None]
    ) -> list[Result]:
        """What ``decode`` makes of every object the kernel lists; None is left out.

        Decoded as it comes in: a router may list a million routes of which we want a few. Raises
        ``DataplaneError`` if the kernel refuses or the list never holds still.
        """
        for _ in range(DUMP_ATTEMPTS):
            found: list[Result] = []
            interrupted = False
            for kind, flags, answer in self._exchange(message_type, NLM_F_DUMP, body):
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if kind >= FIRST_OWN_TYPE and (result := decode(answer)) is not None:
                    found.append(result)
            if not interrupted:
                return found
        raise DataplaneError(f"netlink dump {message_type}: changed under every attempt to read it")

    def ask(self, message_type: int, flags: int, body: bytes) -> list[bytes]:
        """Send one request; the bodies of the answers that come before its acknowledgement.

        Raises ``KernelRefusalError``. Copies: views would keep what is beside them in memory.
        """
        answers = self._exchange(message_type, flags | NLM_F_ACK, body)
        return [bytes(answer) for kind, _, answer in answers if kind >= FIRST_OWN_TYPE]

    def _exchange(
        self, message_type: int, flags: int, body: bytes
    ) -> Iterator[tuple[int, int, memoryview]]:
        """Type, flags and body of the answer's messages, the closing one included."""
        self._sequence += 1
        sequence = self._sequence
        self._send(pack_message(message_type, flags, sequence, body))
        while True:
            for kind, told, number, _, answer in _split(self._receive()):
                if number != sequence:
                    continue
                done = kind in (NLMSG_DONE, NLMSG_ERROR)
                if done and (code := parse_error(answer)):
                    raise KernelRefusalError(f"netlink {message_type}", code)
                yield kind, told, answer
                if done:
                    return

    def request(self, messages: Sequence[tuple[int, int, bytes]]) -> list[int]:
        """Send each (type, flags, body), many at a time; the errno of each, 0 for success."""
        codes: list[int] = []
        for start in range(0, len(messages), BATCH_MESSAGES):
            codes += self._request_batch(messages[start : start + BATCH_MESSAGES])
        return codes

    def _request_batch(self, messages: Sequence[tuple[int, int, bytes]]) -> list[int]:
        first = self._sequence + 1
        self._sequence += len(messages)
        self._send(
            b"".join(
                pack_message(message_type, flags | NLM_F_ACK, first + index, body)
                for index, (message_type, flags, body) in enumerate(messages)
            )
        )
        answers: dict[int, int] = {}
        while len(answers) < len(messages):
            for message in split_messages(self._receive()):
                if message.type == NLMSG_ERROR and message.sequence >= first:
                    answers[message.sequence] = parse_error(message.body)
        return [answers[first + index] for index in range(len(messages))]

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise DataplaneError(f"netlink: send: {error.strerror or error}") from error

    def _receive(self) -> bytes:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except TimeoutError as error:
            raise DataplaneError(f"netlink: no answer in {TIMEOUT_SECONDS:g} s") from error
        except OSError as error:
            raise DataplaneError(f"netlink: receive: {error.strerror or error}") from error
        if not data:
            raise DataplaneError("netlink: an empty answer")
        return data


def open_socket(family: int = socket.NETLINK_ROUTE) -> NetlinkSocket:
    """A socket in this thread's network namespace; ``DataplaneError`` where there may be none."""
    try:
        return NetlinkSocket(family)
    except OSError as error:
        raise DataplaneError(f"netlink: socket: {error.strerror}") from error


async def run_with_socket(
    work: Callable[[NetlinkSocket], Result],
    family: int = socket.NETLINK_ROUTE,
    *,
    threads: Executor = _threads,
) -> Result:
    """What ``work`` returns, done in a thread: send and receive wait for the kernel's locks.

    Raises ``DataplaneError`` where the process may have no socket. The thread closes it, so that
    a cancelled caller does not take it away from under the call that is still running.
    """
    netlink = open_socket(family)

    def run() -> Result:
        with netlink:
            return work(netlink)

    return await asyncio.get_running_loop().run_in_executor(threads, run)


def widen_buffer(sock: socket.socket) -> None:
    """A receive buffer of 4 MiB; past the host's limit where the process may."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
