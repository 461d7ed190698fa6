"""Topology and host -> what this host's kernel should look like (spec section 5).

One set of rules for leaders and others, and one function for both address families. Nothing
here depends on what the kernel looks like now.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_interface

from kilo.mesh.addressing import host_network
from kilo.mesh.collapse import collapse
from kilo.mesh.host import IPIP_OVERHEAD, HostFacts, find_link, find_wireguard_mtu
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, IPAddress, IPNetwork, Node, Peer
from kilo.mesh.shared import share_address
from kilo.mesh.state import (
    ENCAPSULATION_TABLE,
    Address,
    DataplaneState,
    Firewall,
    Link,
    Route,
    Rule,
    Tunnel,
    WireGuardDevice,
    WireGuardPeer,
)
from kilo.mesh.sysctls import find_behind, list_sysctls
from kilo.mesh.topology import Segment, Topology, required_key
from kilo.mesh.view import (
    CILIUM_OVERHEAD,
    CILIUM_OVERLAYS,
    Compatibility,
    Observations,
    RenderOptions,
    View,
    find_cilium_address,
    find_family,
    find_reported_address,
)


def render(
    topology: Topology,
    *,
    name: str,
    host: HostFacts,
    options: RenderOptions,
    observations: Observations,
) -> DataplaneState:
    """The desired state of the node called ``name``.

    ``MeshError`` if that node takes no part, say because another one has its key.
    """
    rendering = Rendering.of_node(
        name, topology, host=host, options=options, observations=observations
    )
    return rendering.render()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering(View):
    """One node's state, part by part."""

    def render(self) -> DataplaneState:
        routes: dict[object, Route] = {}
        for route in self.list_routes():
            if self.takes(route.link, route.destination.version):
                routes.setdefault(route.key, route)
        return DataplaneState(
            links=frozenset({self.render_link()}),
            tunnels=frozenset(self.list_tunnels()),
            devices=frozenset({self.render_device()}),
            peers=frozenset(self.list_peers()),
            addresses=frozenset(self.list_addresses()),
            firewall=self.render_firewall(),
            routes=frozenset(routes.values()),
            rules=frozenset(self.list_rules()),
            sysctls=frozenset(list_sysctls(self)),
        )

    def takes(self, link: str, version: int) -> bool:
        """Whether addresses and routes of the family can be on the link. Where IPv6 is switched
        off, ours takes none; elsewhere there are gateways of the family or no routes.
        """
        return link != self.options.interface or version in self.host.families

    # The WireGuard device.

    def render_link(self) -> Link:
        mtu = self.topology.settings.mtu or find_wireguard_mtu(self.host)
        return Link(name=self.options.interface, mtu=mtu, up=self.leads)

    def render_device(self) -> WireGuardDevice:
        endpoint = self.node.endpoint
        return WireGuardDevice(
            link=self.options.interface,
            public_key=required_key(self.node),
            listen_port=endpoint.port if endpoint else self.topology.settings.port,
        )

    def list_addresses(self) -> Iterator[Address]:
        if self.leads:
            for interface in self.segment.wireguard_ips:
                if self.takes(self.options.interface, interface.version):
                    yield Address(link=self.options.interface, interface=interface)

    def list_tunnels(self) -> Iterator[Tunnel]:
        """The IPIP link; its address is what the host's own packets bear."""
        own = self.find_internal(4)
        link = find_link(self.host, own.ip) if own else None
        if self.tunnel is None or not self.owns_tunnel or link is None:
            return
        address = self.find_tunnel_address()
        yield Tunnel(
            name=self.tunnel,
            mtu=self.host.mtus[link] - self.find_overhead(),
            addresses=frozenset({ip_interface(address)} if address else ()),
        )

    def find_tunnel_address(self) -> IPAddress | None:
        """The first of the pods'; beside Cilium that may be a pod's, so the host's own there."""
        if self.beside_cilium:
            interface = find_cilium_address(self.host)
            return interface.ip if interface else None
        subnet = next((net for net in self.node.pod_subnets if net.version == 4), None)
        return subnet.network_address + 1 if subnet else None

    def find_overhead(self) -> int:
        """Bytes that a packet in the tunnel has less room for than one outside."""
        if self.beside_cilium and not CILIUM_OVERLAYS.isdisjoint(self.host.mtus):
            return IPIP_OVERHEAD + CILIUM_OVERHEAD
        return IPIP_OVERHEAD

    def list_peers(self) -> Iterator[WireGuardPeer]:
        if not self.leads:
            return
        for segment in self.tunnelled:
            yield self.render_segment_peer(segment)
        for peer in self.topology.peers:
            yield self.render_peer(peer)

    def render_segment_peer(self, segment: Segment) -> WireGuardPeer:
        return WireGuardPeer(
            link=self.options.interface,
            public_key=segment.key,
            allowed_ips=frozenset((*segment.allowed_ips, *segment.allowed_location_ips)),
            endpoint=self.find_leader_endpoint(segment),
            keepalive_seconds=self.node.spec.persistent_keepalive_seconds,
        )

    def render_peer(self, peer: Peer) -> WireGuardPeer:
        return WireGuardPeer(
            link=self.options.interface,
            public_key=peer.public_key,
            allowed_ips=frozenset(peer.allowed_ips),
            endpoint=self.find_peer_endpoint(peer),
            keepalive_seconds=self.node.spec.persistent_keepalive_seconds,
            preshared_key=peer.preshared_key,
        )

    def find_leader_endpoint(self, segment: Segment) -> Endpoint | None:
        leader = segment.leader
        return self.find_endpoint(
            segment.key, leader.endpoint, leader.spec.persistent_keepalive_seconds
        )

    def find_peer_endpoint(self, peer: Peer) -> Endpoint | None:
        return self.find_endpoint(peer.public_key, peer.endpoint, peer.persistent_keepalive_seconds)

    def find_endpoint(
        self, key: PublicKey, declared: Endpoint | None, keepalive_seconds: int
    ) -> Endpoint | None:
        """Where to find a device: behind NAT where we see it, where others do, where we last did;
        else where it says.
        """
        if keepalive_seconds:
            seen = self.observations
            places = (seen.endpoints, self.topology.discovered_endpoints, seen.lost_endpoints)
            declared = next((place[key] for place in places if key in place), declared)
        return self.resolve(declared)

    def resolve(self, endpoint: Endpoint | None) -> Endpoint | None:
        if endpoint is None or endpoint.ip is not None:
            return endpoint
        address = self.observations.resolved.get(endpoint.host)
        return Endpoint(host=str(address), port=endpoint.port) if address else None

    # Routes and rules.

    def list_routes(self) -> Iterator[Route]:
        if self.leads:
            yield from self.list_tunnel_routes()
        else:
            yield from self.list_leader_routes()
        if self.options.local:
            yield from self.list_local_routes()

    def list_tunnel_routes(self) -> Iterator[Route]:
        """A leader's: into the tunnels."""
        for segment in self.tunnelled:
            carriers = self.list_endpoint_networks(segment.key, self.find_leader_endpoint(segment))
            skipped = {*segment.wireguard_networks, *carriers}
            # One of each family: what follows is done for every network of the mesh.
            routes = {version: self.find_tunnel_way(segment, version) for version in (4, 6)}
            for network in (*segment.allowed_ips, *segment.allowed_location_ips):
                if network not in skipped:
                    yield routes[network.version](destination=network)
        for peer in self.topology.peers:
            endpoint = self.find_peer_endpoint(peer)
            skipped = set(self.list_endpoint_networks(peer.public_key, endpoint))
            for network in peer.allowed_ips:
                if network not in skipped:
                    yield self.render_peer_route(network)

    def list_endpoint_networks(
        self, key: PublicKey, configured: Endpoint | None
    ) -> Iterator[IPNetwork]:
        """Where the tunnel's own packets go, which must not go into the tunnel: the endpoint the
        device is given, and the one it has found for itself.
        """
        seen = (self.observations.endpoints, self.observations.lost_endpoints)
        found = (place.get(key) for place in seen)
        for endpoint in (configured, *found):
            if endpoint and endpoint.ip:
                yield host_network(endpoint.ip)

    def find_tunnel_way(self, segment: Segment, version: int) -> partial[Route]:
        """All but the destination."""
        gateway = find_family(segment.wireguard_ips, version)
        return partial(
            Route,
            link=self.options.interface,
            gateway=share_address(version, int(gateway)) if gateway else None,
            onlink=gateway is not None,
            source=self.find_source(version),
        )

    def render_peer_route(self, network: IPNetwork) -> Route:
        """Without a WireGuard address of the family the kernel would pick any other one."""
        own = find_family(self.segment.wireguard_ips, network.version)
        source = None if own else self.find_source(network.version)
        return Route(destination=network, link=self.options.interface, source=source)

    def list_leader_routes(self) -> Iterator[Route]:
        """Of a node that does not lead: everything remote, through the leader."""
        networks = [n for s in self.topology.segments for n in s.wireguard_networks]
        for segment in self.tunnelled:
            networks += [*segment.allowed_ips, *segment.allowed_location_ips]
        networks += [network for peer in self.topology.peers for network in peer.allowed_ips]
        ways = {version: self.find_way(self.segment.leader, version) for version in (4, 6)}
        for network in networks:
            if way := ways[network.version]:
                yield way(destination=network)

    def list_local_routes(self) -> Iterator[Route]:
        """To the neighbours' pods; with ``cross`` also to their WireGuard addresses."""
        for segment in self.nearby:
            yield from self.list_neighbour_routes(segment)
        if self.tunnel:
            for address in self.list_encapsulated():
                yield Route(
                    destination=host_network(address),
                    link=self.tunnel,
                    gateway=address,
                    onlink=True,
                    table=ENCAPSULATION_TABLE,
                )

    def list_neighbour_routes(self, segment: Segment) -> Iterator[Route]:
        for network, node in segment.pod_owners.items():
            if node.name != self.node.name:
                yield from self.list_ways(node, network)
        if segment is not self.segment:
            for network in segment.wireguard_networks:
                yield from self.list_ways(segment.leader, network)

    def list_ways(self, node: Node, network: IPNetwork) -> Iterator[Route]:
        """The route to a network through another node of the location, if there can be one."""
        if way := self.find_way(node, network.version):
            yield way(destination=network)

    def find_way(self, node: Node, version: int) -> partial[Route] | None:
        """All but the destination of a route through another node of the location, if both have
        addresses of the family, and not by mistake the same one, which no kernel takes for a
        gateway.
        """
        own = self.find_internal(version)
        internal = find_family(node.internal_ips, version)
        if own is None or internal is None or own.ip == internal.ip:
            return None
        link = find_link(self.host, own.ip)
        gateway: IPAddress | None = share_address(version, int(internal))
        if self.encapsulates(own, internal.ip):
            link, gateway = self.tunnel, self.find_tunnel_gateway(node, internal.ip)
        return partial(Route, link=link, gateway=gateway, onlink=True) if link and gateway else None

    def list_rules(self) -> Iterator[Rule]:
        if not self.options.local:
            return
        for address in self.list_encapsulated():
            node = Rule(destination=host_network(address), table=ENCAPSULATION_TABLE)
            for subnet in self.node.pod_subnets:
                if subnet.version == address.version:
                    yield replace(node, source=subnet)
            if self.leads:
                yield replace(node, input_link=self.options.interface)

    # The firewall.

    def render_firewall(self) -> Firewall | None:
        sources = [network for peer in self.topology.peers for network in peer.allowed_ips]
        if self.options.cni:
            sources += self.node.pod_subnets
        destinations = [n for segment in self.nearby for n in segment.allowed_location_ips]
        firewall = Firewall(
            # Where nothing is masqueraded it is about nothing, and would change with every node.
            known=collapse(self.list_known() if sources or destinations else ()),
            masquerade_destinations=collapse(destinations),
            masquerade_sources=collapse(sources),
            forward=collapse(self.list_forwarded() if self.options.forward_rules else ()),
            tunnel_sources=collapse(self.list_tunnel_sources()),
            clamp_links=frozenset(self.list_clamp_links()),
        )
        return firewall if firewall != Firewall() else None

    def list_known(self) -> Iterator[IPNetwork]:
        """The mesh's addresses, but for the own location's allowed location IPs, which are
        masqueraded.
        """
        for segment in self.topology.segments:
            yield from segment.allowed_ips
        for segment in self.tunnelled:
            yield from segment.allowed_location_ips
        for peer in self.topology.peers:
            yield from peer.allowed_ips
        yield from self.topology.settings.service_cidrs

    def list_tunnel_sources(self) -> Iterator[IPNetwork]:
        """Who may send us IPIP packets: the nodes of the location. Others' tunnel is theirs."""
        if self.owns_tunnel:
            for segment in self.nearby:
                for node in segment.nodes:
                    internal = find_family(node.internal_ips, 4)
                    if internal:
                        yield host_network(internal.ip)
                    if self.beside_cilium:
                        inside = find_reported_address(node)
                        yield from (host_network(inside),) if inside else ()

    def list_clamp_links(self) -> Iterator[str]:
        """The links by which others' packets leave wrapped up, in less room than they came in."""
        if not any(find_behind(self, version) for version in (4, 6)):
            return
        if self.leads and (any(True for _ in self.tunnelled) or self.topology.peers):
            yield self.options.interface
        # Flannel's pods know what fits its link.
        own = self.tunnel if self.options.compatibility is not Compatibility.FLANNEL else None
        if own and any(True for _ in self.list_encapsulated()):
            yield own

    def list_forwarded(self) -> Iterator[IPNetwork]:
        if not self.leads:
            yield from self.node.pod_subnets
            return
        own = set(self.segment.wireguard_networks)
        yield from (n for n in self.segment.allowed_ips if n not in own)
        yield from self.segment.allowed_location_ips
