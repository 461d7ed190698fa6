"""What the mesh is said to be: nodes, peers and settings, gathered in one Snapshot.

Three things are kept apart. What an operator *declares* is a ``NodeSpec``; what a node's
agent *reports* is a ``NodeReport``; when it was last heard of is in ``Snapshot.last_seen``,
outside every value that is compared, so that a heartbeat changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)
from types import MappingProxyType
from typing import Self, TypedDict

from kilo.mesh.keys import PresharedKey, PublicKey, Withheld

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
IPInterface = IPv4Interface | IPv6Interface

MAX_KEEPALIVE_SECONDS = 65535
MIN_MTU, MAX_MTU = 576, 65535
"""Bytes: what every IPv4 host must take (RFC 791), and the largest packet there is. A link that is
to carry IPv6 needs 1280 (RFC 8200 section 5)."""


class Granularity(StrEnum):
    """How the mesh is cut into segments."""

    LOCATION = "location"
    FULL = "full"
    CROSS = "cross"


class Encapsulation(StrEnum):
    """When packets between nodes of one location travel inside IPIP."""

    NEVER = "never"
    CROSSSUBNET = "crosssubnet"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a device listens: an address or a DNS name (no brackets), and a UDP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``host:port``, an IPv6 host in brackets; ``ValueError`` says what is wrong."""
        host, colon, port = text.rpartition(":")
        if not colon or not host:
            raise ValueError("is not host:port")
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise ValueError("has a port outside 1-65535")
        return cls(host=parse_host(host, bracketed=True), port=int(port))

    @property
    def ip(self) -> IPAddress | None:
        """The host as an address, or None where it is a DNS name."""
        return find_address(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@lru_cache(maxsize=1 << 15)
def find_address(host: str) -> IPAddress | None:
    """The address that a host is, or None where it is a DNS name. Remembered: every pass asks it
    of every node, and parsing is dear.
    """
    try:
        return ip_address(host)
    except ValueError:
        return None


def parse_host(text: str, *, bracketed: bool) -> str:
    """An IPv4 address, an IPv6 address (in brackets if asked) or a DNS name, normalised.

    A zone (``fe80::1%eth0``) means something on one host only, and may hold any character.
    """
    if "%" in text:
        raise ValueError("has an address with a zone")
    if bracketed and text.startswith("[") and text.endswith("]"):
        return str(IPv6Address(text[1:-1]))
    if ":" in text:
        if bracketed:
            raise ValueError("has an IPv6 address without brackets")
        return str(IPv6Address(text))
    if text.replace(".", "").isdigit():
        return str(IPv4Address(text))
    if not is_dns_name(text):
        raise ValueError("has a host that is neither an address nor a DNS name")
    return text


def is_dns_name(text: str) -> bool:
    """Whether a resolver may be asked for it: labels of letters, digits, '-' and '_'."""
    labels = text.removesuffix(".").split(".")
    return len(text) <= 253 and all(
        0 < len(label) <= 63
        and label.isascii()
        and label.replace("-", "a").replace("_", "a").isalnum()
        and not label.startswith("-")
        and not label.endswith("-")
        for label in labels
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """What an operator declares about a node; every field may be left out."""

    location: str = ""
    endpoint: Endpoint | None = None
    internal_ips: tuple[IPInterface, ...] | None = None
    """None: let the agent find them; (): the node has none and is a segment of its own."""
    leader: bool = False
    persistent_keepalive_seconds: int = 0
    allowed_location_ips: tuple[IPNetwork, ...] = ()
    pod_subnets: tuple[IPNetwork, ...] = ()
    public_key: PublicKey | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What a node's agent found out and publishes."""

    name: str
    public_key: PublicKey
    endpoint: Endpoint | None = None
    internal_ips: tuple[IPInterface, ...] = ()
    """At most one a family, with its real prefix length; Kilo's agents use the first."""
    wireguard_ips: tuple[IPInterface, ...] = ()
    discovered_endpoints: tuple[tuple[PublicKey, Endpoint], ...] = ()
    """Live endpoints of devices behind NAT, as this node's device sees them; sorted by key."""
    granularity: Granularity | None = None
    cni_compatibility_ip: IPInterface | None = None
    """Where the network beside ours, Cilium, finds the node."""
    agent: str = ""
    """Name and version of the agent, ``kg 0.1.0``; Kilo's own do not say, and know no more than
    spec section 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the mesh: what was declared of it joined with what it reports."""

    name: str
    spec: NodeSpec = NodeSpec()
    report: NodeReport | None = None
    origin: str = ""
    """The store it stands in, where there are several."""
    in_cluster: bool = field(default=False, compare=False)
    """Whether it is a Kubernetes cluster's, though it may have been read from a file."""

    @property
    def public_key(self) -> PublicKey | None:
        """The declared key, else the reported one."""
        return self.spec.public_key or (self.report.public_key if self.report else None)

    @property
    def endpoint(self) -> Endpoint | None:
        """The declared (forced) endpoint, else the one the agent found."""
        return self.spec.endpoint or (self.report.endpoint if self.report else None)

    @property
    def internal_ips(self) -> tuple[IPInterface, ...]:
        """The declared (forced) internal addresses, else those the agent found.

        Not what the agent of a node with a declared key found: such a node takes part without
        reporting, and what only itself can read must not make it compute another mesh.
        """
        if self.spec.internal_ips is not None:
            return self.spec.internal_ips
        if self.report is None or self.spec.public_key is not None:
            return ()
        return self.report.internal_ips

    @property
    def pod_subnets(self) -> tuple[IPNetwork, ...]:
        """The CIDRs of the workloads on the node."""
        return self.spec.pod_subnets

    @property
    def has_foreign_agent(self) -> bool:
        """Whether Kilo's own agent runs there, or another that does not say what it is."""
        return self.report is not None and not self.report.agent

    @property
    def discovered_endpoints(self) -> tuple[tuple[PublicKey, Endpoint], ...]:
        """What the node's device has seen of devices behind NAT."""
        return self.report.discovered_endpoints if self.report else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A WireGuard device outside the mesh that the mesh lets in."""

    name: str
    public_key: PublicKey
    allowed_ips: tuple[IPNetwork, ...]
    persistent_keepalive_seconds: int = 0
    preshared_key: PresharedKey | Withheld | None = None
    endpoint: Endpoint | None = None
    origin: str = ""
    """The store it stands in, where there are several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetPool:
    """A network of which each node that registers itself is given a part for its workloads."""

    network: IPNetwork
    node_prefix_length: int
    """Of each part; not shorter than the network's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for the whole mesh, complete."""

    subnets: tuple[IPNetwork, ...] = (ip_network("10.4.0.0/16"),)
    """The Kilo subnets that WireGuard addresses come from, at most one of a family."""
    granularity: Granularity = Granularity.LOCATION
    port: int = 51820
    mtu: int | None = None
    """Bytes; None is automatic: the default route's link's MTU less 80."""
    encapsulation: Encapsulation = Encapsulation.NEVER
    service_cidrs: tuple[IPNetwork, ...] = ()
    resync_period_seconds: float = 30.0
    pod_subnet_pools: tuple[SubnetPool, ...] = ()
    """At most one of a family."""


class PartialSettings(TypedDict, total=False):
    """The settings somebody set, be it in the store or by a flag; the others are absent.

    Complete ones are made by ``dataclasses.replace(Settings(), **stored, **flags)``.
    """

    subnets: tuple[IPNetwork, ...]
    granularity: Granularity
    port: int
    mtu: int | None
    encapsulation: Encapsulation
    service_cidrs: tuple[IPNetwork, ...]
    resync_period_seconds: float
    pod_subnet_pools: tuple[SubnetPool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something in the store that was left out, and why; ``str()`` is one line for an operator."""

    source: str
    """Where it stands: ``peers.yaml, document 2``; empty for an object of a cluster."""
    object: str
    """Kind and name, ``Peer squat``; empty where not even that could be read."""
    field: str = ""
    """The path inside the object, ``spec.allowedIPs[0]``."""
    value: str = ""
    """The offending value, shortened; empty where it may be secret."""
    reason: str
    origin: str = ""
    """The store it stands in, where there are several."""

    def __str__(self) -> str:
        places = (self.origin, self.source, self.object, self.field)
        what = ": ".join(part for part in places if part)
        value = f" {self.value!r}" if self.value else ""
        return f"{what}:{value} {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a backend knows at one moment. Equality leaves out the heartbeats."""

    nodes: tuple[Node, ...] = ()
    """Sorted by name, names unique."""
    peers: tuple[Peer, ...] = ()
    """Sorted by name, names unique."""
    settings: PartialSettings = field(default_factory=PartialSettings)
    problems: tuple[Problem, ...] = ()
    """What was left out of the above; sorted."""
    last_seen: Mapping[str, int] = field(
        default_factory=lambda: MappingProxyType({}), compare=False
    )
    """Node name -> the Unix seconds its agent last wrote; no entry for one that never reported."""
    away: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Of several stores those that cannot be heard, each with the reason. What stands in them is
    as it was last heard, and whether their nodes live cannot be told."""
    parts: Mapping[str, Snapshot] = field(
        default_factory=lambda: MappingProxyType({}), compare=False
    )
    """What each of several stores says, as far as it has been heard: what this is joined from."""
    home: str = field(default="", compare=False)
    """Of several stores the one that the local agent's report goes to."""
