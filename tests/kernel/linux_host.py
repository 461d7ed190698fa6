"""A Linux dataplane in a namespace, and the hand of an administrator beside it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from kilo.dataplane.barriers import METRIC
from kilo.dataplane.linux import LinuxDataplane
from kilo.dataplane.nftables import NFTables
from kilo.dataplane.nftables_shape import TABLE
from kilo.dataplane.routes import ROUTE_PROTOCOL
from kilo.dataplane.wireguard import WireGuard
from kilo.keyfile import generate_private_key
from kilo.mesh.state import (
    Address,
    Barrier,
    Firewall,
    Link,
    Resource,
    Route,
    Rule,
    Tunnel,
    WireGuardPeer,
)
from tests.kernel.namespace import Namespace
from tests.kernel.wireguard_hosts import kernel_has


class LinuxHost:
    """The other hand on this host is iproute2's, wg's and nft's."""

    def __init__(self, namespace: Namespace, interface: str, *, state: Path) -> None:
        """``state`` is where agents of this host write."""
        self.namespace = namespace
        self.interface = interface
        self.private_key = generate_private_key()
        self.wireguard = WireGuard(interface, self.private_key)
        self.state = state
        self.dataplane = self.make_dataplane()

    @property
    def has_tunnels(self) -> bool:
        """Whether this kernel can encapsulate."""
        return kernel_has("ipip")

    def make_dataplane(self) -> LinuxDataplane:
        """One as every agent of this host has it."""
        return LinuxDataplane(
            self.interface,
            wireguard=self.wireguard,
            firewall=NFTables(),
            sysctls_record=self.state / "sysctls.json",
        )

    async def delete(self, resource: Resource) -> None:
        ip = self.namespace.ip
        match resource:
            case Route():
                ip("route", "delete", *route_words(resource), "proto", str(ROUTE_PROTOCOL))
            case Rule():
                ip(*rule_family(resource), "rule", "delete", *rule_words(resource))
            case Address():
                ip("address", "delete", str(resource.interface), "dev", resource.link)
            case WireGuardPeer():
                key = str(resource.public_key)
                self.namespace.run("wg", "set", resource.link, "peer", key, "remove")
            case Firewall():
                self.namespace.run("nft", "delete", "table", "inet", TABLE)
            case Barrier(destination=destination):
                ip("route", "delete", "unreachable", str(destination), "metric", str(METRIC))
            case Link() | Tunnel():
                ip("link", "delete", resource.name)
            case _:
                raise NotImplementedError(resource)

    async def read_sysctl(self, name: str) -> str:
        return self.namespace.sysctl(name.replace(".", "/"))

    async def set_sysctl(self, name: str, value: str) -> None:
        self.namespace.set_sysctl(name.replace(".", "/"), value)

    async def set_down(self) -> None:
        self.namespace.ip("link", "set", self.interface, "down")

    async def add_route(self, route: Route, *, protocol: str) -> None:
        self.namespace.ip("route", "replace", *route_words(route), "proto", protocol)

    async def delete_route(self, route: Route) -> None:
        self.namespace.ip("route", "delete", *route_words(route))

    async def list_foreign_routes(self) -> frozenset[Route]:
        listed = [
            entry
            for family in ("-4", "-6")
            for entry in self.namespace.ip_json(family, "route", "show", "table", "all")
        ]
        return frozenset(
            parse_route(entry)
            for entry in listed
            if entry["protocol"] not in (str(ROUTE_PROTOCOL), "kernel")
        )

    async def add_rule(self, rule: Rule) -> None:
        self.namespace.ip(*rule_family(rule), "rule", "add", *rule_words(rule))

    async def list_foreign_rules(self) -> frozenset[Rule]:
        listed = [
            entry
            for family in ("-4", "-6")
            for entry in self.namespace.ip_json(family, "rule", "show")
        ]
        return frozenset(
            Rule(
                destination=ip_network(
                    f"{entry['dst']}/{entry['dstlen']}" if "dstlen" in entry else entry["dst"]
                ),
                table=int(entry["table"]),
            )
            for entry in listed
            if "dst" in entry and entry.get("protocol") != str(ROUTE_PROTOCOL)
        )


def route_words(route: Route) -> list[str]:
    return [word for word in str(route).split() if word != "route"] + (
        ["metric", "1024"] if route.destination.version == 6 else []
    )


def rule_words(rule: Rule) -> list[str]:
    return str(rule).split()[1:]


def rule_family(rule: Rule) -> list[str]:
    return ["-6"] if rule.destination.version == 6 else ["-4"]


def parse_route(entry: dict[str, Any]) -> Route:
    table = entry.get("table", "main")
    everything = "::/0" if ":" in entry.get("gateway", "") else "0.0.0.0/0"
    return Route(
        destination=ip_network(everything if entry["dst"] == "default" else entry["dst"]),
        link=entry["dev"],
        gateway=ip_address(entry["gateway"]) if "gateway" in entry else None,
        onlink="onlink" in entry.get("flags", ()),
        source=ip_address(entry["prefsrc"]) if "prefsrc" in entry else None,
        table={"main": 254, "local": 255}.get(table) or int(table),
    )
