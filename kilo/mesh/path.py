"""The way of a packet through the mesh, hop by hop, and the first thing that would stop it.

Followed through the states that agents make: policy rules and routes, the tunnel that WireGuard
chooses by its allowed IPs, and at its other end the check that the packet's source is one of them.
Where a kernel was read, through what it has; what it lacks of what its agent should have made is
then what stops the packet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from types import MappingProxyType

from kilo.errors import MeshError
from kilo.mesh.foretell import Hosts, render_guessed
from kilo.mesh.host import is_private
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, IPAddress, Node, Peer
from kilo.mesh.places import HAS, Device, Place, explain_delivery, find_end, name_device
from kilo.mesh.state import MAIN_TABLE, DataplaneState, Route, Rule, WireGuardPeer
from kilo.mesh.survey import Survey
from kilo.mesh.topology import Segment, required_key
from kilo.mesh.view import find_family
from kilo.mesh.wgconf import describe_peer, describe_segment

MOST_HOPS = 8
"""Sender, its leader, the other leader, the receiver: four are enough for every packet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """What one device does with the packet."""

    at: str
    """``node berlin``, ``peer squat``."""
    line: str
    """The route, tunnel or address by which it does so."""
    to: str = ""
    """Who gets it next; empty at the end."""
    route: Route | None = None
    """The route of ours by which it leaves; None if it leaves by none."""
    key: PublicKey | None = None
    """Of the tunnel's other end; None where it travels without."""
    doubt: str = ""
    """What may stop it here, and the store does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The whole way, as far as it goes."""

    source: IPAddress
    """That of the packet."""
    hops: tuple[Hop, ...]
    stop: str = ""
    """What stops it, and where; empty if it arrives."""


class StoppedError(Exception):
    """The packet goes no further; the text says where and why."""


class Tracer:
    """Follows packets through one mesh."""

    def __init__(
        self,
        survey: Survey,
        hosts: Hosts,
        *,
        kernels: Mapping[str, DataplaneState] = MappingProxyType({}),
    ) -> None:
        """``kernels`` are the states of the nodes whose kernels were read; those of all others are
        taken to be what their agents make.
        """
        self._survey = survey
        self._topology = survey.topology
        self._hosts = hosts
        self._kernels = kernels
        self._guesses: dict[str, DataplaneState] = {}
        self._keys: dict[PublicKey, Device] = {p.public_key: p for p in survey.topology.peers}
        self._keys |= {segment.key: segment.leader for segment in survey.topology.segments}

    def trace(self, source: Place, destination: Place) -> Way:
        """The way of a packet between the two."""
        address, hops = source.address, list[Hop]()
        try:
            address = self._choose_source(source, destination.address)
            for hop in self._walk(source.device, address, destination.address):
                hops.append(hop)
        except StoppedError as error:
            return Way(source=address, hops=tuple(hops), stop=str(error))
        return Way(source=address, hops=tuple(hops))

    def _walk(self, here: Device, source: IPAddress, to: IPAddress) -> Iterator[Hop]:
        came_by = ""
        for _ in range(MOST_HOPS):
            if isinstance(here, Peer):
                hop, onward = self._leave_peer(here, source, to)
            else:
                hop, onward = self._leave_node(here, source, to, came_by)
            yield hop
            if onward is None:
                return
            came_by = self._hosts.options.interface if hop.key else ""
            here = onward
        raise StoppedError(f"it goes round in circles, last at {name_device(here)}")

    def _choose_source(self, place: Place, to: IPAddress) -> IPAddress:
        """As the kernel chooses it for what the host itself sends."""
        if not (place.is_host and isinstance(place.device, Node)):
            return place.address
        route = self._find_route(place.device, place.address, to, "")
        if route is None or route.source is not None:
            return route.source if route and route.source else place.address
        segment = self._find_segment(place.device)
        own = find_family(segment.wireguard_ips, to.version)
        if own is None or route.link != self._hosts.options.interface:
            return place.address
        return own.ip

    def _find_segment(self, node: Node) -> Segment:
        segment = self._topology.find_segment(node.name)
        if segment is None:
            raise MeshError(f"node {node.name} takes no part in the mesh")
        return segment

    def _read(self, node: Node) -> DataplaneState:
        return self._kernels.get(node.name) or self._guess(node)

    def _guess(self, node: Node) -> DataplaneState:
        if node.name not in self._guesses:
            try:
                self._guesses[node.name] = render_guessed(self._survey, node.name, self._hosts)
            except MeshError as error:
                raise StoppedError(f"node {node.name}: {error}") from error
        return self._guesses[node.name]

    # Through a node.

    def _leave_node(
        self, node: Node, source: IPAddress, to: IPAddress, came_by: str
    ) -> tuple[Hop, Device | None]:
        at = name_device(node)
        delivery = explain_delivery(self._find_segment(node), node, to)
        if delivery == HAS:
            return Hop(at=at, line=delivery), None
        route = self._find_route(node, source, to, came_by)
        self._check_kernel(node, route, find_route(self._guess(node), source, to, came_by), to)
        if route is None:
            return self._leave_mesh(node, to, delivery)
        if route.link == self._hosts.options.interface:
            return self._enter_tunnel(node, route, source, to)
        gateway = self._find_neighbour(node, route.gateway)
        if gateway is None:
            raise StoppedError(f"{at}: {route}: no node of its location has the gateway's address")
        self._check_tunnel_source(node, gateway, route)
        return Hop(at=at, line=str(route), to=name_device(gateway), route=route), gateway

    def _find_route(
        self, node: Node, source: IPAddress, to: IPAddress, came_by: str
    ) -> Route | None:
        return find_route(self._read(node), source, to, came_by)

    def _check_kernel(
        self, node: Node, route: Route | None, wanted: Route | None, to: IPAddress
    ) -> None:
        """Stop where the kernel lacks the route that the node's agent should have made."""
        if wanted is None or (
            route and route.destination.prefixlen >= wanted.destination.prefixlen
        ):
            return
        # Names of links are guessed.
        via = f" via {wanted.gateway}" if wanted.gateway else ""
        raise StoppedError(
            f"{name_device(node)}: route {wanted.destination}{via} is missing in its"
            f" kernel{self._explain_end(node, to)}: does its agent run?"
        )

    def _explain_end(self, node: Node, to: IPAddress) -> str:
        """What becomes of a packet without a route."""
        held = [one.destination for one in self._read(node).barriers if to in one.destination]
        if not held:
            return ""
        return f" (it ends at barrier {max(held, key=lambda network: network.prefixlen)})"

    def _leave_mesh(self, node: Node, to: IPAddress, delivery: str) -> tuple[Hop, Device | None]:
        """By routes that are none of ours."""
        at = name_device(node)
        neighbour = self._find_neighbour(node, to)
        if neighbour is not None:
            return Hop(at=at, line="its own network", to=name_device(neighbour)), neighbour
        seen = dict(node.discovered_endpoints)
        for peer in self._read(node).peers:
            endpoints = (peer.endpoint, seen.get(peer.public_key))
            other = self._keys.get(peer.public_key)
            if other and any(endpoint and endpoint.ip == to for endpoint in endpoints):
                line = f"outside the mesh: {to} is where the tunnel to {name_device(other)} leads"
                return Hop(at=at, line=line, to=name_device(other)), other
        if delivery:
            return Hop(at=at, line=delivery), None
        end = self._explain_end(node, to)
        raise StoppedError(f"{at} has no route to {to}{end}{self._explain_refusal(to)}")

    def _find_neighbour(self, node: Node, address: IPAddress | None) -> Node | None:
        own = self._find_segment(node).neighbourhood
        for segment in self._topology.segments:
            # Of several with one address, which is wrong anyway, the one that is routed by.
            members = (segment.leader, *segment.nodes)
            for other in members if segment.neighbourhood == own else ():
                if other.name != node.name and any(i.ip == address for i in other.internal_ips):
                    return other
        return None

    def _check_tunnel_source(self, node: Node, gateway: Node, route: Route) -> None:
        if route.link != self._hosts.options.tunnel:
            return
        firewall = self._read(gateway).firewall
        allowed = firewall.tunnel_sources if firewall else frozenset()
        own = find_family(node.internal_ips, 4)
        if own is None or not any(own.ip in network for network in allowed):
            raise StoppedError(f"node {gateway.name} takes no IPIP packets from node {node.name}")

    def _explain_refusal(self, to: IPAddress) -> str:
        """The claims on it that were not granted."""
        reasons = [str(refusal) for refusal in self._topology.refusals if _holds(refusal.value, to)]
        return f" ({'; '.join(reasons)})" if reasons else ""

    # Through a tunnel.

    def _enter_tunnel(
        self, node: Node, route: Route, source: IPAddress, to: IPAddress
    ) -> tuple[Hop, Device | None]:
        at = name_device(node)
        peer = find_cover(self._read(node).peers, to)
        self._check_device(node, peer, find_cover(self._guess(node).peers, to), to)
        if peer is None:
            raise StoppedError(f"{at}: {to} is no allowed IP of any tunnel")
        other = self._keys[peer.public_key]
        self._check_arrival(required_key(node), at, other, source)
        line = f"{route}; tunnel to {name_device(other)}, {_name_endpoint(peer.endpoint)}"
        doubt = _doubt_endpoint(peer, other)
        hop = Hop(
            at=at,
            line=line,
            to=name_device(other),
            route=route,
            key=peer.public_key,
            doubt=doubt,
        )
        return hop, other

    def _check_device(
        self, node: Node, peer: WireGuardPeer | None, wanted: WireGuardPeer | None, to: IPAddress
    ) -> None:
        """Stop where the device gives the address to another tunnel than the mesh does."""
        if wanted == peer or (wanted and peer and wanted.public_key == peer.public_key):
            return
        at, right = name_device(node), wanted and self._name_key(wanted.public_key)
        if wanted and all(one.public_key != wanted.public_key for one in self._read(node).peers):
            raise StoppedError(f"{at}: its device has no tunnel to {right}: does its agent run?")
        if peer is None:
            raise StoppedError(
                f"{at}: {to} is no allowed IP of {right} in its device: does its agent run?"
            )
        claimed = f"{to} is an allowed IP of {self._name_key(peer.public_key)} in its device"
        raise StoppedError(f"{at}: {claimed}, and in the mesh of {right or 'nobody'}")

    def _name_key(self, key: PublicKey) -> str:
        device = self._keys.get(key)
        return name_device(device) if device else f"key {key}, which is nobody's in the mesh"

    def _check_arrival(
        self, key: PublicKey, sender: str, receiver: Device, source: IPAddress
    ) -> None:
        """WireGuard takes a packet only if its source is an allowed IP of who sent it."""
        if isinstance(receiver, Peer):
            return  # its configuration is its own matter
        at = name_device(receiver)
        peers = {peer.public_key: peer for peer in self._read(receiver).peers}
        if key not in peers:
            missing = receiver.name in self._kernels and any(
                peer.public_key == key for peer in self._guess(receiver).peers
            )
            hint = ": it is missing in its device: does its agent run?" if missing else ""
            raise StoppedError(f"{at} has no tunnel to {sender}{hint}")
        if not any(source in network for network in peers[key].allowed_ips):
            raise StoppedError(f"{at} drops it: {source} is no allowed IP of {sender} there")

    def _leave_peer(
        self, peer: Peer, source: IPAddress, to: IPAddress
    ) -> tuple[Hop, Device | None]:
        """Through the configuration that ``kgctl showconf peer`` prints."""
        at = name_device(peer)
        other = find_end(self._topology, to)
        if other == peer:
            return Hop(at=at, line=HAS), None
        if other is None:
            raise StoppedError(f"{at}: {to} is nobody's it knows{self._explain_refusal(to)}")
        self._check_arrival(peer.public_key, at, other, source)
        conf = (
            describe_peer(self._topology, other)
            if isinstance(other, Peer)
            else describe_segment(self._topology, self._find_segment(other))
        )
        line = f"tunnel to {name_device(other)}, {_name_endpoint(conf.endpoint)}"
        return Hop(at=at, line=line, to=name_device(other), key=conf.public_key), other


def _name_endpoint(endpoint: Endpoint | None) -> str:
    return f"endpoint {endpoint}" if endpoint else "no endpoint"


def _holds(value: str, address: IPAddress) -> bool:
    try:
        return address in ip_network(value)
    except ValueError:
        return False  # a claim on something else, a key say


def find_route(
    state: DataplaneState, source: IPAddress, to: IPAddress, came_by: str
) -> Route | None:
    """The longest match in the tables of the rules that fit, then in the main one; ``came_by`` is
    the link that the packet came in by, empty for the host's own.
    """
    tables = [rule.table for rule in state.rules if _fits(rule, source, to, came_by)]
    # The kernel makes a route of its own for the network of each address.
    connected = (
        Route(destination=one.interface.network, link=one.link, source=one.interface.ip)
        for one in state.addresses
    )
    routes = (*state.routes, *connected)
    for table in (*tables, MAIN_TABLE):
        found = [r for r in routes if r.table == table and to in r.destination]
        if found:
            return max(found, key=lambda route: route.destination.prefixlen)
    return None


def _fits(rule: Rule, source: IPAddress, to: IPAddress, came_by: str) -> bool:
    if rule.input_link and rule.input_link != came_by:
        return False
    return to in rule.destination and (rule.source is None or source in rule.source)


def find_cover(peers: Iterable[WireGuardPeer], to: IPAddress) -> WireGuardPeer | None:
    """The tunnel that WireGuard chooses: the one with the longest allowed IP that holds it."""
    lengths = (
        (network.prefixlen, peer) for peer in peers for network in peer.allowed_ips if to in network
    )
    return max(lengths, key=lambda pair: pair[0], default=(0, None))[1]


def _doubt_endpoint(peer: WireGuardPeer, other: Device) -> str:
    """Whether the tunnel's other end can be called."""
    name = name_device(other)
    if isinstance(other, Node):
        keepalive = other.spec.persistent_keepalive_seconds
    else:
        keepalive = other.persistent_keepalive_seconds
    if peer.endpoint is None and other.endpoint is not None:
        return f"{name}'s endpoint {other.endpoint} has no address here: does it resolve?"
    if peer.endpoint is None:
        hint = "" if keepalive else ", and keep the tunnel open (persistentKeepalive) behind NAT"
        return f"{name} has no endpoint: it must call first{hint}"
    address = peer.endpoint.ip
    if address is not None and is_private(address) and not keepalive:
        return (
            f"{name}'s endpoint {peer.endpoint} is private and it has no persistentKeepalive:"
            " behind NAT it cannot be called"
        )
    return ""
