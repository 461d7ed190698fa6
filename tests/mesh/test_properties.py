"""What holds for every mesh, tried on random ones."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.mesh.addressing import host_network
from kilo.mesh.diff import diff
from kilo.mesh.graph import draw_graph
from kilo.mesh.model import IPAddress, IPNetwork, Node
from kilo.mesh.state import DataplaneState, WireGuardPeer
from kilo.mesh.topology import Segment, Topology, build_topology
from kilo.mesh.view import find_family
from tests.mesh.kernel_model import find_peer, find_route, list_unreachable, replay, sample
from tests.mesh.random_fleets import Fleet, fleets

LINK = "kilo0"
WHOLE = settings(deadline=None, max_examples=100)


def render_all(fleet: Fleet) -> dict[str, DataplaneState]:
    """The state of every node that takes part."""
    return {node.name: fleet.render(node.name) for node in fleet.topology.nodes}


@given(fleets(), st.randoms(use_true_random=False))
@WHOLE
def test_all_nodes_compute_the_same_mesh_in_whatever_order_they_hear_of_it(
    fleet: Fleet,
    random: st.Random,  # type: ignore[name-defined]  # hypothesis' own, untyped
) -> None:
    nodes, peers = list(fleet.nodes), list(fleet.peers)
    random.shuffle(nodes)
    random.shuffle(peers)
    assert build_topology(nodes, peers, fleet.settings) == fleet.topology


@given(fleets())
@WHOLE
def test_every_segment_has_addresses_of_its_own_and_a_leader_of_its_own(fleet: Fleet) -> None:
    segments = fleet.topology.segments
    for index, subnet in enumerate(fleet.settings.subnets):
        addresses = [segment.wireguard_ips[index] for segment in segments]
        assert [a.ip for a in addresses] == [subnet[i + 1] for i in range(len(segments))]
        assert all(address.network == subnet for address in addresses)
    assert all(segment.leader in segment.nodes for segment in segments)
    assert len({node.name for node in fleet.topology.nodes}) == sum(len(s.nodes) for s in segments)


@given(fleets())
@WHOLE
def test_every_network_has_one_owner_in_the_mesh(fleet: Fleet) -> None:
    topology = fleet.topology
    owned = [n for s in topology.segments for n in (*s.allowed_ips, *s.allowed_location_ips)]
    owned += [network for peer in topology.peers for network in peer.allowed_ips]
    assert len(owned) == len(set(owned))


@given(fleets())
@WHOLE
def test_every_prefix_and_key_has_one_owner_on_an_interface(fleet: Fleet) -> None:
    for state in render_all(fleet).values():
        allowed = [network for peer in state.peers for network in peer.allowed_ips]
        assert len(allowed) == len(set(allowed))
        keys = [peer.public_key for peer in state.peers]
        (device,) = state.devices
        assert len({*keys, device.public_key}) == len(keys) + 1


@given(fleets())
@WHOLE
def test_every_route_into_the_link_has_a_peer_to_go_to(fleet: Fleet) -> None:
    for state in render_all(fleet).values():
        assert list_unreachable(state, LINK) == []
        (link,) = state.links
        assert link.up or all(route.link != LINK for route in state.routes)


@given(fleets())
@WHOLE
def test_no_route_leads_the_endpoint_of_a_tunnel_into_the_tunnel(fleet: Fleet) -> None:
    for state in render_all(fleet).values():
        into = {route.destination for route in state.routes if route.link == LINK}
        for peer in state.peers:
            if peer.endpoint is not None and peer.endpoint.ip is not None:
                assert host_network(peer.endpoint.ip) not in into & peer.allowed_ips


@given(fleets())
@WHOLE
def test_no_route_has_a_gateway_or_source_that_a_kernel_refuses(fleet: Fleet) -> None:
    for name, state in render_all(fleet).items():
        own = {address.interface.ip for address in fleet.make_host(name).addresses}
        for route in state.routes:
            assert route.gateway is None or route.gateway not in own
            assert route.gateway is None or route.gateway.version == route.destination.version
            assert route.source is None or route.source in own
            assert route.source is None or route.source.version == route.destination.version


def find_owner(topology: Topology, address: IPAddress) -> Segment | None:
    """The segment whose network around an address is the narrowest."""
    claims = (
        (n.prefixlen, s.name, s) for s in topology.segments for n in s.allowed_ips if address in n
    )
    return max(claims, default=(0, "", None), key=lambda claim: claim[:2])[2]


def list_own_networks(segment: Segment, node: Node) -> Iterator[IPNetwork]:
    """What a node was granted of what it claims."""
    claims = (*(host_network(i.ip) for i in node.internal_ips), *node.pod_subnets)
    return (network for network in claims if network in segment.allowed_ips)


def list_sources(
    topology: Topology, node: Node, state: DataplaneState, destination: IPAddress
) -> Iterator[IPAddress]:
    """What a packet from a node to a destination may bear as its source: what the node's own
    programs get, and what its workloads have."""
    segment = topology.find_segment(node.name)
    route = find_route(state, destination)
    assert segment is not None
    assert route is not None
    if route.link == LINK:
        own = find_family(segment.wireguard_ips, destination.version)
        chosen = route.source or (own.ip if own else None)
        if chosen:
            yield chosen
    for network in list_own_networks(segment, node):
        address = sample(network)
        if address.version == destination.version and find_owner(topology, address) is segment:
            yield address


def list_remote_addresses(fleet: Fleet, sender: Node) -> Iterator[IPAddress]:
    """An address of every network of every node of another location, but for those that the
    sender's or its leader's own host bears.
    """
    topology = fleet.topology
    home = topology.find_segment(sender.name)
    assert home is not None
    hosts = (fleet.make_host(name) for name in (sender.name, home.leader.name))
    own = {address.interface.ip for host in hosts for address in host.addresses}
    for segment in topology.segments:
        if segment.neighbourhood != home.neighbourhood:
            for node in segment.nodes:
                addresses = map(sample, list_own_networks(segment, node))
                yield from (address for address in addresses if address not in own)


@given(fleets())
@WHOLE
def test_what_goes_into_a_tunnel_is_accepted_at_its_other_end(fleet: Fleet) -> None:
    topology, states = fleet.topology, render_all(fleet)
    leaders = {segment.key: segment for segment in topology.segments}
    for sender in topology.nodes:
        segment = topology.find_segment(sender.name)
        assert segment is not None
        leader = states[segment.leader.name]
        for destination in list_remote_addresses(fleet, sender):
            into = find_route(leader, destination)
            if find_route(states[sender.name], destination) is None or into is None:
                continue
            assert into.link == LINK
            peer = find_peer(leader, destination)
            assert peer is not None
            other = leaders[peer.public_key]
            assert other is find_owner(topology, destination)
            for source in list_sources(topology, sender, states[sender.name], destination):
                back = find_peer(states[other.leader.name], source)
                assert back is not None, f"{sender.name} {source} -> {other.name}"
                assert back.public_key == segment.key


@given(fleets())
@WHOLE
def test_nothing_of_the_own_location_is_routed_into_a_tunnel(fleet: Fleet) -> None:
    topology = fleet.topology
    for name, state in render_all(fleet).items():
        home = topology.find_segment(name)
        assert home is not None
        into = {route.destination for route in state.routes if route.link == LINK}
        for segment in topology.segments:
            if segment.neighbourhood == home.neighbourhood:
                assert into.isdisjoint({*segment.allowed_ips, *segment.allowed_location_ips})


@given(fleets())
@WHOLE
def test_no_node_routes_away_what_it_owns(fleet: Fleet) -> None:
    owners: dict[IPNetwork, str] = {}
    for segment in fleet.topology.segments:
        for node in segment.nodes:
            for network in list_own_networks(segment, node):
                owners.setdefault(network, node.name)
    for name, state in render_all(fleet).items():
        own = {network for network, owner in owners.items() if owner == name}
        assert own.isdisjoint(route.destination for route in state.routes)


@given(fleets())
@WHOLE
def test_every_pair_of_tunnels_is_known_at_both_ends(fleet: Fleet) -> None:
    states = render_all(fleet)
    leaders = {segment.key: segment.leader.name for segment in fleet.topology.segments}
    edges = {
        (name, leaders[peer.public_key])
        for name, state in states.items()
        for peer in state.peers
        if peer.public_key in leaders
    }
    assert edges == {(there, here) for here, there in edges}


@given(fleets())
@WHOLE
def test_rendering_twice_gives_the_same_and_needs_no_change(fleet: Fleet) -> None:
    first, second = fleet.render("a"), fleet.render("a")
    assert first == second
    assert len(diff(first, second)) == 0
    assert draw_graph(fleet.topology) == draw_graph(fleet.topology)


@given(st.none() | fleets(), st.none() | fleets())
@settings(deadline=None, max_examples=200)
def test_applying_the_changes_gives_what_is_desired_and_strands_no_route(
    before: Fleet | None, after: Fleet | None
) -> None:
    old = before.render("a") if before else DataplaneState()
    new = after.render("a") if after else DataplaneState()
    changes = diff(old, new)
    state, stranded = old, list_unreachable(old, LINK)
    for change, state in zip(changes, replay(old, changes), strict=True):
        unreachable = list_unreachable(state, LINK)
        gives_up = isinstance(change.new, WireGuardPeer) and change.old is not None
        assert gives_up or set(unreachable) <= set(stranded), str(change)
        stranded = unreachable
        if any(route.link == LINK for route in state.routes):
            assert any(link.name == LINK and link.up for link in state.links), str(change)
    assert state == new
    assert len(diff(state, new)) == 0


@given(fleets(), fleets())
@WHOLE
def test_what_is_the_same_in_both_is_never_touched(before: Fleet, after: Fleet) -> None:
    old, new = before.render("a"), after.render("a")
    touched = {change.resource for change in diff(old, new)}
    assert touched.isdisjoint(set(old.resources()) & set(new.resources()))
