"""Where packets come from and go to: the nodes and peers of a mesh, and whose an address is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from kilo.errors import MeshError
from kilo.mesh.model import IPAddress, Node, Peer
from kilo.mesh.survey import Survey
from kilo.mesh.topology import Segment, Topology

Device = Node | Peer


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where packets come from or go to."""

    device: Device
    address: IPAddress
    is_host: bool
    """Whether the device itself sends them, by whichever of its addresses suits the way."""


def name_device(device: Device) -> str:
    """``node berlin`` or ``peer squat``."""
    return f"{'node' if isinstance(device, Node) else 'peer'} {device.name}"


def find_places(topology: Topology, source: str, destination: str) -> tuple[Place, Place]:
    """Both ends, each a node, a peer, or an address of either; ``MeshError`` names what is none.

    ``node/x`` and ``peer/x`` tell a node and a peer of one name apart. Of names the family is
    the first that both have.
    """
    sources, destinations = (list(_list_places(topology, text)) for text in (source, destination))
    for text, found in ((source, sources), (destination, destinations)):
        if not found:
            raise MeshError(
                f"{text}: is no node and no peer that takes part, and no address of one"
            )
    for one in sources:
        for other in destinations:
            if one.address.version == other.address.version:
                return one, other
    raise MeshError(f"{source} and {destination} have no addresses of one family")


def _list_places(topology: Topology, text: str) -> Iterator[Place]:
    try:
        address = ip_address(text)
    except ValueError:
        yield from _list_named(topology, text)
        return
    device = find_owner(topology, address)
    if device is not None:
        yield Place(device=device, address=address, is_host=False)


def _list_named(topology: Topology, text: str) -> Iterator[Place]:
    kind, _, name = text.rpartition("/")
    for segment in topology.segments if kind in ("", "node") else ():
        for node in segment.nodes:
            if node.name == name:
                led = segment.wireguard_ips if node is segment.leader else ()
                for one in (*node.internal_ips, *led):
                    yield Place(device=node, address=one.ip, is_host=True)
    for peer in topology.peers if kind in ("", "peer") else ():
        if peer.name == name:
            for network in peer.allowed_ips:
                yield Place(device=peer, address=network.network_address, is_host=False)


def find_owner(topology: Topology, address: IPAddress) -> Device | None:
    """Whose address it is; a leader's, what lies behind its location."""
    for segment in topology.segments:
        for node in segment.nodes:
            if explain_delivery(segment, node, address) == HAS:
                return node
    return find_end(topology, address)


def find_absent_owner(survey: Survey, text: str) -> str:
    """The node that takes no part and has the address; empty if it is nobody's, or another's."""
    try:
        address = ip_address(text)
    except ValueError:
        return ""
    if find_owner(survey.topology, address) is not None:
        return ""
    for node in survey.snapshot.nodes:
        internal = (one.ip for one in node.internal_ips)
        if address in internal or any(address in network for network in node.pod_subnets):
            return node.name if node.name in survey.absent else ""
    return ""


def find_end(topology: Topology, address: IPAddress) -> Device | None:
    """Through whose tunnel it is reached from outside: the leader's of the segment, or the peer's,
    with the longest allowed IP that holds it.
    """
    claims = [
        (network.prefixlen, segment.leader)
        for segment in topology.segments
        for network in (*segment.allowed_ips, *segment.allowed_location_ips)
        if address in network
    ]
    by_peers: list[tuple[int, Device]] = [
        (network.prefixlen, peer)
        for peer in topology.peers
        for network in peer.allowed_ips
        if address in network
    ]
    return max((*claims, *by_peers), key=lambda claim: claim[0], default=(0, None))[1]


HAS, BEHIND = "has it", "passes it on to its own network"


def explain_delivery(segment: Segment, node: Node, address: IPAddress) -> str:
    """Why the way ends at this node of the segment; empty if it does not."""
    own = {one.ip for one in node.internal_ips}
    if node is segment.leader:
        own |= {one.ip for one in segment.wireguard_ips}
    owned = (net for net, owner in segment.pod_owners.items() if owner.name == node.name)
    if address in own or any(address in network for network in owned):
        return HAS
    behind = any(address in network for network in segment.allowed_location_ips)
    return BEHIND if behind else ""
