"""What fields of documents may hold: text <-> addresses, keys, endpoints, numbers, words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from ipaddress import IPV6LENGTH, ip_address, ip_interface
from typing import Any, TypeVar

from kilo.backends.fields import (
    BadValueError,
    Field,
    Format,
    Spot,
    read_fields,
)
from kilo.mesh.durations import format_duration, parse_duration
from kilo.mesh.keys import PresharedKey, PublicKey
from kilo.mesh.model import (
    MAX_KEEPALIVE_SECONDS,
    MAX_MTU,
    MIN_MTU,
    Encapsulation,
    Endpoint,
    Granularity,
    IPInterface,
    IPNetwork,
    SubnetPool,
)
from kilo.mesh.shared import share

T = TypeVar("T")

NO_INTERNAL_IP = ("", "-")
"""What an operator writes for a node without internal IP; Kilo takes both."""
MAX_TEXT = 253
"""Characters: as many as Kubernetes takes for a name. An annotation could have 256 KB."""
LATEST_SECOND = 2**53
"""JSON's whole numbers end here."""

_KEY_SHAPE = "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="
"""32 bytes in base64: of the last character's six bits the lower two belong to no byte."""
_CIDR_SHAPE = re.compile(r"[0-9a-fA-F.:]+/[0-9]{1,3}")


def read_text(value: object, spot: Spot) -> str:
    """A string of printable characters."""
    if not isinstance(value, str):
        raise spot.fault(value, "is not a string (put it in quotes)")
    if not value.isprintable():
        raise spot.fault(value, "has characters that cannot be printed")
    return value


def read_short_text(value: object, spot: Spot) -> str:
    """A string of printable characters that may be repeated in thousands of messages."""
    text = read_text(value, spot)
    if len(text) > MAX_TEXT:
        raise spot.fault(value, f"is longer than {MAX_TEXT} characters")
    return text


def read_number(value: object, spot: Spot, *, lowest: int, highest: int) -> int:
    """A whole number between the two, both allowed."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise spot.fault(value, "is not a whole number")
    if not lowest <= value <= highest:
        raise spot.fault(value, f"is outside {lowest}-{highest}")
    return value


def read_truth(value: object, spot: Spot) -> bool:
    """``true`` or ``false`` and no other word."""
    if not isinstance(value, bool):
        raise spot.fault(value, "is not true or false")
    return value


def read_cidr(value: object, spot: Spot) -> IPInterface:
    """An address with a prefix length, its host bits kept."""
    text = read_text(value, spot)
    fault = spot.fault(value, "is not a CIDR (address/prefix length)")
    # ipaddress would also take a bare address, a netmask after the slash, and a zone.
    if not _CIDR_SHAPE.fullmatch(text):
        raise fault
    try:
        return ip_interface(text)
    except ValueError:
        raise fault from None


def read_network(value: object, spot: Spot) -> IPNetwork:
    """A network. Host bits are dropped, as the kernel drops them: else it would differ for ever."""
    return share(read_cidr(value, spot).network)


def split_list(value: object, spot: Spot) -> list[object]:
    """A list, also when written as one comma separated string."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")] if value.strip() else []
    if not isinstance(value, list):
        raise spot.fault(value, "is not a list")
    return value


def read_networks(value: object, spot: Spot) -> tuple[IPNetwork, ...]:
    """Networks, each once; a bad one spoils the list."""
    items = enumerate(split_list(value, spot))
    return tuple(dict.fromkeys(read_network(item, spot.item(i)) for i, item in items))


def read_good_networks(value: object, spot: Spot) -> tuple[IPNetwork, ...]:
    """Networks, each once; a bad one is reported and left out, as Kilo leaves it out."""
    networks: dict[IPNetwork, None] = {}
    for index, item in enumerate(split_list(value, spot)):
        try:
            networks[read_network(item, spot.item(index))] = None
        except BadValueError as error:
            spot.report(error, "left out")
    return tuple(networks)


def read_some_networks(value: object, spot: Spot) -> tuple[IPNetwork, ...]:
    """At least one network."""
    if not isinstance(value, list):
        raise spot.fault(value, "is not a list")
    networks = read_networks(value, spot)
    if not networks:
        raise spot.fault(value, "names no network")
    return networks


def read_subnets(value: object, spot: Spot) -> tuple[IPNetwork, ...]:
    """At least one network and at most one of a family."""
    networks = read_networks(value, spot)
    if not networks:
        raise spot.fault(value, "names no network")
    check_families(networks, value, spot)
    return networks


def read_interfaces(value: object, spot: Spot) -> tuple[IPInterface, ...]:
    """At most one address with prefix length of each family; none if empty or ``-``."""
    if value in NO_INTERNAL_IP:
        return ()
    items = enumerate(split_list(value, spot))
    interfaces = tuple(read_cidr(item, spot.item(i)) for i, item in items)
    check_families(interfaces, value, spot)
    return interfaces


def read_internal_ips(value: object, spot: Spot) -> tuple[IPInterface, ...]:
    """As ``read_interfaces``, from one string, whose parts are not named apart."""
    text = read_text(value, spot)
    if text in NO_INTERNAL_IP:
        return ()
    interfaces = tuple(read_cidr(part.strip(), spot) for part in text.split(","))
    check_families(interfaces, value, spot)
    return interfaces


def check_families(found: Iterable[IPInterface | IPNetwork], value: object, spot: Spot) -> None:
    """Refuse more than one of IPv4 or of IPv6."""
    versions = [one.version for one in found]
    if len(set(versions)) != len(versions):
        shown = value if isinstance(value, str) else ", ".join(map(str, found))
        raise spot.fault(shown, "has more than one of a family")


def read_endpoint(value: object, spot: Spot) -> Endpoint:
    """``host:port``."""
    text = read_text(value, spot)
    try:
        return Endpoint.parse(text)
    except ValueError as error:
        # ipaddress' own texts quote the value, which may be long.
        reason = str(error) if str(error).startswith(("is ", "has ")) else "has a malformed address"
        raise spot.fault(value, f"{reason}; expected host:port") from None


def read_address(value: object, spot: Spot) -> str:
    """An address, normalised; empty where the text is."""
    text = read_text(value, spot)
    try:
        # A zone would mean something on one host only.
        return str(ip_address(text.replace("%", " "))) if text else ""
    except ValueError:
        raise spot.fault(value, "is not an IP address") from None


def read_duration(value: object, spot: Spot) -> float:
    """Seconds above zero, from ``30s`` or ``1m30s``."""
    try:
        seconds = parse_duration(read_text(value, spot))
    except ValueError as error:
        raise spot.fault(value, str(error)) from None
    if seconds <= 0:
        raise spot.fault(value, "is not above zero")
    return seconds


def read_mtu(value: object, spot: Spot) -> int | None:
    """Bytes, or None for ``auto``."""
    if value == "auto":
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise spot.fault(value, "is neither a whole number nor auto")
    return read_number(value, spot, lowest=MIN_MTU, highest=MAX_MTU)


def make_key_format(
    parse: Callable[[str], T],
    emit: Callable[[T], object],
    *,
    schema: Mapping[str, object],
    rules: Mapping[str, str] | None = None,
) -> Format:
    """A key in base64."""

    def read(value: object, spot: Spot) -> T:
        try:
            return parse(read_text(value, spot))
        except ValueError as error:
            raise spot.fault(value, str(error)) from None

    return Format(parse=read, emit=emit, schema=schema, rules=rules or {})


def make_number_format(*, lowest: int, highest: int) -> Format:
    """A whole number between the two."""
    return Format(
        parse=lambda value, spot: read_number(value, spot, lowest=lowest, highest=highest),
        emit=int,
        schema={"type": "integer", "minimum": lowest, "maximum": highest},
    )


def make_choice_format(choices: type[StrEnum]) -> Format:
    """One of an enumeration's words."""

    def read(value: object, spot: Spot) -> StrEnum:
        if isinstance(value, str) and value in list(choices):
            return choices(value)
        raise spot.fault(value, f"is not one of {', '.join(choices)}")

    return Format(parse=read, emit=str)


def emit_texts(values: Iterable[object]) -> list[str]:
    """A list of their texts."""
    return [str(value) for value in values]


def emit_internal_ips(interfaces: Iterable[IPInterface]) -> str:
    """One string, ``-`` where there are none."""
    return ",".join(map(str, interfaces)) or "-"


def parse_preshared_key(text: str) -> PresharedKey | None:
    """The key; None for an empty text, which is what Kilo and people's templates write for none."""
    return PresharedKey.parse(text) if text else None


def reveal_preshared_key(key: object) -> str:
    """The key itself, for the document that is to hold it; ``ValueError`` for a withheld one."""
    if not isinstance(key, PresharedKey):
        raise ValueError("spec.presharedKey: is withheld, so it cannot be written")  # noqa: TRY004 - not a programming error
    return key.reveal()


TEXT = Format(parse=read_short_text, emit=str)
TRUTH = Format(parse=read_truth, emit=bool)
SECONDS = make_number_format(lowest=0, highest=MAX_KEEPALIVE_SECONDS)
PORT = make_number_format(lowest=1, highest=65535)
UNIX_TIME = make_number_format(lowest=0, highest=LATEST_SECOND)
MTU = Format(parse=read_mtu, emit=lambda mtu: "auto" if mtu is None else mtu)
DURATION = Format(parse=read_duration, emit=format_duration)
ENDPOINT = Format(parse=read_endpoint, emit=str)
NETWORKS = Format(parse=read_networks, emit=emit_texts)
GOOD_NETWORKS = Format(parse=read_good_networks, emit=emit_texts)
SOME_NETWORKS = Format(
    parse=read_some_networks,
    emit=emit_texts,
    schema={"type": "array", "minItems": 1, "items": {"type": "string", "format": "cidr"}},
)
SUBNETS = Format(parse=read_subnets, emit=emit_texts)
INTERFACE = Format(parse=read_cidr, emit=str)
INTERFACES = Format(parse=read_interfaces, emit=emit_texts)
INTERNAL_IPS = Format(parse=read_internal_ips, emit=emit_internal_ips)
PUBLIC_KEY = make_key_format(
    PublicKey.parse, str, schema={"type": "string", "pattern": f"^{_KEY_SHAPE}$"}
)
# No pattern: the API server would answer with the secret it was given. A rule's message hides it.
PRESHARED_KEY = make_key_format(
    parse_preshared_key,
    reveal_preshared_key,
    schema={"type": "string"},
    rules={f"self.matches('^({_KEY_SHAPE})?$')": "is not a WireGuard key (32 bytes in base64)"},
)
GRANULARITY = make_choice_format(Granularity)
ENCAPSULATION = make_choice_format(Encapsulation)


# What one node's device sees of others: a list of {publicKey, endpoint}, sorted by key.

DISCOVERED_FIELDS = (
    Field(name="publicKey", attribute="public_key", format=PUBLIC_KEY, required=True),
    Field(name="endpoint", attribute="endpoint", format=ENDPOINT, required=True),
)


def read_discovered(value: object, spot: Spot) -> tuple[tuple[PublicKey, Endpoint], ...]:
    """Key and live endpoint of each device; a bad entry is reported and left out."""
    if not isinstance(value, list):
        raise spot.fault(value, "is not a list")
    found: dict[PublicKey, Endpoint] = {}
    for index, item in enumerate(value):
        try:
            entry: dict[str, Any] = read_fields(DISCOVERED_FIELDS, item, spot.item(index))
        except BadValueError as error:
            spot.report(error, "left out")
        else:
            found.setdefault(entry["public_key"], entry["endpoint"])
    return tuple(sorted(found.items()))


def emit_discovered(entries: Iterable[tuple[PublicKey, Endpoint]]) -> list[object]:
    """The list that ``read_discovered`` reads."""
    return [{"publicKey": str(key), "endpoint": str(endpoint)} for key, endpoint in entries]


DISCOVERED = Format(parse=read_discovered, emit=emit_discovered)


# Where nodes get their pod subnets from: a list of {cidr, nodePrefixLength}.

POOL_FIELDS = (
    Field(
        name="cidr",
        attribute="network",
        format=Format(parse=read_network, emit=str),
        required=True,
    ),
    Field(
        name="nodePrefixLength",
        attribute="node_prefix_length",
        format=make_number_format(lowest=0, highest=IPV6LENGTH),
        required=True,
    ),
)


def read_pools(value: object, spot: Spot) -> tuple[SubnetPool, ...]:
    """Pools, at most one of a family; a bad one spoils the list."""
    if not isinstance(value, list):
        raise spot.fault(value, "is not a list")
    pools = tuple(read_pool(item, spot.item(index)) for index, item in enumerate(value))
    check_families([pool.network for pool in pools], value, spot)
    return pools


def read_pool(value: object, spot: Spot) -> SubnetPool:
    """A network, and how long the prefixes of its parts are: not shorter than its own."""
    pool = SubnetPool(**read_fields(POOL_FIELDS, value, spot))
    at, network = spot.under("nodePrefixLength"), pool.network
    read_number(
        pool.node_prefix_length, at, lowest=network.prefixlen, highest=network.max_prefixlen
    )
    return pool


def emit_pools(pools: Iterable[SubnetPool]) -> list[object]:
    """The list that ``read_pools`` reads."""
    return [
        {"cidr": str(pool.network), "nodePrefixLength": pool.node_prefix_length} for pool in pools
    ]


POOLS = Format(parse=read_pools, emit=emit_pools)
