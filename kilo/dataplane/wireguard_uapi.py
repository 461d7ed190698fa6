"""WireGuard outside the kernel: its text protocol, over the socket ``/run/wireguard/<link>.sock``.

Described at https://www.wireguard.com/xplatform/. Encoding and decoding are pure; only
``exchange`` touches a socket. No error quotes what the device said: it may be a private key.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kilo.dataplane.wireguard_device import (
    NO_KEY,
    DeviceRecord,
    DeviceUpdate,
    Identity,
    MissingDeviceError,
    PeerRecord,
    PeerUpdate,
    RefusedError,
    make_endpoint,
    make_preshared_key,
)
from kilo.errors import DataplaneError
from kilo.keyfile import public_key
from kilo.mesh.keys import KEY_BYTES, PrivateKey, PublicKey
from kilo.mesh.model import Endpoint, IPNetwork
from kilo.mesh.shared import parse_network

EXCHANGE_SECONDS = 10.0
"""wireguard-go takes 0.13 s for 1,000 new peers; this is for one that hangs."""
MAX_ANSWER_BYTES = 64 << 20
"""Some 200,000 peers: more than an answer that ends."""

MAX_ERRNO = 4095
"""The kernel's ``MAX_ERRNO``: no error number is greater."""

Line = tuple[str, str]
AllowedIPs = dict[str, frozenset[IPNetwork]]
"""Lines of allowed IPs that follow each other, and what they say."""

_ALLOWED_IPS = re.compile(r"((?:^allowed_ip=[^\n]*\n)+)", re.MULTILINE)
_RESULT = re.compile(r"^errno=([^\n]*)$", re.MULTILINE)


class UserspaceDriver:
    """The device behind a UAPI socket."""

    def __init__(self, path: Path, identity: Identity, known: AllowedIPs | None = None) -> None:
        """``known`` is of the answer before, and is brought up to date."""
        self._path = path
        self._identity = identity
        self._known = {} if known is None else known

    def read(self) -> DeviceRecord:
        """See ``Driver``."""
        return decode_device(exchange(self._path, b"get=1\n\n"), self._derive, self._known)

    def configure(self, update: DeviceUpdate) -> None:
        """See ``Driver``. One request, however long."""
        parking = PublicKey.from_bytes(os.urandom(KEY_BYTES))
        decode_result(exchange(self._path, encode_update(update, parking)))

    def _derive(self, private: PrivateKey) -> PublicKey:
        identity = self._identity
        return identity.public if private == identity.private else public_key(private)


def exchange(path: Path, request: bytes) -> bytes:
    """Send one request and return the answer, which an empty line ends. Blocks on the socket."""
    deadline = time.monotonic() + EXCHANGE_SECONDS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(EXCHANGE_SECONDS)
        try:
            connection.connect(str(path))
            connection.sendall(request)
            return receive_answer(connection, deadline)
        except (FileNotFoundError, ConnectionError) as error:
            # Not there, nobody behind it, or its end came before the answer's.
            raise MissingDeviceError(f"no WireGuard answers at {path}") from error
        except TimeoutError as error:
            text = f"WireGuard at {path} does not answer within {EXCHANGE_SECONDS:g} s"
            raise DataplaneError(text) from error
        except OSError as error:
            raise DataplaneError(f"WireGuard at {path}: {error.strerror}") from error


def receive_answer(connection: socket.socket, deadline: float) -> bytes:
    """Everything up to the empty line; ``TimeoutError`` at the deadline (monotonic seconds)."""
    answer = bytearray()
    while not answer.endswith(b"\n\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        chunk = connection.recv(1 << 20)
        if not chunk:
            raise ConnectionResetError
        if len(answer) > MAX_ANSWER_BYTES:
            raise DataplaneError("WireGuard's answer has no end")
        answer += chunk
    return bytes(answer)


def encode_update(update: DeviceUpdate, parking: PublicKey) -> bytes:
    """The request that applies an update; ``parking`` as in ``DeviceUpdate.sequence``."""
    lines: list[Line] = [("set", "1")]
    if update.private_key is not None:
        lines.append(("private_key", update.private_key.raw.hex()))
    if update.listen_port is not None:
        lines.append(("listen_port", str(update.listen_port)))
    for peer in update.sequence(parking):
        lines += encode_peer(peer)
    return "".join(f"{name}={value}\n" for name, value in lines).encode() + b"\n"


def encode_peer(peer: PeerUpdate) -> Iterator[Line]:
    """The lines about one peer. That it must be there has to be said before anything else."""
    yield "public_key", peer.public_key.to_bytes().hex()
    if peer.only_if_there:
        yield "update_only", "true"
    if peer.remove:
        yield "remove", "true"
    if peer.preshared_key is not None:
        yield "preshared_key", peer.preshared_key.raw.hex()
    if peer.endpoint is not None:
        yield "endpoint", encode_endpoint(peer.endpoint)
    if peer.keepalive_seconds is not None:
        yield "persistent_keepalive_interval", str(peer.keepalive_seconds)
    for network in peer.added_ips:
        yield "allowed_ip", str(network)


def encode_endpoint(endpoint: Endpoint) -> str:
    """``address:port``. A name is refused: resolving it would stop the device for everybody."""
    if endpoint.ip is None:
        raise RefusedError(f"endpoint {endpoint}: is not an address")
    return str(endpoint)


def decode_result(answer: bytes) -> None:
    """Nothing if the answer says that all went well; ``RefusedError`` with the reason if not."""
    read_answer(answer)


def check_result(value: str) -> None:
    """Look at the value of ``errno``: 0, or an error number, which wireguard-go writes negative."""
    try:
        number = parse_number(value.removeprefix("-"), MAX_ERRNO)
    except ValueError:
        raise DataplaneError("WireGuard's answer has a result that is no number") from None
    if number:
        raise RefusedError(os.strerror(number), number=number)


def decode_device(
    answer: bytes, derive: Callable[[PrivateKey], PublicKey], known: AllowedIPs | None = None
) -> DeviceRecord:
    """The device in the answer to ``get=1``; ``DataplaneError`` if that is no such answer.

    ``known`` is what the answer before was found to say of allowed IPs, which are most of it and
    seldom change; afterwards it is what this one says.
    """
    draft = DeviceDraft(derive)
    said: AllowedIPs = {}
    for index, part in enumerate(_ALLOWED_IPS.split(read_answer(answer))):
        if index % 2:
            said[part] = networks = (known or {}).get(part) or decode_allowed_ips(part)
            draft.allow(networks)
        else:
            take_lines(part, draft.take)
    if known is not None:
        known.clear()
        known.update(said)
    return draft.finish()


def read_answer(answer: bytes) -> str:
    """The lines of an answer up to its empty line; as ``decode_result`` if all did not go well."""
    try:
        text = answer.decode("ascii")
    except UnicodeDecodeError:
        raise DataplaneError("WireGuard's answer is not text") from None
    text = text.partition("\n\n")[0] + "\n"
    result = _RESULT.search(text)
    if result is None:
        raise DataplaneError("WireGuard's answer has no result")
    check_result(result[1])
    return text


def decode_allowed_ips(lines: str) -> frozenset[IPNetwork]:
    """The networks of lines that are all about allowed IPs."""
    networks: set[IPNetwork] = set()
    take_lines(lines, lambda _, value: networks.add(parse_network(value)))
    return frozenset(networks)


def take_lines(lines: str, take: Callable[[str, str], None]) -> None:
    """Hand over name and value of each line; ``DataplaneError`` if ``take`` does not like one."""
    for line in filter(None, lines.split("\n")):
        name, equals, value = line.partition("=")
        if not equals:
            raise DataplaneError("WireGuard's answer has a line without '='")
        try:
            take(name, value)
        except (ValueError, OverflowError):
            # Without its cause, which holds the value.
            raise DataplaneError(f"WireGuard's answer has a {name[:40]} that is none") from None


@dataclass(slots=True)
class PeerDraft:
    """A peer whose lines are still arriving."""

    public_key: PublicKey
    preshared_key: bytes = field(default=NO_KEY, repr=False)
    endpoint: Endpoint | None = None
    numbers: dict[str, int] = field(default_factory=dict)
    allowed_ips: frozenset[IPNetwork] = frozenset()

    def take(self, name: str, value: str) -> None:
        """Use one line; names we do not know are for others."""
        if name in NUMBERS:
            self.numbers[name] = parse_number(value, NUMBERS[name])
        elif name == "endpoint":
            self.endpoint = parse_endpoint(value)
        elif name == "preshared_key":
            self.preshared_key = parse_key(value)

    def finish(self) -> PeerRecord:
        """The peer, now that its lines have ended."""
        numbers = self.numbers
        seconds = numbers.get("last_handshake_time_sec", 0)
        return PeerRecord(
            public_key=self.public_key,
            preshared_key=make_preshared_key(self.preshared_key),
            endpoint=self.endpoint,
            keepalive_seconds=numbers.get("persistent_keepalive_interval", 0),
            allowed_ips=self.allowed_ips,
            latest_handshake=seconds + numbers.get("last_handshake_time_nsec", 0) / 1e9,
            received_bytes=numbers.get("rx_bytes", 0),
            sent_bytes=numbers.get("tx_bytes", 0),
        )


NUMBERS = {
    "persistent_keepalive_interval": 65535,
    "last_handshake_time_sec": 1 << 63,
    "last_handshake_time_nsec": 10**9,
    "rx_bytes": 1 << 64,
    "tx_bytes": 1 << 64,
}
"""The numbers said of a peer, with the greatest value of each."""


class DeviceDraft:
    """A device whose lines are still arriving."""

    def __init__(self, derive: Callable[[PrivateKey], PublicKey]) -> None:
        self._derive = derive
        self._public_key: PublicKey | None = None
        self._listen_port = 0
        self._peers: list[PeerDraft] = []

    def take(self, name: str, value: str) -> None:
        """Use one line; ``ValueError`` if its value is none."""
        if name == "public_key":
            self._peers.append(PeerDraft(PublicKey.from_bytes(parse_key(value))))
        elif self._peers:
            self._peers[-1].take(name, value)
        elif name == "private_key":
            raw = parse_key(value)
            self._public_key = None if raw == NO_KEY else self._derive(PrivateKey(raw))
        elif name == "listen_port":
            self._listen_port = parse_number(value, 65535)

    def allow(self, networks: frozenset[IPNetwork]) -> None:
        """Use lines that are all about allowed IPs."""
        if self._peers:
            peer = self._peers[-1]
            # Mostly all of a peer's follow each other: then it has the very set that was handed in.
            peer.allowed_ips = peer.allowed_ips | networks if peer.allowed_ips else networks

    def finish(self) -> DeviceRecord:
        """The device, now that its lines have ended."""
        return DeviceRecord(
            public_key=self._public_key,
            listen_port=self._listen_port,
            peers=tuple(peer.finish() for peer in self._peers),
        )


def parse_key(value: str) -> bytes:
    """32 bytes in hexadecimal; ``ValueError`` otherwise."""
    raw = bytes.fromhex(value)
    if len(raw) != KEY_BYTES:
        raise ValueError("not 32 bytes")
    return raw


def parse_number(value: str, greatest: int) -> int:
    """A plain decimal from 0 to ``greatest``; ``ValueError`` otherwise."""
    # The length first: int() of a very long text is slow.
    if not (value.isascii() and value.isdigit() and len(value) <= 20 and int(value) <= greatest):
        raise ValueError("not a number in range")
    return int(value)


def parse_endpoint(value: str) -> Endpoint:
    """``address:port``, an IPv6 address in brackets, with or without a scope."""
    host, _, port = value.rpartition(":")
    return make_endpoint(host.removeprefix("[").removesuffix("]"), parse_number(port, 65535))
