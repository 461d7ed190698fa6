"""One pass, as a value: from what is known of the mesh and the host to the changes to make.

The whole picture in one place: snapshot and facts -> own report -> who is ready -> topology ->
desired state -> settled with what the device knows better -> changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from kilo.errors import ConfigError, MeshError
from kilo.mesh.barriers import list_barriers
from kilo.mesh.blocking import list_blocked
from kilo.mesh.conflicts import Claimant, find_foreign_node
from kilo.mesh.diff import Changes, diff
from kilo.mesh.host import (
    WIREGUARD_OVERHEAD,
    WIREGUARD_OVERHEAD_IPV4,
    AddressPolicy,
    HostFacts,
    find_endpoint_address,
    find_internal_ips,
    find_underlay,
)
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import (
    Endpoint,
    Granularity,
    IPAddress,
    IPInterface,
    IPNetwork,
    Node,
    NodeReport,
    PartialSettings,
    Peer,
    Settings,
    Snapshot,
)
from kilo.mesh.readiness import Heartbeat, find_ready_nodes
from kilo.mesh.render import Rendering
from kilo.mesh.roaming import (
    Observed,
    distrust_loops,
    find_discovered_endpoints,
    find_live_endpoints,
    find_lost_endpoints,
    settle,
)
from kilo.mesh.state import DataplaneState
from kilo.mesh.sysctls import keep_sysctls, list_unmet
from kilo.mesh.topology import Segment, Topology, build_topology
from kilo.mesh.view import (
    Compatibility,
    Observations,
    RenderOptions,
    View,
    find_cilium_address,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """Who the local agent is and what it was told by its flags."""

    name: str
    public_key: PublicKey
    options: RenderOptions = field(default_factory=RenderOptions)
    policy: AddressPolicy = field(default_factory=AddressPolicy)
    flags: PartialSettings = field(default_factory=PartialSettings)
    defaults: Settings = field(default_factory=Settings)
    """What holds where neither flags nor the store say otherwise."""
    version: str = "kg"
    """Name and version of the program, for others to know what it can do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """All that a pass is computed from, besides the kernel's state."""

    snapshot: Snapshot
    facts: HostFacts
    heartbeats: Mapping[str, Heartbeat] = field(default_factory=lambda: MappingProxyType({}))
    now: float = 0.0
    """Seconds on the clock of the heartbeats."""
    observed: Observed
    resolved: Mapping[str, IPAddress] = field(default_factory=lambda: MappingProxyType({}))
    configured: Mapping[PublicKey, Endpoint] = field(default_factory=lambda: MappingProxyType({}))
    """The endpoints that were desired at the pass before."""
    report: NodeReport | None = None
    """What this agent reported last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodNetwork:
    """What the programs that connect this host's pods are to know."""

    subnets: tuple[IPNetwork, ...]
    mtu: int
    """Bytes: what fits every tunnel that a pod's packet may go through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a pass comes to."""

    report: NodeReport
    settings: Settings
    topology: Topology
    configured: Mapping[PublicKey, Endpoint]
    desired: DataplaneState
    changes: Changes
    pods: PodNetwork | None
    """None where they are somebody else's, or there are none."""
    warnings: tuple[str, ...]
    """What an operator should look at though the pass can go on."""
    basis: Basis


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What the dear parts of a plan were computed from, and what they came to.

    Where all of the one is equal at the next pass, so is the other: most passes look at the kernel
    only to find it as it should be.
    """

    ready: tuple[Node, ...]
    known: tuple[Node, ...]
    peers: tuple[Peer, ...]
    topology: Topology
    rendering: Rendering
    rendered: DataplaneState


def make_plan(
    agent: Agent, knowledge: Knowledge, actual: DataplaneState, *, earlier: Basis | None = None
) -> Plan:
    """Compute a pass; ``MeshError`` if nothing should be changed, ``ConfigError`` if this host
    has no address to take part with. ``earlier``: of the pass before; it changes no result.
    """
    settings = complete_settings(knowledge.snapshot, agent)
    found = find_own_report(agent, knowledge, settings)
    snapshot = join_report(knowledge.snapshot, found)
    check_own_node(snapshot, agent)
    nodes = find_ready_nodes(snapshot, knowledge.heartbeats, now=knowledge.now, local=agent.name)
    check_others(nodes, settings, agent)
    topology = _find_topology(nodes, snapshot.peers, settings, earlier)
    observed = distrust_loops(knowledge.observed, topology.peers)
    live = find_live_endpoints(observed)
    rendering = Rendering.of_node(
        agent.name,
        topology,
        host=knowledge.facts,
        options=agent.options,
        observations=Observations(
            endpoints=live,
            lost_endpoints=find_lost_endpoints(observed),
            resolved=knowledge.resolved,
        ),
    )
    rendered = _find_rendered(rendering, snapshot.nodes, earlier)
    peers = settle(
        rendered.peers,
        actual.peers,
        observed=observed,
        configured=knowledge.configured,
    )
    sysctls = keep_sysctls(rendered.sysctls, actual.sysctls)
    desired = replace(rendered, peers=peers, sysctls=sysctls)
    return Plan(
        report=replace(
            found,
            wireguard_ips=_find_own_wireguard_ips(topology, agent),
            discovered_endpoints=find_discovered_endpoints(live, snapshot.nodes, topology.peers),
            granularity=settings.granularity,
        ),
        settings=settings,
        topology=topology,
        configured={p.public_key: p.endpoint for p in rendered.peers if p.endpoint is not None},
        desired=desired,
        changes=diff(actual, desired),
        pods=_find_pod_network(rendering, desired),
        warnings=(
            *rendering.list_missing(),
            *list_unmet(rendering),
            *list_blocked(rendering),
            *_list_misfits(rendering, rendered),
        ),
        basis=Basis(
            ready=nodes,
            known=snapshot.nodes,
            peers=snapshot.peers,
            topology=topology,
            rendering=rendering,
            rendered=rendered,
        ),
    )


def _find_topology(
    ready: tuple[Node, ...], peers: tuple[Peer, ...], settings: Settings, earlier: Basis | None
) -> Topology:
    if earlier is not None:
        before = earlier.ready, earlier.peers, earlier.topology.settings
        if before == (ready, peers, settings):
            return earlier.topology
    return build_topology(ready, peers, settings)


def _find_rendered(
    rendering: Rendering, known: tuple[Node, ...], earlier: Basis | None
) -> DataplaneState:
    if earlier is not None and (earlier.rendering, earlier.known) == (rendering, known):
        return earlier.rendered
    barriers = frozenset(list_barriers(rendering, known))
    return replace(rendering.render(), barriers=barriers)


def complete_settings(snapshot: Snapshot, agent: Agent) -> Settings:
    """A flag wins over the store's settings, those over the defaults."""
    settings = replace(agent.defaults, **snapshot.settings)
    return replace(settings, **agent.flags)


def find_own_report(agent: Agent, knowledge: Knowledge, settings: Settings) -> NodeReport:
    """What this host shows the mesh; what it showed before, if it has just lost its addresses."""
    declared = find_node(knowledge.snapshot, agent.name).spec.endpoint
    address = find_endpoint_address(knowledge.facts, agent.policy)
    if address is None and declared is None:
        if knowledge.report is None:
            raise ConfigError(
                "this host has no address to take part with: none is private or public"
                " outside loopback, link-local and the mesh's own links"
            )
        return knowledge.report
    return NodeReport(
        name=agent.name,
        public_key=agent.public_key,
        endpoint=Endpoint(host=str(address), port=settings.port) if address else None,
        internal_ips=find_internal_ips(knowledge.facts, agent.policy),
        cni_compatibility_ip=_find_compatibility_ip(knowledge, agent.options),
        agent=agent.version,
    )


def _find_compatibility_ip(knowledge: Knowledge, options: RenderOptions) -> IPInterface | None:
    """Where Cilium finds this host. While its link is away, where it last did: mostly it comes back
    with the same address, and a report that changes is a pass of every node.
    """
    if options.compatibility is not Compatibility.CILIUM:
        return None
    known = knowledge.report.cni_compatibility_ip if knowledge.report else None
    return find_cilium_address(knowledge.facts) or known


def find_node(snapshot: Snapshot, name: str) -> Node:
    """The node of that name, or an undeclared one."""
    undeclared = Node(name=name, origin=snapshot.home)
    return next((node for node in snapshot.nodes if node.name == name), undeclared)


def join_report(snapshot: Snapshot, report: NodeReport) -> Snapshot:
    """The snapshot as if the store already had the local agent's own report."""
    found = find_node(snapshot, report.name)
    if found.origin != snapshot.home:
        return snapshot  # of another store, and so another machine
    node = replace(found, report=report)
    others = (other for other in snapshot.nodes if other.name != report.name)
    nodes = tuple(sorted((*others, node), key=lambda node: node.name))
    return replace(snapshot, nodes=nodes)


def find_endpoint_names(topology: Topology) -> dict[str, str]:
    """DNS name -> the object whose endpoint it is."""
    owners = {f"Node {s.leader.name}": s.leader.endpoint for s in topology.segments}
    owners |= {f"Peer {peer.name}": peer.endpoint for peer in topology.peers}
    return {
        endpoint.host: owner
        for owner, endpoint in owners.items()
        if endpoint is not None and endpoint.ip is None
    }


def check_own_node(snapshot: Snapshot, agent: Agent) -> None:
    """``MeshError`` where the node of the agent's name is not this host."""
    node = find_node(snapshot, agent.name)
    if node.origin != snapshot.home:
        raise MeshError(
            f"Node {agent.name}: is a node of {node.origin} already, which comes before"
            f" {snapshot.home}: this host needs another name (--hostname): the network stays as"
            " it is"
        )
    declared = node.spec.public_key
    if declared is not None and declared != agent.public_key:
        raise MeshError(
            f"Node {agent.name}: spec.publicKey {declared} is not this host's key,"
            f" which is {agent.public_key}: the network stays as it is"
        )


def check_others(nodes: Sequence[Node], settings: Settings, agent: Agent) -> None:
    """``MeshError`` where Kilo's own agents cannot come to the answer that we would."""
    foreign = find_foreign_node(nodes)
    if foreign is None:
        return
    own = next((node for node in nodes if node.name == agent.name), None)
    if own is None:
        raise MeshError(
            f"Node {agent.name}: has no pod subnet, without which Kilo's own agents (Node"
            f" {foreign.name} runs one) leave it out: the network stays as it is"
        )
    if own.origin != foreign.origin:
        raise MeshError(
            f"{Claimant.of(own)}: the agent of {Claimant.of(foreign)} is Kilo's own or too old and"
            " knows of no other store than its own: the network stays as it is"
        )
    if settings.granularity is Granularity.CROSS:
        raise MeshError(
            f"Settings: granularity cross: the agent of Node {foreign.name} is Kilo's own or too"
            " old and does not know it: the network stays as it is"
        )


def _find_own_segment(topology: Topology, agent: Agent) -> Segment | None:
    """The segment that this host leads."""
    segment = topology.find_segment(agent.name)
    return segment if segment is not None and segment.leader.name == agent.name else None


def _find_own_wireguard_ips(topology: Topology, agent: Agent) -> tuple[IPInterface, ...]:
    segment = _find_own_segment(topology, agent)
    return segment.wireguard_ips if segment else ()


def _find_pod_network(view: View, desired: DataplaneState) -> PodNetwork | None:
    if not view.options.cni or not view.node.pod_subnets:
        return None
    mtus = dict(view.host.mtus)
    mtus |= {link.name: link.mtu for link in desired.links}
    mtus |= {tunnel.name: tunnel.mtu for tunnel in desired.tunnels}
    ways = {view.options.interface, *(route.link for route in desired.routes)}
    fitting = min(mtus[link] for link in ways if link in mtus)
    return PodNetwork(subnets=view.node.pod_subnets, mtu=fitting)


def _list_misfits(view: View, rendered: DataplaneState) -> Iterator[str]:
    """An MTU that somebody asked for, where packets of that size do not get through."""
    asked, link = view.topology.settings.mtu, find_underlay(view.host)
    if asked is None or link is None or not view.leads:
        return
    endpoints = [peer.endpoint.ip for peer in rendered.peers if peer.endpoint is not None]
    ipv6 = any(ip.version == 6 for ip in endpoints if ip is not None)
    room = view.host.mtus[link] - (WIREGUARD_OVERHEAD if ipv6 else WIREGUARD_OVERHEAD_IPV4)
    if asked > room:
        yield (
            f"mtu {asked}: packets of this size do not fit through {link}, whose MTU"
            f" {view.host.mtus[link]} leaves {room}"
        )
