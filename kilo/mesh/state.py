"""What the kernel should look like: the part of a host's network state that is Kilo's.

Every resource knows its ``key`` (what it is) and its ``str`` (one line, in ``ip``'s and
``wg``'s words). Links are named, never numbered: the driver resolves the name when it applies.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import chain

from kilo.mesh.keys import PresharedKey, PublicKey, Withheld
from kilo.mesh.model import Endpoint, IPAddress, IPInterface, IPNetwork

MAIN_TABLE = 254
ENCAPSULATION_TABLE = 1107
FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
"""Family -> the setting that makes a host pass packets on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The WireGuard interface, whichever of kernel or userspace provides it."""

    name: str
    mtu: int
    up: bool

    @property
    def key(self) -> tuple[object, ...]:
        return (self.name,)

    def __str__(self) -> str:
        return f"link {self.name} mtu {self.mtu} {'up' if self.up else 'down'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """The IPIP link by which packets travel within a location; not one that others use."""

    name: str
    mtu: int
    up: bool = True
    addresses: frozenset[IPInterface] = frozenset()

    @property
    def key(self) -> tuple[object, ...]:
        return (self.name,)

    def __str__(self) -> str:
        addresses = ",".join(sorted(map(str, self.addresses)))
        parts = [f"tunnel {self.name} mtu {self.mtu}", "up" if self.up else "down"]
        return " ".join([*parts, *([f"address {addresses}"] if addresses else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address on a link, with its prefix length."""

    link: str
    interface: IPInterface

    @property
    def key(self) -> tuple[object, ...]:
        return (self.link, self.interface)

    def __str__(self) -> str:
        return f"address {self.interface} dev {self.link}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WireGuardDevice:
    """The device's own configuration. The private key stays with the driver, which holds it."""

    link: str
    public_key: PublicKey | None
    """None: the device has no private key yet."""
    listen_port: int

    @property
    def key(self) -> tuple[object, ...]:
        return (self.link,)

    def __str__(self) -> str:
        return f"wireguard {self.link} public-key {self.public_key} listen-port {self.listen_port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WireGuardPeer:
    """One peer of the device; compared field by field, changed only where it differs."""

    link: str
    public_key: PublicKey
    allowed_ips: frozenset[IPNetwork]
    endpoint: Endpoint | None = None
    """An address and port, never a name. Desired None: whatever the device has is right."""
    keepalive_seconds: int = 0
    preshared_key: PresharedKey | Withheld | None = field(default=None, repr=False)

    @property
    def key(self) -> tuple[object, ...]:
        return (self.link, self.public_key)

    def __str__(self) -> str:
        parts = [f"peer {self.public_key} dev {self.link}"]
        if self.endpoint:
            parts.append(f"endpoint {self.endpoint}")
        parts.append(
            f"allowed-ips {','.join(map(str, sort_networks(self.allowed_ips))) or '(none)'}"
        )
        if self.keepalive_seconds:
            parts.append(f"persistent-keepalive {self.keepalive_seconds}")
        if self.preshared_key:
            parts.append("preshared-key (hidden)")
        return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A unicast route of ours, metric 0 (IPv6: the kernel's default metric)."""

    destination: IPNetwork
    link: str
    gateway: IPAddress | None = None
    onlink: bool = False
    source: IPAddress | None = None
    """The preferred source address."""
    table: int = MAIN_TABLE

    @property
    def key(self) -> tuple[object, ...]:
        return (self.table, self.destination)

    def __str__(self) -> str:
        parts = [f"route {self.destination}"]
        if self.gateway:
            parts.append(f"via {self.gateway}")
        parts.append(f"dev {self.link}")
        if self.source:
            parts.append(f"src {self.source}")
        if self.onlink:
            parts.append("onlink")
        if self.table != MAIN_TABLE:
            parts.append(f"table {self.table}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Barrier:
    """Where packets for a network of the mesh end while no route to it is there: any route to the
    same network comes first, but none to a wider one, such as the default route.
    """

    destination: IPNetwork

    @property
    def key(self) -> tuple[object, ...]:
        return (self.destination,)

    def __str__(self) -> str:
        return f"barrier {self.destination}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy rule of ours; its priority is in our own range."""

    destination: IPNetwork
    table: int
    source: IPNetwork | None = None
    input_link: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        return (self.source, self.destination, self.input_link, self.table)

    def __str__(self) -> str:
        source = f"from {self.source} " if self.source else ""
        iif = f"iif {self.input_link} " if self.input_link else ""
        return f"rule {source}to {self.destination} {iif}lookup {self.table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Firewall:
    """Masquerading and forwarding, as one value; networks of both families, none overlapping
    another of its set (``collapse`` makes them so).

    A packet leaving the host whose destination is in ``known`` is left alone; one to
    ``masquerade_destinations`` or from ``masquerade_sources`` is masqueraded. Forwarded packets
    from or to ``forward`` are accepted. If there are any ``tunnel_sources``, IPIP packets are
    dropped unless they come from those. TCP connections that are forwarded out by ``clamp_links``
    are told to send no segments larger than their route takes.
    """

    known: frozenset[IPNetwork] = frozenset()
    masquerade_destinations: frozenset[IPNetwork] = frozenset()
    masquerade_sources: frozenset[IPNetwork] = frozenset()
    forward: frozenset[IPNetwork] = frozenset()
    tunnel_sources: frozenset[IPNetwork] = frozenset()
    clamp_links: frozenset[str] = frozenset()

    @property
    def key(self) -> tuple[object, ...]:
        return ()

    def __str__(self) -> str:
        sets = (
            ("known", self.known),
            ("masquerade-destinations", self.masquerade_destinations),
            ("masquerade-sources", self.masquerade_sources),
            ("forward", self.forward),
            ("tunnel-sources", self.tunnel_sources),
        )
        parts = (
            f"{name} {','.join(map(str, sort_networks(networks)))}"
            for name, networks in sets
            if networks
        )
        links = ("clamp-links", ",".join(sorted(self.clamp_links))) if self.clamp_links else ()
        return " ".join(("firewall", *parts, *links))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctl:
    """A setting of the host's kernel that is not as others have it, because we need it so."""

    name: str
    """As sysctl(8) writes it: with dots, and a dot in a link's name as a slash."""
    value: str

    @property
    def key(self) -> tuple[object, ...]:
        return (self.name,)

    def __str__(self) -> str:
        return f"sysctl {self.name}={self.value}"


Resource = (
    Link
    | Tunnel
    | Address
    | WireGuardDevice
    | WireGuardPeer
    | Route
    | Barrier
    | Rule
    | Firewall
    | Sysctl
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataplaneState:
    """Everything of ours on one host. ``firewall`` None: we have no table there."""

    links: frozenset[Link] = frozenset()
    tunnels: frozenset[Tunnel] = frozenset()
    devices: frozenset[WireGuardDevice] = frozenset()
    peers: frozenset[WireGuardPeer] = frozenset()
    addresses: frozenset[Address] = frozenset()
    firewall: Firewall | None = None
    routes: frozenset[Route] = frozenset()
    barriers: frozenset[Barrier] = frozenset()
    rules: frozenset[Rule] = frozenset()
    sysctls: frozenset[Sysctl] = frozenset()

    def groups(self) -> tuple[AbstractSet[Resource], ...]:
        """All of them, by kind: as many sets, and in the same order, of every state."""
        return (
            self.links,
            self.tunnels,
            self.devices,
            self.peers,
            self.addresses,
            frozenset(() if self.firewall is None else (self.firewall,)),
            self.routes,
            self.barriers,
            self.rules,
            self.sysctls,
        )

    def resources(self) -> Iterable[Resource]:
        """All of them, in no order."""
        return chain.from_iterable(self.groups())

    def holds(self, resource: Resource) -> bool:
        """Whether just this is among them."""
        return any(resource in group for group in self.groups())


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStats:
    """What the device has measured of one peer; never desired, only observed."""

    endpoint: Endpoint | None
    """Where its last authentic packet came from, or the configured one before any came."""
    latest_handshake: float
    """Unix seconds; 0.0 if there was none."""
    received_bytes: int
    sent_bytes: int


def sort_networks(networks: Iterable[IPNetwork]) -> list[IPNetwork]:
    """IPv4 before IPv6, then by address and prefix length: the order of every listing."""
    return sorted(networks, key=lambda net: (net.version, int(net.network_address), net.prefixlen))
