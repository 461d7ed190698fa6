"""Topology and host -> what this host's kernel should look like (spec section 5).

One set of rules for leaders and others, and one function for both address families. Nothing
here depends on what the kernel looks like now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import collapse_addresses
from types import MappingProxyType

from kilo.errors import MeshError
from kilo.mesh.addressing import host_network
from kilo.mesh.host import HostFacts, find_link, find_wireguard_mtu
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Encapsulation, Endpoint, IPAddress, IPInterface, IPNetwork, Node, Peer
from kilo.mesh.state import (
    ENCAPSULATION_TABLE,
    Address,
    DataplaneState,
    Firewall,
    Link,
    Route,
    Rule,
    WireGuardDevice,
    WireGuardPeer,
)
from kilo.mesh.topology import Segment, Topology, required_key


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """What the local agent was told about its own host; the flags of the same names."""

    interface: str = "kilo0"
    local: bool = True
    cni: bool = False
    forward_rules: bool = False
    tunnel: str = "tunl0"
    """The link that encapsulated packets leave by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """What only this host knows: it may differ from node to node."""

    endpoints: Mapping[PublicKey, Endpoint] = field(default_factory=lambda: MappingProxyType({}))
    """Live endpoints of devices that have a session with ours."""
    lost_endpoints: Mapping[PublicKey, Endpoint] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """Where devices were last seen whose session has run out."""
    resolved: Mapping[str, IPAddress] = field(default_factory=lambda: MappingProxyType({}))
    """DNS name -> the address in use; no entry while it has not been resolved."""


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
    segment = topology.find_segment(name)
    if segment is None:
        reasons = [str(r) for r in topology.refusals if r.claimant == f"Node {name}"]
        raise MeshError("; ".join(reasons) or f"node {name} takes no part in the mesh")
    view = _View(
        topology=topology,
        segment=segment,
        node=next(node for node in segment.nodes if node.name == name),
        host=host,
        options=options,
        observations=observations,
    )
    return view.render()


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """The mesh as one node stands in it."""

    topology: Topology
    segment: Segment
    node: Node
    host: HostFacts
    options: RenderOptions
    observations: Observations

    def render(self) -> DataplaneState:
        routes: dict[object, Route] = {}
        for route in self.list_routes():
            routes.setdefault(route.key, route)
        return DataplaneState(
            links=frozenset({self.render_link()}),
            devices=frozenset({self.render_device()}),
            peers=frozenset(self.list_peers()),
            addresses=frozenset(self.list_addresses()),
            firewall=self.render_firewall(),
            routes=frozenset(routes.values()),
            rules=frozenset(self.list_rules()),
        )

    # What is asked of the view everywhere below.

    @property
    def leads(self) -> bool:
        return self.segment.leader.name == self.node.name

    @property
    def tunnelled(self) -> Iterator[Segment]:
        """The segments that are reached through a WireGuard tunnel."""
        own = self.segment.neighbourhood
        return (s for s in self.topology.segments if s.neighbourhood != own)

    @property
    def nearby(self) -> Iterator[Segment]:
        """The segments of the node's own location, its own one included."""
        own = self.segment.neighbourhood
        return (s for s in self.topology.segments if s.neighbourhood == own)

    @property
    def neighbours(self) -> Iterator[Node]:
        """The other nodes that are reached without a tunnel."""
        for segment in self.nearby:
            yield from (node for node in segment.nodes if node.name != self.node.name)

    def find_internal(self, version: int) -> IPInterface | None:
        """The node's internal address of a family."""
        return find_family(self.node.internal_ips, version)

    def find_source(self, version: int) -> IPAddress | None:
        """An address of the host that the others accept from this node.

        Its internal one; failing that one of its own pods' subnet, for a node without would use
        its WireGuard address, which moves whenever the segments are numbered anew.
        """
        internal = self.find_internal(version)
        owned = set(self.segment.allowed_ips)
        candidates = [internal.ip] if internal and host_network(internal.ip) in owned else []
        subnets = owned.intersection(self.node.pod_subnets)
        borne = [address.interface.ip for address in self.host.addresses]
        candidates += [ip for ip in borne if any(ip in subnet for subnet in subnets)]
        return next((ip for ip in candidates if ip.version == version and ip in borne), None)

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
                yield Address(link=self.options.interface, interface=interface)

    def list_peers(self) -> Iterator[WireGuardPeer]:
        if not self.leads:
            return
        for segment in self.tunnelled:
            yield self.render_segment_peer(segment)
        for peer in self.topology.peers:
            yield self.render_peer(peer)

    def render_segment_peer(self, segment: Segment) -> WireGuardPeer:
        leader = segment.leader
        return WireGuardPeer(
            link=self.options.interface,
            public_key=segment.key,
            allowed_ips=frozenset((*segment.allowed_ips, *segment.allowed_location_ips)),
            endpoint=self.find_endpoint(
                segment.key, leader.endpoint, leader.spec.persistent_keepalive_seconds
            ),
            keepalive_seconds=self.node.spec.persistent_keepalive_seconds,
        )

    def render_peer(self, peer: Peer) -> WireGuardPeer:
        return WireGuardPeer(
            link=self.options.interface,
            public_key=peer.public_key,
            allowed_ips=frozenset(peer.allowed_ips),
            endpoint=self.find_endpoint(
                peer.public_key, peer.endpoint, peer.persistent_keepalive_seconds
            ),
            keepalive_seconds=self.node.spec.persistent_keepalive_seconds,
            preshared_key=peer.preshared_key,
        )

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
            carriers = self.list_endpoint_networks(self.render_segment_peer(segment))
            skipped = {*segment.wireguard_networks, *carriers}
            for network in (*segment.allowed_ips, *segment.allowed_location_ips):
                if network not in skipped:
                    yield self.render_tunnel_route(segment, network)
        for peer in self.topology.peers:
            skipped = set(self.list_endpoint_networks(self.render_peer(peer)))
            for network in peer.allowed_ips:
                if network not in skipped:
                    yield self.render_peer_route(network)

    def list_endpoint_networks(self, peer: WireGuardPeer) -> Iterator[IPNetwork]:
        """Where the tunnel's own packets go, which must not go into the tunnel: the endpoint the
        device is given, and the one it has found for itself.
        """
        seen = (self.observations.endpoints, self.observations.lost_endpoints)
        found = (place.get(peer.public_key) for place in seen)
        for endpoint in (peer.endpoint, *found):
            if endpoint and endpoint.ip:
                yield host_network(endpoint.ip)

    def render_tunnel_route(self, segment: Segment, network: IPNetwork) -> Route:
        gateway = find_family(segment.wireguard_ips, network.version)
        return Route(
            destination=network,
            link=self.options.interface,
            gateway=gateway.ip if gateway else None,
            onlink=gateway is not None,
            source=self.find_source(network.version),
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
        for network in networks:
            yield from self.route_via(self.segment.leader, network)

    def list_local_routes(self) -> Iterator[Route]:
        """To the neighbours' pods; with ``cross`` also to their WireGuard addresses."""
        for segment in self.nearby:
            yield from self.list_neighbour_routes(segment)
        for address in self.list_encapsulated():
            yield Route(
                destination=host_network(address),
                link=self.options.tunnel,
                gateway=address,
                onlink=True,
                table=ENCAPSULATION_TABLE,
            )

    def list_neighbour_routes(self, segment: Segment) -> Iterator[Route]:
        for network, node in segment.pod_owners.items():
            if node.name != self.node.name:
                yield from self.route_via(node, network)
        if segment is not self.segment:
            for network in segment.wireguard_networks:
                yield from self.route_via(segment.leader, network)

    def route_via(self, node: Node, network: IPNetwork) -> Iterator[Route]:
        """A route through another node of the location, if both have addresses of the family,
        and not by mistake the same one, which no kernel takes for a gateway.
        """
        own = self.find_internal(network.version)
        gateway = find_family(node.internal_ips, network.version)
        if own is None or gateway is None or own.ip == gateway.ip:
            return
        link = (
            self.options.tunnel
            if self.encapsulates(own, gateway.ip)
            else find_link(self.host, own.ip)
        )
        if link:
            yield Route(destination=network, link=link, gateway=gateway.ip, onlink=True)

    def encapsulates(self, own: IPInterface, gateway: IPAddress) -> bool:
        """Whether packets to a node of the location travel in IPIP, which carries IPv4 only."""
        strategy = self.topology.settings.encapsulation
        if own.version != 4 or strategy is Encapsulation.NEVER:
            return False
        return strategy is Encapsulation.ALWAYS or gateway not in own.network

    def list_encapsulated(self) -> Iterator[IPAddress]:
        """The internal addresses of the neighbours that are reached through the tunnel."""
        own = self.find_internal(4)
        for node in self.neighbours:
            gateway = find_family(node.internal_ips, 4)
            if own and gateway and own.ip != gateway.ip and self.encapsulates(own, gateway.ip):
                yield gateway.ip

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
        firewall = Firewall(
            known=collapse(self.list_known()),
            masquerade_destinations=collapse(
                network for segment in self.nearby for network in segment.allowed_location_ips
            ),
            masquerade_sources=collapse(sources),
            forward=collapse(self.list_forwarded() if self.options.forward_rules else ()),
        )
        active = firewall.masquerade_destinations or firewall.masquerade_sources or firewall.forward
        return firewall if active else None

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

    def list_forwarded(self) -> Iterator[IPNetwork]:
        if not self.leads:
            yield from self.node.pod_subnets
            return
        own = set(self.segment.wireguard_networks)
        yield from (n for n in self.segment.allowed_ips if n not in own)
        yield from self.segment.allowed_location_ips


def find_family(interfaces: Iterable[IPInterface], version: int) -> IPInterface | None:
    """The first address of a family, 4 or 6."""
    return next((i for i in interfaces if i.version == version), None)


def collapse(networks: Iterable[IPNetwork]) -> frozenset[IPNetwork]:
    """The fewest networks that hold the same addresses: none overlaps another."""
    given = list(networks)
    ipv4 = [network for network in given if network.version == 4]
    ipv6 = [network for network in given if network.version == 6]
    return frozenset((*collapse_addresses(ipv4), *collapse_addresses(ipv6)))
