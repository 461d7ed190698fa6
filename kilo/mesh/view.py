"""The mesh as one node stands in it: who is near, and which way packets go to whom.

What ``render`` writes down is asked of this; nothing here knows of links, rules or sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Self

from kilo.errors import MeshError
from kilo.mesh.addressing import host_network
from kilo.mesh.host import HostFacts
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Encapsulation, Endpoint, IPAddress, IPInterface, Node
from kilo.mesh.topology import Segment, Topology

FLANNEL_LINK = "flannel.1"
CILIUM_TUNNEL = "cilium_tunl"
"""The kernel's own IPIP link, which Cilium renames and then leaves alone."""
CILIUM_HOST = "cilium_host"
CILIUM_OVERLAYS = frozenset({"cilium_vxlan", "cilium_geneve"})
CILIUM_OVERHEAD = 50
"""Bytes: what Cilium's overlay adds to a packet that travels in it."""


class Compatibility(StrEnum):
    """The network beside which ours runs, and which connects the nodes of a location."""

    NONE = ""
    FLANNEL = "flannel"
    CILIUM = "cilium"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """What the local agent was told about its own host; the flags of the same names."""

    interface: str = "kilo0"
    local: bool = True
    cni: bool = False
    forward_rules: bool = False
    compatibility: Compatibility = Compatibility.NONE
    tunnel: str = "tunl0"
    """The IPIP link, where no other network's takes its place."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The mesh as one node stands in it."""

    topology: Topology
    segment: Segment
    node: Node
    host: HostFacts
    options: RenderOptions
    observations: Observations
    sources: tuple[IPAddress, ...]
    """What ``find_sources`` found, once and not for each of thousands of routes."""

    @classmethod
    def of_node(
        cls,
        name: str,
        topology: Topology,
        *,
        host: HostFacts,
        options: RenderOptions,
        observations: Observations,
    ) -> Self:
        """The mesh as the node called ``name`` stands in it.

        ``MeshError`` if that node takes no part, say because another one has its key.
        """
        segment = topology.find_segment(name)
        if segment is None:
            reasons = [str(r) for r in topology.refusals if r.claimant == f"Node {name}"]
            raise MeshError("; ".join(reasons) or f"node {name} takes no part in the mesh")
        node = next(node for node in segment.nodes if node.name == name)
        return cls(
            topology=topology,
            segment=segment,
            node=node,
            host=host,
            options=options,
            observations=observations,
            sources=find_sources(segment, node, host),
        )

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
        """An address of the host that the others accept from this node."""
        return next((ip for ip in self.sources if ip.version == version), None)

    # Encapsulation.

    @property
    def tunnel(self) -> str | None:
        """The link that encapsulated packets leave by; None while another network lacks it."""
        match self.options.compatibility:
            case Compatibility.FLANNEL:
                return FLANNEL_LINK if has_link(self.host, FLANNEL_LINK) else None
            case Compatibility.CILIUM if CILIUM_TUNNEL in self.host.mtus:
                # Down or not: while it is there the kernel makes no other that takes all IPIP.
                return CILIUM_TUNNEL
            case _:
                return self.options.tunnel

    def list_missing(self) -> Iterator[str]:
        """What is not there (yet), as warnings."""
        flag = f"--compatibility={self.options.compatibility}"
        if self.tunnel is None:
            yield f"{flag}: link {FLANNEL_LINK} is not there, or down: waiting for it"
        if self._lacks_cilium:
            yield f"{flag}: link {CILIUM_HOST} is not there, or has no address: waiting for it"

    @property
    def beside_cilium(self) -> bool:
        return self.options.compatibility is Compatibility.CILIUM

    @property
    def _lacks_cilium(self) -> bool:
        return self.beside_cilium and find_cilium_address(self.host) is None

    def find_tunnel_gateway(self, node: Node, internal: IPAddress) -> IPAddress | None:
        """Where the tunnel finds a node; None if its network has not said."""
        match self.options.compatibility:
            case Compatibility.FLANNEL:
                subnets = (net for net in node.pod_subnets if net.version == internal.version)
                return next((subnet.network_address for subnet in subnets), None)
            case Compatibility.CILIUM:
                # Without an address of its own the host would send by another way than Cilium's.
                return None if self._lacks_cilium else find_reported_address(node)
            case _:
                return internal

    @property
    def owns_tunnel(self) -> bool:
        """Whether the IPIP link is for us to make: we need it, and nobody else uses it."""
        is_ipip = self.options.compatibility is not Compatibility.FLANNEL
        ours = is_ipip and self.tunnel not in self.host.busy_tunnels
        return ours and any(True for _ in self.list_encapsulated())

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


def has_link(host: HostFacts, name: str) -> bool:
    """Whether there is a link of that name that routes can go over."""
    return name in host.mtus and name not in host.down_links


def find_cilium_address(host: HostFacts) -> IPInterface | None:
    """Where Cilium finds the host."""
    borne = (a.interface for a in host.addresses if a.link == CILIUM_HOST)
    return find_family(borne, 4)


def find_reported_address(node: Node) -> IPAddress | None:
    """Where Cilium finds another node, by its agent's account."""
    address = node.report.cni_compatibility_ip if node.report else None
    return address.ip if address else None


def find_family(interfaces: Iterable[IPInterface], version: int) -> IPInterface | None:
    """The first address of a family, 4 or 6."""
    return next((i for i in interfaces if i.version == version), None)


def find_sources(segment: Segment, node: Node, host: HostFacts) -> tuple[IPAddress, ...]:
    """The addresses of the host that others accept from this node, the best first.

    Its internal ones; failing those, ones of its own pods' subnets, for a node without would use
    its WireGuard address, which moves whenever the segments are numbered anew.
    """
    owned = set(segment.allowed_ips)
    internal = [one.ip for one in node.internal_ips if host_network(one.ip) in owned]
    subnets = owned.intersection(node.pod_subnets)
    borne = [address.interface.ip for address in host.addresses]
    pods = [ip for ip in borne if any(ip in subnet for subnet in subnets)]
    return (*(ip for ip in internal if ip in borne), *pods)
