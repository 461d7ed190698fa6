"""What agents will do about a change of the mesh that has not been made yet.

Each node's state is rendered from the mesh as it is and from the mesh as it would be, as its own
agent renders it; the difference is what the agent will change. Of hosts that we are not on we
know what they report: their addresses, but neither links' names nor MTUs. So all of a host's
internal addresses are taken to be on one link, called ``lan``, with Ethernet's MTU, and the
kernel's settings are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType

from kilo.errors import MeshError
from kilo.mesh.barriers import list_barriers
from kilo.mesh.collapse import collapse
from kilo.mesh.diff import Changes, diff
from kilo.mesh.difference import Difference
from kilo.mesh.host import HostAddress, HostFacts
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, IPAddress, IPNetwork, Node, Snapshot
from kilo.mesh.plan import Agent, check_others, check_own_node, find_node
from kilo.mesh.render import Rendering
from kilo.mesh.roaming import Observed, settle
from kilo.mesh.state import DataplaneState, WireGuardPeer
from kilo.mesh.survey import Survey
from kilo.mesh.topology import Topology, required_key
from kilo.mesh.view import Observations, RenderOptions

LAN = "lan"
"""The link that bears a host's internal addresses, whatever its name there."""
LAN_MTU = 1500
"""Bytes: Ethernet's."""

Known = dict[tuple[int, tuple[IPNetwork, ...]], frozenset[IPNetwork]]
"""What firewalls know of a whole mesh, by the ``id`` of that and what is left out of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """What all agents were told by their flags, and can be found out for them."""

    options: RenderOptions = field(default_factory=RenderOptions)
    resolved: Mapping[str, IPAddress] = field(default_factory=lambda: MappingProxyType({}))
    """DNS name -> address; no entry for what does not resolve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """What one node's agent will do."""

    node: str
    changes: Changes = field(default_factory=Changes)
    cut: tuple[str, ...] = ()
    """Whose sessions with the node end, ``node berlin`` or ``peer squat``; sorted."""
    note: str = ""
    """Why the agent will do nothing, though the mesh may change."""


def foretell(
    before: Survey, after: Survey, hosts: Hosts, *, only: Iterable[str] = ()
) -> Iterator[Foretold]:
    """What becomes of every node of either mesh, or of those that are named, sorted by name.

    It takes as long as the change is large; at most, where all change, a pass of each agent.
    ``MeshError`` for a name that is in neither mesh.
    """
    names = {node.name for survey in (before, after) for node in survey.snapshot.nodes}
    wanted = frozenset(only)
    for name in sorted(wanted - names):
        raise MeshError(f"node {name}: there is no such node, neither in the store nor to come")
    owners = name_keys(after.snapshot) | name_keys(before.snapshot)
    difference = Difference.find(before, after)
    known: Known = {}
    for name in sorted(wanted or names):
        yield foretell_node(name, difference, hosts, owners, known)


def name_keys(snapshot: Snapshot) -> dict[PublicKey, str]:
    """Whose key it is, ``node berlin`` or ``peer squat``; of two with one key, the node's."""
    peers = {peer.public_key: f"peer {peer.name}" for peer in snapshot.peers}
    nodes = {n.public_key: f"node {n.name}" for n in snapshot.nodes if n.public_key is not None}
    return peers | nodes


def foretell_node(
    name: str,
    difference: Difference,
    hosts: Hosts,
    owners: Mapping[PublicKey, str],
    known: Known,
) -> Foretold:
    """What becomes of one node; ``owners`` are the names of the keys' owners, and ``known`` is
    added to for the other nodes of the same difference.
    """
    pair, whole = difference.narrow(name), difference.whole
    try:
        desired = render_guessed(pair.after, name, hosts)
    except MeshError as error:
        return Foretold(node=name, note=str(error))
    try:
        actual = render_guessed(pair.before, name, hosts)
    except MeshError:
        actual = DataplaneState()
    if pair is not whole and difference.moves_networks:
        before, after = (_prepare(one, name, hosts) for one in (pair.before, pair.after))
        actual = _complete(actual, before, whole.before.topology, known)
        desired = _complete(desired, after, whole.after.topology, known)
    changes = diff(actual, _settle(actual, desired))
    cut = {
        owners[change.old.public_key]
        for change in changes
        if isinstance(change.old, WireGuardPeer) and change.new is None
    }
    return Foretold(node=name, changes=changes, cut=tuple(sorted(cut)))


def _complete(
    state: DataplaneState, narrowed: Rendering, whole: Topology, known: Known
) -> DataplaneState:
    """With the firewall of the whole mesh, whose sets hold what was left out as well."""
    parts = {part.name: getattr(narrowed, part.name) for part in fields(narrowed)}
    rendering = _Sharing(**{**parts, "topology": whole}, known=known)
    return replace(state, firewall=rendering.render_firewall())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sharing(Rendering):
    """One node's state, of which what others' have as well is worked out once."""

    known: Known

    def list_known(self) -> Iterator[IPNetwork]:
        """By what is left out of it: the allowed location IPs of the own location."""
        own = tuple(net for segment in self.nearby for net in segment.allowed_location_ips)
        key = id(self.topology), own
        if key not in self.known:
            self.known[key] = collapse(Rendering.list_known(self))
        yield from self.known[key]


def render_guessed(survey: Survey, name: str, hosts: Hosts) -> DataplaneState:
    """What the node's kernel should look like, as far as can be told from afar.

    ``MeshError`` where its agent leaves the network as it is, and why.
    """
    rendering = _prepare(survey, name, hosts)
    barriers = frozenset(list_barriers(rendering, survey.snapshot.nodes))
    return replace(rendering.render(), barriers=barriers)


def _prepare(survey: Survey, name: str, hosts: Hosts) -> Rendering:
    topology = survey.topology
    if topology.find_segment(name) is None:
        raise MeshError(f"takes no part: {survey.absent.get(name, 'it is not in the store')}")
    node = find_node(survey.snapshot, name)
    agent = Agent(
        name=name, public_key=node.report.public_key if node.report else required_key(node)
    )
    check_own_node(replace(survey.snapshot, home=node.origin), agent)
    check_others(tuple(topology.nodes), topology.settings, agent)
    return Rendering.of_node(
        name,
        topology,
        host=guess_host(node),
        options=hosts.options,
        observations=Observations(
            endpoints=dict(node.discovered_endpoints), resolved=hosts.resolved
        ),
    )


def guess_host(node: Node) -> HostFacts:
    """The host as it can be told from what its agent reports."""
    return HostFacts(
        addresses=tuple(HostAddress(link=LAN, interface=one) for one in node.internal_ips),
        default_links=(LAN,),
        mtus={LAN: LAN_MTU},
        kinds={LAN: ""},
    )


def _settle(actual: DataplaneState, desired: DataplaneState) -> DataplaneState:
    """With the endpoints that devices keep because nothing better is known."""
    configured: dict[PublicKey, Endpoint] = {
        peer.public_key: peer.endpoint for peer in actual.peers if peer.endpoint is not None
    }
    peers = settle(desired.peers, actual.peers, observed=Observed(now=0.0), configured=configured)
    return replace(desired, peers=peers)
