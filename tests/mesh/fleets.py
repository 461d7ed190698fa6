"""Nodes, peers and hosts in few words. Addresses follow the plan in tests/README.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_interface, ip_network

from kilo.mesh.host import HostAddress, HostFacts
from kilo.mesh.keys import PresharedKey, PublicKey, Withheld
from kilo.mesh.model import (
    Endpoint,
    IPInterface,
    IPNetwork,
    Node,
    NodeReport,
    NodeSpec,
    Peer,
    Settings,
)
from kilo.mesh.render import render
from kilo.mesh.state import DataplaneState
from kilo.mesh.topology import Segment, Topology, build_topology
from kilo.mesh.view import Observations, RenderOptions
from tests.builders import make_key

DEFAULT_SETTINGS = Settings()


def nets(text: str) -> tuple[IPNetwork, ...]:
    """Networks from text, separated by blanks."""
    return tuple(map(ip_network, text.split()))


def interfaces(text: str) -> tuple[IPInterface, ...]:
    """Addresses with their prefix lengths from text, separated by blanks."""
    return tuple(map(ip_interface, text.split()))


def make_node(
    name: str,
    *,
    location: str = "",
    endpoint: str = "198.51.100.1:51820",
    internal: str = "",
    pods: str = "",
    leader: bool = False,
    keepalive: int = 0,
    location_ips: str = "",
    key: str = "",
    seen: Iterable[tuple[PublicKey, Endpoint]] = (),
) -> Node:
    """A node that is ready: its agent reports key, endpoint and internal addresses."""
    return Node(
        name=name,
        spec=NodeSpec(
            location=location,
            leader=leader,
            persistent_keepalive_seconds=keepalive,
            allowed_location_ips=nets(location_ips),
            pod_subnets=nets(pods),
        ),
        report=NodeReport(
            name=name,
            public_key=make_key(key or name),
            endpoint=Endpoint.parse(endpoint) if endpoint else None,
            internal_ips=interfaces(internal),
            discovered_endpoints=tuple(sorted(seen)),
            agent="kg",
        ),
    )


def make_peer(
    name: str,
    allowed: str,
    *,
    endpoint: str = "",
    keepalive: int = 0,
    key: str = "",
    preshared: PresharedKey | Withheld | None = None,
) -> Peer:
    """A device outside the mesh."""
    return Peer(
        name=name,
        public_key=make_key(key or name),
        allowed_ips=nets(allowed),
        endpoint=Endpoint.parse(endpoint) if endpoint else None,
        persistent_keepalive_seconds=keepalive,
        preshared_key=preshared,
    )


def make_facts(**links: str) -> HostFacts:
    """A host whose links bear these addresses; the first link has the default route."""
    return HostFacts(
        addresses=tuple(
            HostAddress(link=link, interface=interface)
            for link, text in links.items()
            for interface in interfaces(text)
        ),
        default_links=tuple(links)[:1],
        mtus=dict.fromkeys(links, 1500),
        kinds=dict.fromkeys(links, ""),
    )


def make_host(node: Node) -> HostFacts:
    """A host that bears its node's internal addresses on ``eth0``."""
    return make_facts(eth0=" ".join(map(str, node.internal_ips)))


def render_node(
    name: str,
    nodes: Sequence[Node],
    peers: Sequence[Peer] = (),
    *,
    settings: Settings = DEFAULT_SETTINGS,
    options: RenderOptions | None = None,
    observations: Observations | None = None,
    host: HostFacts | None = None,
) -> DataplaneState:
    """What the kernel of the node called ``name`` should look like."""
    return render(
        build_topology(nodes, peers, settings),
        name=name,
        host=host or make_host(next(node for node in nodes if node.name == name)),
        options=options or RenderOptions(),
        observations=observations or Observations(),
    )


def say(resources: Iterable[object]) -> list[str]:
    """Each as its own line of text, sorted."""
    return sorted(map(str, resources))


def describe_segment(segment: Segment) -> str:
    """A segment in one line: its members, the leader marked, and its addresses."""
    members = (f"{n.name}*" if n is segment.leader else n.name for n in segment.nodes)
    return f"{segment.name} [{' '.join(members)}] {' '.join(map(str, segment.wireguard_ips))}"


def describe_refusals(topology: Topology) -> list[str]:
    """The refusals in the order in which they were made."""
    return list(map(str, topology.refusals))
