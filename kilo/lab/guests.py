"""Hosts that play the mesh's Peers: plain WireGuard, configured as a person would with ``wg``.

A guest follows the mesh only when told to (``follow``); nothing runs for it in between.
"""

from __future__ import annotations

from kilo.lab.host import Host
from kilo.mesh.addressing import host_network
from kilo.mesh.model import IPNetwork, Peer
from kilo.mesh.topology import Topology
from kilo.mesh.wgconf import Conf, parse_conf, render_peer_conf

INTERFACE = "wg0"
MTU_BYTES = 1420
LISTEN_PORT = 51820
KEY_FILE = "/var/lib/kilo/key"
ROUTE_PROTOCOL = "99"
"""A number nobody else uses, by which the guest's own routes are told apart."""


def follow(host: Host, topology: Topology) -> None:
    """Make a guest's WireGuard as the mesh wants it now; nothing that is right already is touched.

    A peer that takes no part in the mesh (yet) is left as it is.
    """
    peer = next((peer for peer in topology.peers if peer.name == host.spec.peer), None)
    if peer is None:
        return
    if not host.succeeds(["ip", "link", "show", "dev", INTERFACE]):
        _create(host, peer)
        host.applied_conf = ""
    conf = render_peer_conf(topology, peer.name)
    if conf != host.applied_conf:
        _configure(host, peer, conf)
        _route(host, _list_destinations(parse_conf(conf)))
        host.applied_conf = conf


def _create(host: Host, peer: Peer) -> None:
    """The kernel's WireGuard where there is one, else Debian's in userspace."""
    if not host.succeeds(["ip", "link", "add", INTERFACE, "type", "wireguard"]):
        host.run(["wireguard-go", INTERFACE])
    lines = [f"address replace {interface} dev {INTERFACE}" for interface in _addresses(peer)]
    lines.append(f"link set {INTERFACE} mtu {MTU_BYTES} up")
    host.box.configure(["ip", "-batch", "-"], "\n".join(lines) + "\n")


def _addresses(peer: Peer) -> list[IPNetwork]:
    return [network for network in peer.allowed_ips if network.num_addresses == 1]


def _configure(host: Host, peer: Peer, conf: str) -> None:
    """``wg syncconf``, which leaves the sessions of unchanged peers alone."""
    own = [f"PrivateKey = {host.run(['cat', KEY_FILE]).strip()}"]
    # Without one, every ``syncconf`` moves the device to another port.
    own.append(f"ListenPort = {peer.endpoint.port if peer.endpoint else LISTEN_PORT}")
    text = conf.replace("[Interface]", "\n".join(["[Interface]", *own]), 1)
    host.run(["wg", "syncconf", INTERFACE, "/dev/stdin"], text=text)


def _list_destinations(conf: Conf) -> set[IPNetwork]:
    """What is reached through the mesh; not the endpoints, which carry it."""
    endpoints = {peer.endpoint.ip for peer in conf.peers if peer.endpoint is not None}
    carriers = {host_network(address) for address in endpoints if address is not None}
    return {network for peer in conf.peers for network in peer.allowed_ips} - carriers


def _route(host: Host, networks: set[IPNetwork]) -> None:
    """Routes to exactly these networks."""
    present: set[str] = set()
    for family in ("-4", "-6"):
        shown = host.run(["ip", family, "route", "show", "dev", INTERFACE, "proto", ROUTE_PROTOCOL])
        present |= {_full_prefix(line.split()[0]) for line in shown.splitlines()}
    wanted = {str(network) for network in networks}
    lines = [
        f"route replace {net} dev {INTERFACE} proto {ROUTE_PROTOCOL}" for net in sorted(wanted)
    ] + [f"route del {net} dev {INTERFACE}" for net in sorted(present - wanted)]
    host.box.configure(["ip", "-batch", "-"], "\n".join(lines) + "\n")


def _full_prefix(text: str) -> str:
    """``ip`` leaves out the prefix length of a single address."""
    if "/" in text or text == "default":
        return text
    return f"{text}/{128 if ':' in text else 32}"
