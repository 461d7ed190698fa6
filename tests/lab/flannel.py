"""Flannel's part on the hosts of a lab: the vxlan device, addresses, neighbours and routes that
its daemon makes for every lease (backend ``vxlan``, VNI 1), without the daemon.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from kilo.lab.host import Host
from kilo.lab.lab import Lab

LINK = "flannel.1"
PORT = 8472
"""Linux's default, which Flannel uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What Flannel knows of a node."""

    subnet: IPv4Network
    address: IPv4Address
    """The node's, where others send its packets."""
    link: str = "eth0"

    @property
    def gateway(self) -> IPv4Address:
        return self.subnet.network_address

    @property
    def mac(self) -> str:
        return "02:fa:" + ":".join(f"{byte:02x}" for byte in self.gateway.packed)


class Flannel:
    """The daemons of all nodes: each has a lease, and each knows all leases."""

    def __init__(self, lab: Lab, leases: dict[str, Lease]) -> None:
        self._lab = lab
        self.leases = leases

    def make_link(self, name: str) -> None:
        """The device alone, still down, as it is for a moment."""
        lease = self.leases[name]
        vxlan = f"vxlan id 1 local {lease.address} dev {lease.link} dstport {PORT} nolearning"
        self._ip(name, [f"link add {LINK} address {lease.mac} type {vxlan}"])

    def use_link(self, name: str) -> None:
        """Set it up, and tell it of the others."""
        own = self.leases[name]
        others = [lease for other, lease in self.leases.items() if other != name]
        self._ip(name, [f"address add {own.gateway}/32 dev {LINK}", f"link set {LINK} up"])
        fdb = (f"fdb replace {lease.mac} dev {LINK} dst {lease.address}" for lease in others)
        self._host(name).box.configure(["bridge", "-batch", "-"], "\n".join(fdb) + "\n")
        lines = [f"neigh replace {o.gateway} lladdr {o.mac} dev {LINK}" for o in others]
        self._ip(name, [*lines, *self._list_routes(others)])

    def start(self, *names: str) -> None:
        for name in names or self.leases:
            self.make_link(name)
            self.use_link(name)

    def stop(self, name: str) -> None:
        self._ip(name, [f"link del {LINK}"])

    def repeat_routes(self, name: str) -> None:
        """As when the leases are renewed: over whatever is there."""
        others = (lease for other, lease in self.leases.items() if other != name)
        self._ip(name, self._list_routes(others))

    @staticmethod
    def _list_routes(leases: Iterable[Lease]) -> list[str]:
        return [
            f"route replace {lease.subnet} via {lease.gateway} dev {LINK} onlink"
            for lease in leases
        ]

    def _ip(self, name: str, lines: list[str]) -> None:
        self._host(name).box.configure(["ip", "-batch", "-"], "\n".join(lines) + "\n")

    def _host(self, name: str) -> Host:
        return self._lab.host(name)
