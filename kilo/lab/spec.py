"""``lab.yaml``: which hosts there are, which networks join them, what is asked of those.

    networks:
      internet:
        public: true                                  # has a router, but nothing behind it
        subnets: [198.51.100.0/24, "2001:db8::/64"]
      oregon:
        subnets: [192.168.1.0/24]
        nat: {behind: internet, address: 198.51.100.2}  # or a list, an address a family
        latency: 20ms                                 # added to every packet that crosses
        loss: 0.5%                                    # of the packets that cross
    hosts:
      oregon-1:
        networks: {oregon: 192.168.1.11, internet: 198.51.100.11}   # or a list of addresses
        flags: [--log-level=debug]                    # more flags for its agent
      printer: {agent: false, networks: {oregon: 192.168.1.50}}
      laptop: {peer: laptop, networks: {internet: 198.51.100.50}}
      rack-1: {store: etcd, networks: {internet: 198.51.100.61}}      # in a lab of two stores
    flags: [--resync-period=10s]                      # more flags for every agent

The first usable address of each subnet of a network with ``public`` or ``nat`` is its router's. A
host's default route goes to the router of its first public network, else of the first with a NAT.
``docs/lab.md`` says more. Everything here is a pure value; a mistake is a ``ConfigError`` that
names file, field and value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import yaml

from kilo.errors import ConfigError
from kilo.mesh.model import IPAddress, IPInterface, IPNetwork, is_dns_name

MAX_LATENCY_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Nat:
    """How a network reaches another: masquerading as these addresses of its router."""

    behind: str
    interfaces: tuple[IPInterface, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One layer-2 network."""

    name: str
    subnets: tuple[IPNetwork, ...]
    public: bool = False
    nat: Nat | None = None
    latency_seconds: float = 0.0
    loss: float = 0.0
    """The share of packets lost, 0.0 to 1.0."""

    @property
    def routed(self) -> bool:
        """Whether it has a router."""
        return self.public or self.nat is not None

    def subnet_of(self, address: IPAddress) -> IPNetwork | None:
        """The subnet that the address lies in."""
        return next((net for net in self.subnets if address in net), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A host's link to a network, with its addresses there."""

    network: str
    interfaces: tuple[IPInterface, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """One host. Its links are eth0, eth1, … in the order of its attachments."""

    name: str
    attachments: tuple[Attachment, ...]
    agent: bool = True
    peer: str = ""
    """The name of the mesh's Peer it plays; such a host has no agent."""
    flags: tuple[str, ...] = ()
    store: str = ""
    """Where its Node or Peer stands, in a lab of several stores; empty: in the first."""

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """All its addresses, in the order of its links."""
        return tuple(i.ip for link in self.attachments for i in link.interfaces)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSpec:
    """A whole ``lab.yaml``."""

    networks: tuple[Network, ...]
    hosts: tuple[HostSpec, ...]
    flags: tuple[str, ...] = ()

    def network(self, name: str) -> Network:
        """The network of that name, which must exist."""
        return next(network for network in self.networks if network.name == name)


def gateway_of(subnet: IPNetwork) -> IPInterface:
    """The router's address in a subnet: its first usable one."""
    return ip_interface(f"{subnet.network_address + 1}/{subnet.prefixlen}")


class _Fields:
    """A mapping out of the file, taken apart field by field; what is left over is an error."""

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: is not a mapping")
        self.where = where
        self._rest: dict[str, Any] = {str(key): item for key, item in value.items()}

    def at(self, field: str) -> str:
        return f"{self.where}{'.' if ':' in self.where else ': '}{field}"

    def error(self, field: str, value: object, reason: str) -> ConfigError:
        return ConfigError(f"{self.at(field)}: {value!r} {reason}")

    def take(self, field: str, default: Any = None) -> Any:
        return self._rest.pop(field, default)

    def flag(self, field: str, *, default: bool) -> bool:
        value = self.take(field, default)
        if not isinstance(value, bool):
            raise self.error(field, value, "is neither true nor false")
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        """One text or a list of them."""
        value = self.take(field, ())
        items = (value,) if isinstance(value, str) else tuple(value or ())
        for item in items:
            if not isinstance(item, str):
                raise self.error(field, item, "is not a text")
        return items

    def mappings(self, field: str) -> dict[str, _Fields]:
        value = self.take(field, {})
        if not isinstance(value, dict):
            raise self.error(field, value, "is not a mapping")
        for name in value:
            if not (isinstance(name, str) and is_dns_name(name)):
                raise self.error(field, name, "is no name: letters, digits and '-'")
        return {name: _Fields(self.at(f"{field}.{name}"), item) for name, item in value.items()}

    def finish(self) -> None:
        for field, value in self._rest.items():
            raise self.error(field, value, "is not a field known here")


def load_spec(path: Path) -> LabSpec:
    """Read a ``lab.yaml``; raises ``ConfigError`` for anything that is not as documented above."""
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    return parse_spec(str(path), document)


def parse_spec(source: str, document: object) -> LabSpec:
    """A ``lab.yaml`` already read; ``source`` is what messages begin with."""
    fields = _Fields(source, document)
    networks = _parse_networks(fields.mappings("networks"))
    hosts = tuple(
        _parse_host(name, item, networks) for name, item in fields.mappings("hosts").items()
    )
    spec = LabSpec(networks=tuple(networks.values()), hosts=hosts, flags=fields.texts("flags"))
    fields.finish()
    if not hosts:
        raise ConfigError(f"{source}: hosts: names no host")
    _refuse_same_addresses(source, spec)
    return spec


def _parse_networks(documents: dict[str, _Fields]) -> dict[str, Network]:
    networks: dict[str, Network] = {}
    nats: dict[str, _Fields] = {}
    for name, fields in documents.items():
        nat = fields.take("nat")
        if nat is not None:
            nats[name] = _Fields(fields.at("nat"), nat)
        networks[name] = _parse_network(name, fields)
    plain = dict(networks)
    for name, fields in nats.items():
        networks[name] = _add_nat(networks[name], fields, plain)
    return networks


def _parse_network(name: str, fields: _Fields) -> Network:
    subnets = tuple(_parse_subnet(fields, text) for text in fields.texts("subnets"))
    if not subnets:
        raise fields.error("subnets", [], "names no subnet")
    network = Network(
        name=name,
        subnets=subnets,
        public=fields.flag("public", default=False),
        latency_seconds=_parse_latency(fields),
        loss=_parse_loss(fields),
    )
    fields.finish()
    return network


def _parse_subnet(fields: _Fields, text: str) -> IPNetwork:
    try:
        return ip_network(text)
    except ValueError:
        raise fields.error("subnets", text, "is not a subnet, such as 192.168.1.0/24") from None


def _parse_latency(fields: _Fields) -> float:
    value = fields.take("latency", "0ms")
    text = str(value)
    units = {"ms": 1e-3, "s": 1.0}
    for unit, seconds in units.items():
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdecimal():
            latency = float(number) * seconds
            if latency <= MAX_LATENCY_SECONDS:
                return latency
    raise fields.error("latency", value, "is not a time up to 10s, such as 20ms")


def _parse_loss(fields: _Fields) -> float:
    value = fields.take("loss", "0%")
    number = str(value).removesuffix("%")
    if number != str(value) and number.replace(".", "", 1).isdecimal() and float(number) <= 100:
        return float(number) / 100
    raise fields.error("loss", value, "is not a percentage, such as 0.5%")


def _add_nat(network: Network, fields: _Fields, networks: dict[str, Network]) -> Network:
    behind = fields.take("behind")
    if behind not in networks or behind == network.name:
        raise fields.error("behind", behind, "is not the name of another network")
    texts = fields.texts("address")
    if not texts:
        raise fields.error("address", [], "names no address")
    interfaces = tuple(_place(fields, "address", text, networks[behind]) for text in texts)
    fields.finish()
    return replace(network, nat=Nat(behind=behind, interfaces=interfaces))


def _place(fields: _Fields, field: str, text: str, network: Network) -> IPInterface:
    """The address with the prefix length of its subnet in the network."""
    try:
        address = ip_address(text)
    except ValueError:
        raise fields.error(field, text, "is not an address without prefix length") from None
    subnet = network.subnet_of(address)
    if subnet is None:
        raise fields.error(field, text, f"lies in no subnet of network {network.name!r}")
    return ip_interface(f"{address}/{subnet.prefixlen}")


def _parse_host(name: str, fields: _Fields, networks: dict[str, Network]) -> HostSpec:
    links = fields.take("networks", {})
    if not isinstance(links, dict) or not links:
        raise fields.error("networks", links, "names no network and address")
    inner = _Fields(fields.at("networks"), links)
    attachments = tuple(_parse_attachment(inner, str(network), networks) for network in links)
    peer = str(fields.take("peer", "") or "")
    host = HostSpec(
        name=name,
        attachments=attachments,
        agent=fields.flag("agent", default=not peer),
        peer=peer,
        flags=fields.texts("flags"),
        store=str(fields.take("store", "") or ""),
    )
    if host.agent and peer:
        raise fields.error("peer", peer, "is played without an agent: take 'agent: true' away")
    fields.finish()
    return host


def _parse_attachment(fields: _Fields, name: str, networks: dict[str, Network]) -> Attachment:
    if name not in networks:
        raise fields.error(name, name, "is not the name of a network")
    texts = fields.texts(name)
    if not texts:
        raise fields.error(name, [], "names no address")
    return Attachment(
        network=name, interfaces=tuple(_place(fields, name, text, networks[name]) for text in texts)
    )


def _refuse_same_addresses(source: str, spec: LabSpec) -> None:
    owners: dict[tuple[str, IPAddress], str] = {
        (network.name, gateway_of(subnet).ip): "its router"
        for network in spec.networks
        if network.routed
        for subnet in network.subnets
    }
    claims = [
        (link.network, i.ip, f"host {host.name}")
        for host in spec.hosts
        for link in host.attachments
        for i in link.interfaces
    ] + [
        (network.nat.behind, i.ip, f"the NAT of network {network.name}")
        for network in spec.networks
        if network.nat
        for i in network.nat.interfaces
    ]
    for network, address, owner in claims:
        other = owners.setdefault((network, address), owner)
        if other != owner:
            raise ConfigError(
                f"{source}: {owner}: '{address}' is the address of {other} in {network!r} already"
            )
