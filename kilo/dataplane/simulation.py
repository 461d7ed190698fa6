"""A kernel made of dicts: what the real one refuses this one refuses, with the same words.

Its behaviour was read off Linux 6.18 and is held to it by the contract tests, which run over both.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from kilo.mesh.diff import Change
from kilo.mesh.host import HostAddress
from kilo.mesh.keys import PublicKey, Withheld
from kilo.mesh.model import IPAddress, IPNetwork
from kilo.mesh.state import (
    MAIN_TABLE,
    Address,
    Barrier,
    DataplaneState,
    Firewall,
    Link,
    Resource,
    Route,
    Rule,
    Sysctl,
    Tunnel,
    WireGuardDevice,
    WireGuardPeer,
    sort_networks,
)

OURS = "kilo"
KERNEL = "kernel"
MINIMUM_MTU, MAXIMUM_MTU = 68, 65535

RouteKey = tuple[int, IPNetwork]


def refuse(code: int) -> OSError:
    """The error as the kernel words it."""
    return OSError(code, os.strerror(code))


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedRoute:
    """A route and the protocol it bears: ``kilo`` or anybody else's."""

    route: Route
    protocol: str


class SimulatedKernel:
    """The WireGuard interface with what hangs on it, and what others have on the same host."""

    def __init__(self, interface: str, state: DataplaneState) -> None:
        self.interface = interface
        self.link = next(iter(state.links), None)
        self.device = next(iter(state.devices), None)
        self.peers = {peer.public_key: peer for peer in state.peers}
        self.addresses = {address.interface for address in state.addresses}
        self.tunnels = {tunnel.name: tunnel for tunnel in state.tunnels}
        self.firewall = state.firewall
        self.routes: dict[RouteKey, OwnedRoute] = {
            (route.table, route.destination): OwnedRoute(route=route, protocol=OURS)
            for route in state.routes
        }
        self.barriers = set(state.barriers)
        self.rules = set(state.rules)
        self.sysctls = {sysctl.name: sysctl.value for sysctl in state.sysctls}
        """Ours."""
        self.other_sysctls: Mapping[str, str] = {}
        """As others have them, ours too: a setting that is not here does not exist."""
        self.foreign_rules: set[Rule] = set()
        self.other_links: frozenset[str] = frozenset()
        """The host's other links, all of them up."""
        self.other_addresses: tuple[HostAddress, ...] = ()

    def describe(self) -> DataplaneState:
        """What is ours."""
        return DataplaneState(
            links=frozenset() if self.link is None else frozenset({self.link}),
            devices=frozenset() if self.device is None else frozenset({self.device}),
            peers=frozenset(self.peers.values()),
            addresses=frozenset(
                Address(link=self.interface, interface=interface) for interface in self.addresses
            ),
            tunnels=frozenset(self.tunnels.values()),
            firewall=self.firewall,
            routes=frozenset(
                owned.route for owned in self.routes.values() if owned.protocol == OURS
            ),
            barriers=frozenset(self.barriers),
            rules=frozenset(self.rules),
            sysctls=frozenset(
                Sysctl(name=name, value=value) for name, value in self.sysctls.items()
            ),
        )

    def carry_out(self, step: Change) -> None:
        """One step of ours; raises ``OSError`` where Linux would refuse."""
        if step.new is None:
            self._remove(step.resource)
        else:
            self._put(step, step.new)

    def _put(self, step: Change, resource: Resource) -> None:
        match resource:
            case Link():
                self._set_link(resource, is_new=step.old is None)
            case WireGuardDevice() | Address():
                self._put_on_interface(resource)
            case WireGuardPeer():
                self._put_peer(step, resource)
            case Firewall():
                self._put_firewall(resource)
            case Tunnel():
                self._put_tunnel(resource)
            case Route():
                self._put_route(resource)
            case Barrier() | Rule() | Sysctl():
                self._put_setting(resource)

    def _remove(self, resource: Resource) -> None:
        match resource:
            case Link() | Tunnel():
                self._remove_link(resource)
            case WireGuardDevice():
                self._clear_device()
            case WireGuardPeer():
                self.peers.pop(resource.public_key, None)
            case Address():
                self._delete_address(resource)
            case Route():
                self._delete_route(resource)
            case Firewall() | Barrier() | Rule() | Sysctl():
                self._remove_setting(resource)

    def _remove_setting(self, resource: Firewall | Barrier | Rule | Sysctl) -> None:
        """What is on no link."""
        match resource:
            case Barrier():
                self.barriers.discard(resource)
            case Firewall():
                self.firewall = None
            case Rule():
                self.rules.discard(resource)
            case Sysctl():
                self.sysctls.pop(resource.name, None)

    def _put_on_interface(self, resource: WireGuardDevice | Address) -> None:
        self._need_interface(resource.link)
        if isinstance(resource, WireGuardDevice):
            self.device = resource
        else:
            self.addresses.add(resource.interface)

    def _set_link(self, link: Link, *, is_new: bool) -> None:
        if link.name != self.interface or (self.link is None and not is_new):
            raise refuse(errno.ENODEV)
        if not MINIMUM_MTU <= link.mtu <= MAXIMUM_MTU:
            raise refuse(errno.EINVAL)
        if self.device is None:
            self.device = WireGuardDevice(link=link.name, public_key=None, listen_port=0)
        was_up, self.link = self.link is not None and self.link.up, link
        if was_up and not link.up:
            self._drop_routes(link.name)
            self.addresses = {address for address in self.addresses if address.version == 4}

    def _remove_link(self, resource: Link | Tunnel) -> None:
        self._drop_routes(resource.name)
        if isinstance(resource, Tunnel):
            self.tunnels.pop(resource.name, None)
            return
        self.link = self.device = None
        self.peers.clear()
        self.addresses.clear()

    def _drop_routes(self, link: str, version: int = 0) -> None:
        for key, owned in tuple(self.routes.items()):
            if owned.route.link == link and version in (0, owned.route.destination.version):
                del self.routes[key]

    def _need_interface(self, name: str) -> Link:
        if self.link is None or self.link.name != name:
            raise refuse(errno.ENODEV)
        return self.link

    def _clear_device(self) -> None:
        """A device goes only with its link; alone it loses its key."""
        if self.device is not None:
            self.device = replace(self.device, public_key=None)

    def _put_peer(self, step: Change, peer: WireGuardPeer) -> None:
        self._need_interface(peer.link)
        current = self.peers.get(peer.public_key)
        if current is None and step.old is not None:
            return  # gone meanwhile: the next pass sees that it is missing
        self._take_allowed_ips(peer.public_key, peer.allowed_ips)
        self.peers[peer.public_key] = peer if current is None else _merge(current, peer)

    def _take_allowed_ips(self, owner: PublicKey, networks: frozenset[IPNetwork]) -> None:
        for key, other in self.peers.items():
            if key != owner and not other.allowed_ips.isdisjoint(networks):
                self.peers[key] = replace(other, allowed_ips=other.allowed_ips - networks)

    def _delete_address(self, address: Address) -> None:
        """Takes with it the IPv4 routes that prefer it, and with the last IPv4 one all of those."""
        if address.link != self.interface or address.interface not in self.addresses:
            return
        self.addresses.remove(address.interface)
        if address.interface.version == 4 and all(left.version == 6 for left in self.addresses):
            self._drop_routes(self.interface, 4)
        if not self._is_local(address.interface.ip):
            self._drop_source(address.interface.ip)

    def _drop_source(self, source: IPAddress) -> None:
        for key, owned in tuple(self.routes.items()):
            if owned.route.source == source and source.version == 4:
                del self.routes[key]
            elif owned.route.source == source:
                self.routes[key] = replace(owned, route=replace(owned.route, source=None))

    def _put_tunnel(self, tunnel: Tunnel) -> None:
        if tunnel.name in self.other_links:
            raise refuse(errno.EBUSY)
        if not MINIMUM_MTU <= tunnel.mtu <= MAXIMUM_MTU:
            raise refuse(errno.EINVAL)
        self.tunnels[tunnel.name] = tunnel
        if not tunnel.up:
            self._drop_routes(tunnel.name)

    def _put_setting(self, resource: Barrier | Rule | Sysctl) -> None:
        if isinstance(resource, Barrier):
            self.barriers.add(resource)
        elif isinstance(resource, Rule):
            self.rules.add(resource)
        elif resource.name in self.other_sysctls or self._has_setting(resource.name):
            self.sysctls[resource.name] = resource.value
        else:
            raise refuse(errno.ENOENT)

    def _put_firewall(self, firewall: Firewall) -> None:
        if any(_have_overlap(networks) for networks in _list_sets(firewall)):
            raise refuse(errno.EEXIST)
        self.firewall = firewall

    def _has_setting(self, name: str) -> bool:
        return self.link is not None and f".conf.{self.link.name}." in name

    def put_foreign_route(self, route: Route, protocol: str) -> None:
        """What another program does: whatever was there is replaced."""
        self._check_route(route)
        self.routes[route.table, route.destination] = OwnedRoute(route=route, protocol=protocol)

    def _put_route(self, route: Route) -> None:
        self._check_route(route)
        holder = self._find_holder(route)
        adoptable = holder is not None and holder.protocol != KERNEL and holder.route == route
        if holder is not None and holder.protocol != OURS and not adoptable:
            raise refuse(errno.EEXIST)
        self.routes[route.table, route.destination] = OwnedRoute(route=route, protocol=OURS)

    def _find_holder(self, route: Route) -> OwnedRoute | None:
        holder = self.routes.get((route.table, route.destination))
        connected = (local for local in self._list_connected() if route.table == MAIN_TABLE)
        if holder is None and route.destination in {local.interface.network for local in connected}:
            return OwnedRoute(route=route, protocol=KERNEL)
        return holder

    def _list_connected(self) -> Iterator[HostAddress]:
        """Those of our IPv4 addresses whose subnet the kernel has a route to, of metric 0."""
        if self.link is not None and self.link.up:
            for interface in self.addresses:
                if interface.version == 4 and interface.network.prefixlen < 32:
                    yield HostAddress(link=self.interface, interface=interface)

    def _check_route(self, route: Route) -> None:
        ours = self.link is not None and route.link == self.link.name
        tunnel = self.tunnels.get(route.link)
        if not ours and tunnel is None and route.link not in self.other_links:
            raise refuse(errno.ENODEV)
        if (ours and self.link is not None and not self.link.up) or (tunnel and not tunnel.up):
            raise refuse(errno.ENETDOWN)
        if route.source is not None and not self._is_local(route.source):
            raise refuse(errno.EINVAL)
        if route.gateway is not None:
            self._check_gateway(route, route.gateway)

    def _check_gateway(self, route: Route, gateway: IPAddress) -> None:
        if self._is_local(gateway):
            raise refuse(errno.EINVAL)
        if not route.onlink and not any(
            local.link == route.link and gateway in local.interface.network
            for local in self._list_addresses()
        ):
            raise refuse(errno.ENETUNREACH if gateway.version == 4 else errno.EHOSTUNREACH)

    def _list_addresses(self) -> Iterator[HostAddress]:
        yield from self.other_addresses
        yield from self.list_own_addresses()

    def list_own_links(self) -> Iterator[tuple[Link | Tunnel, str]]:
        """The links that are ours, and the kernel's words for their kinds."""
        if self.link is not None:
            yield self.link, "wireguard"
        for tunnel in self.tunnels.values():
            yield tunnel, "ipip"

    def list_own_addresses(self) -> Iterator[HostAddress]:
        """The addresses of our links, sorted."""
        for interface in sorted(self.addresses, key=str):
            yield HostAddress(link=self.interface, interface=interface)
        for tunnel in self.tunnels.values():
            for interface in sorted(tunnel.addresses, key=str):
                yield HostAddress(link=tunnel.name, interface=interface)

    def _is_local(self, address: IPAddress) -> bool:
        return any(local.interface.ip == address for local in self._list_addresses())

    def _delete_route(self, route: Route) -> None:
        owned = self.routes.get((route.table, route.destination))
        same = owned is not None and (owned.route.link, owned.route.gateway) == (
            route.link,
            route.gateway,
        )
        if owned is not None and same and owned.protocol == OURS:
            del self.routes[route.table, route.destination]


def _merge(current: WireGuardPeer, wanted: WireGuardPeer) -> WireGuardPeer:
    """What a device leaves as it is where nothing is wanted of it."""
    withheld = isinstance(wanted.preshared_key, Withheld)
    return replace(
        wanted,
        endpoint=wanted.endpoint or current.endpoint,
        preshared_key=current.preshared_key if withheld else wanted.preshared_key,
    )


def _list_sets(firewall: Firewall) -> tuple[frozenset[IPNetwork], ...]:
    return (
        firewall.known,
        firewall.masquerade_destinations,
        firewall.masquerade_sources,
        firewall.forward,
        firewall.tunnel_sources,
    )


def _have_overlap(networks: frozenset[IPNetwork]) -> bool:
    return any(
        one.version == other.version and one.overlaps(other)
        for one, other in pairwise(sort_networks(networks))
    )
