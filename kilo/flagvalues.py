"""Kinds of values that several programs' flags have: networks, ports, links and paths."""

from __future__ import annotations

from pathlib import Path

from kilo.backends.formats import MAX_TEXT
from kilo.flags import Kind, list_of, parse_int
from kilo.mesh import shared
from kilo.mesh.model import MAX_KEEPALIVE_SECONDS, MAX_MTU, MIN_MTU, Endpoint, IPNetwork

MAX_INTERFACE_BYTES = 15
"""The kernel's IFNAMSIZ less the terminating zero."""


def parse_network(text: str) -> IPNetwork:
    """A CIDR; host bits are an error, since they hide what was meant."""
    try:
        return shared.parse_network(text)
    except ValueError as error:
        raise ValueError("is not a CIDR without host bits, such as 10.4.0.0/16") from error


def parse_mtu(text: str) -> int | None:
    """Bytes, or None for ``auto``."""
    if text == "auto":
        return None
    return parse_between(text, range(MIN_MTU, MAX_MTU + 1))


def parse_port(text: str) -> int:
    """A UDP port."""
    return parse_between(text, range(1, 65536))


def parse_between(text: str, allowed: range) -> int:
    """A whole number of the range."""
    number = parse_int(text)
    if number not in allowed:
        raise ValueError(f"is not within {allowed.start}-{allowed.stop - 1}")
    return number


def parse_interface(text: str) -> str:
    """A name that the kernel takes for a link."""
    if not 0 < len(text.encode()) <= MAX_INTERFACE_BYTES or text in (".", ".."):
        raise ValueError(f"is not a link's name: 1 to {MAX_INTERFACE_BYTES} bytes")
    if any(character.isspace() or character in "/:" for character in text):
        raise ValueError("is not a link's name: it has a space, '/' or ':'")
    return text


def parse_seconds(text: str) -> int:
    """Between keepalive packets."""
    return parse_between(text, range(MAX_KEEPALIVE_SECONDS + 1))


def parse_endpoint(text: str) -> Endpoint | None:
    """``host:port``, or None for an empty text."""
    try:
        return Endpoint.parse(text) if text else None
    except ValueError as error:
        # ipaddress' own texts quote the value.
        reason = str(error) if str(error).startswith(("is ", "has ")) else "has a malformed address"
        raise ValueError(reason) from error


def parse_location(text: str) -> str:
    """What a Node's document may call its location."""
    if not text.isprintable() or len(text) > MAX_TEXT:
        raise ValueError(f"is not a location: up to {MAX_TEXT} printable characters")
    return text


NETWORK = Kind(word="CIDR", parse=parse_network)
NETWORKS = list_of(NETWORK, "CIDRs")
MTU = Kind(word="bytes|auto", parse=parse_mtu, show=lambda mtu: str(mtu or "auto"))
PORT = Kind(word="port", parse=parse_port)
SECONDS = Kind(word="seconds", parse=parse_seconds)
ENDPOINT = Kind(word="host:port", parse=parse_endpoint)
LOCATION = Kind(word="name", parse=parse_location)
INTERFACE = Kind(word="name", parse=parse_interface)
PATH = Kind(word="path", parse=Path)
OPTIONAL_PATH: Kind[Path | None] = Kind(
    word="path", parse=lambda text: Path(text) if text else None
)
