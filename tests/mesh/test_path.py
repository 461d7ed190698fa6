"""The way of a packet: followed from hop to hop, or stopped with the reason."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings

from kilo.errors import MeshError
from kilo.mesh.foretell import Hosts, render_guessed
from kilo.mesh.model import (
    Encapsulation,
    Endpoint,
    Granularity,
    Node,
    PartialSettings,
    Peer,
    Settings,
    Snapshot,
)
from kilo.mesh.path import Tracer, Way
from kilo.mesh.places import Place, find_owner, find_places, name_device
from kilo.mesh.state import DataplaneState, WireGuardPeer
from kilo.mesh.survey import Flags, Survey, make_survey
from tests.builders import make_key, networks
from tests.mesh.fleets import make_node, make_peer
from tests.mesh.random_fleets import Fleet, fleets

NOW = 1_000_000
A1 = make_node(
    "a1",
    location="east",
    endpoint="198.51.100.11:51820",
    internal="192.168.1.11/24",
    pods="10.2.1.0/24",
    location_ips="192.168.9.9/32",
)
A2 = make_node(
    "a2",
    location="east",
    endpoint="192.168.1.12:51820",
    internal="192.168.1.12/24",
    pods="10.2.2.0/24",
)
B1 = make_node(
    "b1",
    location="west",
    endpoint="198.51.100.21:51820",
    internal="192.168.2.11/24",
    pods="10.2.3.0/24",
)
B2 = make_node(
    "b2",
    location="west",
    endpoint="192.168.2.12:51820",
    internal="192.168.2.12/24",
    pods="10.2.4.0/24",
)
PHONE = make_peer("phone", "10.5.0.1/32")
FLEET = (A1, A2, B1, B2)


def survey(
    *nodes: Node, peers: tuple[Peer, ...] = (PHONE,), settings: PartialSettings | None = None
) -> Survey:
    snapshot = Snapshot(
        nodes=nodes,
        peers=peers,
        settings=settings or PartialSettings(),
        last_seen={node.name: NOW for node in nodes},
    )
    untold = Flags(settings=PartialSettings(), defaults=Settings())
    return make_survey(snapshot, untold, wall=NOW)


def trace(mesh: Survey, source: str, to: str, **kernels: DataplaneState) -> Way:
    """The way, where those kernels were read."""
    tracer = Tracer(mesh, Hosts(), kernels=kernels)
    return tracer.trace(*find_places(mesh.topology, source, to))


def read_kernel(mesh: Survey, name: str) -> DataplaneState:
    """As the node's agent makes it."""
    return render_guessed(mesh, name, Hosts())


def list_stations(way: Way) -> list[str]:
    return [hop.at.split()[1] for hop in way.hops]


def test_between_two_who_lead_nothing_it_goes_through_both_leaders() -> None:
    way = trace(survey(*FLEET), "a2", "b2")
    route = "route 192.168.2.12/32 via 10.4.0.2 dev kilo0 src 192.168.1.11 onlink"
    assert [f"{hop.at}: {hop.line}" for hop in way.hops] == [
        "node a2: route 192.168.2.12/32 via 192.168.1.11 dev lan onlink",
        f"node a1: {route}; tunnel to node b1, endpoint 198.51.100.21:51820",
        "node b1: its own network",
        "node b2: has it",
    ]
    assert (way.stop, way.source) == ("", ip_address("192.168.1.12"))


@pytest.mark.parametrize(
    ("source", "to", "stations"),
    [
        ("10.2.2.7", "10.2.4.9", ["a2", "a1", "b1", "b2"]),
        ("a1", "10.2.2.5", ["a1", "a2"]),
        ("a2", "a1", ["a2", "a1"]),
        ("b2", "192.168.9.9", ["b2", "b1", "a1"]),
        ("b2", "phone", ["b2", "b1", "phone"]),
        ("phone", "10.2.4.9", ["phone", "b1", "b2"]),
        ("phone", "192.168.9.9", ["phone", "a1"]),
        ("a2", "10.4.0.2", ["a2", "a1", "b1"]),
        ("a1", "a1", ["a1"]),
    ],
)
def test_it_goes_by_the_shortest_way_there_is(source: str, to: str, stations: list[str]) -> None:
    way = trace(survey(*FLEET), source, to)
    assert (list_stations(way), way.stop) == (stations, "")


def test_what_a_leader_itself_sends_to_a_peer_bears_its_wireguard_address() -> None:
    assert trace(survey(*FLEET), "b1", "phone").source == ip_address("10.4.0.2")
    assert trace(survey(*FLEET), "b1", "a1").source == ip_address("192.168.2.11")


def test_with_cross_it_goes_straight() -> None:
    cross = PartialSettings(granularity=Granularity.CROSS)
    assert list_stations(trace(survey(*FLEET, settings=cross), "a2", "b2")) == ["a2", "b2"]


def test_pods_packets_to_a_neighbour_go_by_the_rule_into_the_tunnel() -> None:
    always = PartialSettings(encapsulation=Encapsulation.ALWAYS)
    mesh = survey(*FLEET, settings=always)
    way = trace(mesh, "10.2.2.7", "a1")
    assert way.hops[0].line == "route 192.168.1.11/32 via 192.168.1.11 dev tunl0 onlink table 1107"
    assert way.stop == ""
    assert trace(mesh, "a2", "192.168.1.11").hops[0].line == "its own network"


def test_a_claim_that_was_refused_is_the_reason_where_there_is_no_way() -> None:
    """The second of two nodes with one pod subnet does not get its packets."""
    twin = make_node("c", location="yonder", internal="192.168.3.11/24", pods="10.2.3.0/24")
    mesh = survey(*FLEET, twin)
    assert list_stations(trace(mesh, "a1", "10.2.3.7"))[-1] == "b1"
    eager = replace(PHONE, allowed_ips=make_peer("x", "10.2.3.0/25 10.5.0.1/32").allowed_ips)
    assert list_stations(trace(survey(*FLEET, peers=(eager,)), "a1", "10.2.3.7"))[-1] == "b1"


def test_a_source_that_is_not_the_senders_is_dropped_at_the_tunnels_end() -> None:
    """The second of two hosts with one private address, asking by it."""
    twin = make_node("c", location="yonder", internal="192.168.1.11/24", pods="10.2.9.0/24")
    mesh = survey(*FLEET, twin)
    sender = next(node for node in mesh.topology.nodes if node.name == "c")
    start = Place(device=sender, address=ip_address("192.168.1.11"), is_host=False)
    _, end = find_places(mesh.topology, "b1", "b1")
    way = Tracer(mesh, Hosts()).trace(start, end)
    assert way.stop == "node b1 drops it: 192.168.1.11 is no allowed IP of node c there"


def test_an_end_without_endpoint_and_without_keepalive_is_in_doubt() -> None:
    way = trace(survey(*FLEET), "b1", "phone")
    assert way.hops[0].doubt == (
        "peer phone has no endpoint: it must call first, and keep the tunnel open"
        " (persistentKeepalive) behind NAT"
    )
    patient = replace(PHONE, persistent_keepalive_seconds=25)
    doubt = trace(survey(*FLEET, peers=(patient,)), "b1", "phone").hops[0].doubt
    assert doubt == "peer phone has no endpoint: it must call first"


def test_a_peer_calls_a_node_behind_nat_where_others_have_seen_it() -> None:
    hidden = replace(B1, spec=replace(B1.spec, persistent_keepalive_seconds=25))
    seen = Endpoint.parse("203.0.113.50:1")
    witness = make_node("w", location="w", seen=[(make_key("b1"), seen)])
    way = trace(survey(A1, A2, hidden, B2, witness), "phone", "b2")
    assert way.hops[0].line == "tunnel to node b1, endpoint 203.0.113.50:1"


def test_a_name_that_does_not_resolve_is_in_doubt() -> None:
    named = replace(PHONE, endpoint=Endpoint(host="home.example.com", port=7))
    doubt = trace(survey(*FLEET, peers=(named,)), "b1", "phone").hops[0].doubt
    assert doubt == "peer phone's endpoint home.example.com:7 has no address here: does it resolve?"


def test_a_private_endpoint_without_keepalive_is_in_doubt() -> None:
    hidden = make_node(
        "b1", location="west", endpoint="192.168.77.1:51820", internal="192.168.2.11/24"
    )
    doubts = [hop.doubt for hop in trace(survey(A1, A2, hidden, B2), "a1", "b1").hops]
    assert doubts[0].startswith("node b1's endpoint 192.168.77.1:51820 is private and it has no")
    kept = replace(hidden, spec=replace(hidden.spec, persistent_keepalive_seconds=25))
    assert not any(hop.doubt for hop in trace(survey(A1, A2, kept, B2), "a1", "b1").hops)


def test_where_the_tunnel_itself_leads_no_packet_goes_into_it() -> None:
    bare = make_node(
        "b1", location="west", endpoint="192.168.2.11:51820", internal="192.168.2.11/24"
    )
    way = trace(survey(A1, A2, bare), "a1", "b1")
    assert [hop.line for hop in way.hops] == [
        "outside the mesh: 192.168.2.11 is where the tunnel to node b1 leads",
        "has it",
    ]


def test_a_kernel_that_is_as_its_agent_makes_it_stops_nothing() -> None:
    mesh = survey(*FLEET)
    kernels = {node.name: read_kernel(mesh, node.name) for node in FLEET}
    for source, to in (("a2", "b2"), ("10.2.2.7", "10.2.4.9"), ("phone", "b2"), ("b2", "phone")):
        assert trace(mesh, source, to, **kernels) == trace(mesh, source, to)


def test_a_route_that_the_kernel_lacks_stops_it() -> None:
    mesh = survey(*FLEET)
    full = read_kernel(mesh, "a1")
    lacking = frozenset(r for r in full.routes if str(r.destination) != "10.2.3.0/24")
    way = trace(mesh, "a2", "10.2.3.7", a1=replace(full, routes=lacking))
    assert list_stations(way) == ["a2"]
    assert way.stop == (
        "node a1: route 10.2.3.0/24 via 10.4.0.2 is missing in its kernel"
        " (it ends at barrier 10.2.3.0/24): does its agent run?"
    )
    open_ended = replace(full, routes=lacking, barriers=frozenset())
    assert "missing in its kernel: does" in trace(mesh, "a2", "10.2.3.7", a1=open_ended).stop


def test_a_tunnel_that_the_device_lacks_stops_it_both_ways() -> None:
    mesh = survey(*FLEET)
    full = read_kernel(mesh, "a1")
    others = frozenset(peer for peer in full.peers if peer.public_key != make_key("b1"))
    kernel = replace(full, peers=others)
    there = trace(mesh, "a2", "10.2.3.7", a1=kernel)
    assert there.stop == "node a1: its device has no tunnel to node b1: does its agent run?"
    back = trace(mesh, "10.2.3.7", "a2", a1=kernel)
    assert back.stop.startswith("node a1 has no tunnel to node b1: it is missing in its device")


@pytest.mark.parametrize(
    ("owner", "named"),
    [("phone", "peer phone"), ("stranger", f"key {make_key('stranger')}, which is nobody's")],
)
def test_an_allowed_ip_that_another_tunnel_has_in_the_device_stops_it(
    owner: str, named: str
) -> None:
    mesh = survey(*FLEET)
    full = read_kernel(mesh, "a1")
    thief = WireGuardPeer(
        link="kilo0", public_key=make_key(owner), allowed_ips=frozenset(networks("10.2.3.0/25"))
    )
    stop = trace(mesh, "a1", "10.2.3.7", a1=replace(full, peers=full.peers | {thief})).stop
    assert stop.startswith(f"node a1: 10.2.3.7 is an allowed IP of {named}")
    assert stop.endswith("in its device, and in the mesh of node b1")


def test_an_allowed_ip_that_is_nobodys_in_the_device_stops_it() -> None:
    mesh = survey(*FLEET)
    full = read_kernel(mesh, "a1")
    bare = frozenset(replace(peer, allowed_ips=frozenset()) for peer in full.peers)
    stop = trace(mesh, "a1", "10.2.3.7", a1=replace(full, peers=bare)).stop
    assert stop.startswith("node a1: 10.2.3.7 is no allowed IP of node b1 in its device")


def test_where_there_is_no_way_the_barrier_that_ends_it_is_named() -> None:
    silent = replace(make_node("c", location="c", pods="10.2.5.0/24"), report=None)
    mesh = survey(*FLEET, silent)
    start, _ = find_places(mesh.topology, "a1", "b1")
    end = Place(device=B1, address=ip_address("10.2.5.7"), is_host=False)
    stop = Tracer(mesh, Hosts()).trace(start, end).stop
    assert stop == "node a1 has no route to 10.2.5.7 (it ends at barrier 10.2.5.0/24)"


def test_who_is_nobody_is_told_so() -> None:
    mesh = survey(*FLEET)
    for text in ("nobody", "203.0.113.77", "peer/a1", "node/phone"):
        with pytest.raises(MeshError, match=f"{text}: is no node and no peer"):
            find_places(mesh.topology, "a1", text)
    with pytest.raises(MeshError, match="no addresses of one family"):
        find_places(survey(A1, peers=(make_peer("six", "fd00:5::1/128"),)).topology, "a1", "six")


def test_a_node_and_a_peer_of_one_name_are_told_apart() -> None:
    mesh = survey(*FLEET, peers=(replace(PHONE, name="b1"),))
    assert list_stations(trace(mesh, "a1", "peer/b1")) == ["a1", "b1"]
    assert trace(mesh, "a1", "peer/b1").hops[-1].at == "peer b1"
    assert trace(mesh, "a1", "node/b1").hops[-1].at == "node b1"


@given(fleets())
@settings(deadline=None, max_examples=40)
def test_every_way_ends_at_the_owner_or_with_a_reason(fleet: Fleet) -> None:
    snapshot = Snapshot(
        nodes=tuple(sorted(fleet.nodes, key=lambda node: node.name)),
        peers=fleet.peers,
        last_seen={node.name: NOW for node in fleet.nodes},
    )
    flags = Flags(settings=PartialSettings(), defaults=fleet.settings)
    mesh = make_survey(snapshot, flags, wall=NOW, evident=PartialSettings())
    tracer = Tracer(mesh, Hosts(options=fleet.options))
    topology = mesh.topology
    internal = [one.ip for node in topology.nodes for one in node.internal_ips]
    behind = [net for segment in topology.segments for net in segment.allowed_location_ips]
    # Two hosts of one address, and a location that holds others' hosts, are for nobody to tell.
    addresses = [
        address
        for address in internal
        if internal.count(address) == 1 and not any(address in network for network in behind)
    ]
    addresses += [net[net.num_addresses // 2] for p in topology.peers for net in p.allowed_ips]
    for source in addresses:
        for to in addresses:
            start, end = find_owner(topology, source), find_owner(topology, to)
            if source.version != to.version or start is None or end is None:
                continue
            way = tracer.trace(
                Place(device=start, address=source, is_host=False),
                Place(device=end, address=to, is_host=False),
            )
            assert way.stop or way.hops[-1].to == ""
            assert way.stop or way.hops[-1].at == name_device(end), (source, to)
