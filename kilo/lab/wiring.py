"""A ``LabSpec`` -> boxes, cables and commands; pure.

Every network is a bridge in the namespace of the box ``@fabric``. A network with a router has
a box for that too, ``@NETWORK``. Names of links are short because the kernel allows 15 letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kilo.lab.spec import Attachment, HostSpec, LabSpec, Network, gateway_of
from kilo.mesh.model import IPAddress, IPInterface, IPNetwork

FABRIC = "@fabric"
TABLE = "kilo_lab"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cable:
    """A veth pair: ``link`` in a box, ``port`` on a bridge of the fabric."""

    box: str
    link: str
    port: str
    bridge: str
    network: str
    mac: str
    """Of the link; the same after a restart, as others' neighbour tables expect."""
    interfaces: tuple[IPInterface, ...]
    neighbours: tuple[IPNetwork, ...] = ()
    """Other subnets of the same network, reached without a router."""
    gateways: tuple[IPAddress, ...] = ()
    """Where the default routes of this link go, at most one a family."""


def router_of(network: Network) -> str:
    """The name of the box that routes for a network."""
    return f"@{network.name}"


def plan_cables(spec: LabSpec) -> list[Cable]:
    """Every cable, routers' first; ports are numbered by the order of the file."""
    return [*_plan_routers(spec), *_plan_hosts(spec)]


def _plan_hosts(spec: LabSpec) -> Iterator[Cable]:
    for number, host in enumerate(spec.hosts):
        uplink = choose_uplink(spec, host)
        for position, attachment in enumerate(host.attachments):
            yield _plan_cable(
                spec,
                box=host.name,
                ends=(f"eth{position}", f"h{number}e{position}"),
                attachment=attachment,
                gateways=_gateways(spec, attachment) if attachment is uplink else (),
            )


def _plan_routers(spec: LabSpec) -> Iterator[Cable]:
    for number, network in enumerate(spec.networks):
        if not network.routed:
            continue
        box = router_of(network)
        inside = Attachment(
            network=network.name, interfaces=tuple(map(gateway_of, network.subnets))
        )
        yield _plan_cable(spec, box=box, ends=("eth0", f"r{number}e0"), attachment=inside)
        if network.nat:
            outside = Attachment(network=network.nat.behind, interfaces=network.nat.interfaces)
            yield _plan_cable(
                spec,
                box=box,
                ends=("eth1", f"r{number}e1"),
                attachment=outside,
                gateways=_gateways(spec, outside),
            )


def _plan_cable(
    spec: LabSpec,
    *,
    box: str,
    ends: tuple[str, str],
    attachment: Attachment,
    gateways: tuple[IPAddress, ...] = (),
) -> Cable:
    network = spec.network(attachment.network)
    own = {interface.network for interface in attachment.interfaces}
    families = {interface.version for interface in attachment.interfaces}
    return Cable(
        box=box,
        link=ends[0],
        port=ends[1],
        bridge=name_bridge(spec, network),
        network=network.name,
        mac=_make_mac(ends[1]),
        interfaces=attachment.interfaces,
        neighbours=tuple(
            net for net in network.subnets if net not in own and net.version in families
        ),
        gateways=gateways,
    )


def _make_mac(port: str) -> str:
    """A locally administered address made of the port's name, unique in the lab."""
    kind = {"h": 1, "r": 2}[port[0]]
    number, position = map(int, port[1:].split("e"))
    return f"02:4b:{kind:02x}:{number >> 8:02x}:{number & 255:02x}:{position:02x}"


def name_bridge(spec: LabSpec, network: Network) -> str:
    """The bridge that is the network."""
    return f"n{spec.networks.index(network)}"


def choose_uplink(spec: LabSpec, host: HostSpec) -> Attachment | None:
    """The link of a host's default route: to a public network, else through a NAT."""
    routed = [link for link in host.attachments if spec.network(link.network).routed]
    return min(routed, key=lambda link: not spec.network(link.network).public, default=None)


def _gateways(spec: LabSpec, attachment: Attachment) -> tuple[IPAddress, ...]:
    network = spec.network(attachment.network)
    if not network.routed:
        return ()
    by_family: dict[int, IPAddress] = {}
    for interface in attachment.interfaces:
        by_family.setdefault(interface.version, gateway_of(interface.network).ip)
    return tuple(by_family.values())


def render_bridges(spec: LabSpec) -> str:
    """``ip -batch`` for the fabric: a bridge a network, without protocols that take time."""
    names = [name_bridge(spec, network) for network in spec.networks]
    return "".join(
        f"link add {name} alias {network.name} type bridge forward_delay 0 mcast_snooping 0\n"
        f"link set {name} up\n"
        for name, network in zip(names, spec.networks, strict=True)
    )


def render_plug(cable: Cable, process: int) -> str:
    """``ip -batch`` for the fabric: the pair, its other end moved to the box of that process."""
    return (
        f"link add {cable.port} type veth"
        f" peer name {cable.link} address {cable.mac} netns {process}\n"
        f"link set {cable.port} master {cable.bridge}\n"
        f"link set {cable.port} up\n"
    )


def render_links(cables: Iterable[Cable]) -> str:
    """``ip -batch`` for one box: loopback, then links, addresses and routes."""
    lines = ["link set lo up"]
    for cable in cables:
        lines.append(f"link set {cable.link} up")
        lines += [
            f"address add {i} dev {cable.link}{' nodad' if i.version == 6 else ''}"
            for i in cable.interfaces
        ]
        lines += [f"route add {net} dev {cable.link}" for net in cable.neighbours]
        lines += [f"route add default via {gateway} dev {cable.link}" for gateway in cable.gateways]
    return "\n".join(lines) + "\n"


def render_latency(spec: LabSpec, cables: Iterable[Cable]) -> str:
    """``tc -batch`` for the fabric: a packet is held back once, where it leaves the network."""
    latencies = {network.name: network.latency_seconds for network in spec.networks}
    return "".join(
        f"qdisc replace dev {cable.port} root netem delay {latencies[cable.network] * 1000:g}ms\n"
        for cable in cables
        if latencies[cable.network]
    )


def render_nat() -> str:
    """``nft -f`` for a router with a NAT: masquerade outwards, nothing new inwards.

    The kernel keeps source ports where it can but lets in only answers (what RFC 4787 calls
    address and port dependent filtering): the common, unhelpful home router. Like those it drops
    what nobody asked for. Refusing it instead would leave an entry in its table that takes the
    port, so that two devices behind NATs, each knocking at the other's, would never meet.
    """
    return f"""table inet {TABLE} {{
 chain postrouting {{ type nat hook postrouting priority srcnat; oifname "eth1" masquerade; }}
 chain forward {{
  type filter hook forward priority filter;
  ct state established,related accept
  iifname "eth1" drop
 }}
 chain input {{
  type filter hook input priority filter;
  iifname "eth1" meta l4proto {{ tcp, udp }} ct state new drop
 }}
}}
"""


def render_faults(spec: LabSpec, cables: list[Cable], cuts: Iterable[tuple[str, ...]]) -> str:
    """``nft -f`` for the fabric: the loss of every network, and the cuts; replaces what was there.

    A cut of one host drops all its packets. A cut of two drops, at the ports of each, what
    comes from or goes to the other's addresses, those of its NAT included.
    """
    rules = [
        f"oifname {cable.port} numgen random mod 100000 < {round(network.loss * 100000)} drop"
        for cable in cables
        if (network := spec.network(cable.network)).loss
    ]
    for cut in cuts:
        rules += _render_cut(spec, cables, cut)
    body = "\n".join(f"  {rule}" for rule in rules)
    return f"""table bridge {TABLE}
delete table bridge {TABLE}
table bridge {TABLE} {{
 chain forward {{
  type filter hook forward priority filter;
{body}
 }}
}}
"""


def _render_cut(spec: LabSpec, cables: list[Cable], cut: tuple[str, ...]) -> Iterator[str]:
    ports = {name: [cable.port for cable in cables if cable.box == name] for name in cut}
    if len(cut) == 1:
        for port in ports[cut[0]]:
            yield f"iifname {port} drop"
            yield f"oifname {port} drop"
        return
    for here, there in (cut, cut[::-1]):
        for address in _visible_addresses(spec, there):
            family = "ip" if address.version == 4 else "ip6"
            for port in ports[here]:
                yield f"iifname {port} {family} daddr {address} drop"
                yield f"oifname {port} {family} saddr {address} drop"


def _visible_addresses(spec: LabSpec, name: str) -> set[IPAddress]:
    """A host's addresses, and those its NATs lend it."""
    host = next(host for host in spec.hosts if host.name == name)
    addresses = set(host.addresses)
    networks = [spec.network(link.network) for link in host.attachments]
    if not any(network.public for network in networks):
        addresses |= {i.ip for network in networks if network.nat for i in network.nat.interfaces}
    return addresses


def render_hosts(spec: LabSpec) -> str:
    """The hosts' ``/etc/hosts``: everybody by name, at its addresses, public networks first."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    for host in spec.hosts:
        links = sorted(host.attachments, key=lambda link: not spec.network(link.network).public)
        lines += [f"{i.ip} {host.name}" for link in links for i in link.interfaces]
    return "\n".join(lines) + "\n"
