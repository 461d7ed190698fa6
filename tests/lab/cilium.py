"""Cilium's part on the hosts of a lab, in its tunnel mode: ``cilium_host``, its address, the
overlay, and the routes that its agent makes to all nodes' pods, without the agent.

What Cilium's programs in the kernel do with packets to other nodes is said by routes here: each
names the node that the overlay brings a packet to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from kilo.lab.host import Host
from kilo.lab.lab import Lab

HOST_LINK, PEER_LINK, OVERLAY = "cilium_host", "cilium_net", "cilium_vxlan"
PORT = 8472
NUMBER = 2
"""The overlay's network identifier: who sends is the world, to Cilium."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What Cilium knows of a node."""

    pods: IPv4Network
    internal: IPv4Address
    """The node's own, where others send its packets."""
    router: IPv4Address
    """Of ``cilium_host``, one of the pods'."""

    @property
    def mac(self) -> str:
        return "02:c1:" + ":".join(f"{byte:02x}" for byte in self.internal.packed)


class Cilium:
    """The agents of all nodes: each has a place, and each knows all places."""

    def __init__(self, lab: Lab, places: dict[str, Place]) -> None:
        self._lab = lab
        self.places = places
        self._running: set[str] = set()

    def start(self, *names: str) -> None:
        """Make the links of these nodes, or of all; everybody hears of them."""
        for name in names or self.places:
            self._running.add(name)
            self._ip(name, self._list_links(self.places[name]))
            # As Cilium does: by any filter a link without addresses drops what it does not lead to.
            links = (HOST_LINK, PEER_LINK, OVERLAY)
            settings = [f"net.ipv4.conf.{link}.rp_filter=0" for link in links]
            self._host(name).run(["sysctl", "-qw", *settings])
        for name in self._running:
            self._ip(name, self._list_ways(name))

    def stop(self, name: str) -> None:
        """Take a node's links away, and with them the kernel takes the routes."""
        self._running.discard(name)
        self._ip(name, [f"link del {HOST_LINK}", f"link del {OVERLAY}"])

    def move(self, name: str, router: str) -> None:
        """From the next start on the node has another address."""
        self.places[name] = replace(self.places[name], router=IPv4Address(router))

    def rename_tunnel(self, name: str) -> None:
        """The kernel's own IPIP link, as Cilium does when it is to unpack IPIP itself."""
        self._ip(name, ["link set tunl0 down", "link set tunl0 name cilium_tunl"])

    @staticmethod
    def _list_links(own: Place) -> Iterator[str]:
        yield f"link add {HOST_LINK} type veth peer name {PEER_LINK}"
        yield from (f"link set {link} arp off up" for link in (HOST_LINK, PEER_LINK))
        yield f"address add {own.router}/32 dev {HOST_LINK}"
        yield f"link add {OVERLAY} address {own.mac} type vxlan external dstport {PORT}"
        yield f"link set {OVERLAY} up"

    def _list_ways(self, name: str) -> Iterator[str]:
        own = self.places[name]
        for other in (self.places[one] for one in self.places if one != name):
            yield f"neigh replace {other.router} lladdr {other.mac} dev {OVERLAY}"
            yield (
                f"route replace {other.pods} encap ip id {NUMBER} dst {other.internal}"
                f" via {other.router} dev {OVERLAY} onlink src {own.router} proto kernel mtu 1450"
            )

    def _ip(self, name: str, lines: Iterable[str]) -> None:
        self._host(name).box.configure(["ip", "-batch", "-"], "\n".join(lines) + "\n")

    def _host(self, name: str) -> Host:
        return self._lab.host(name)
