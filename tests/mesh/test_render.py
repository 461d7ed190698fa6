"""Spec section 5: device, addresses and peers of leaders and others."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from kilo.errors import MeshError
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Endpoint, Settings
from kilo.mesh.state import DataplaneState
from kilo.mesh.view import Observations, RenderOptions
from tests.builders import make_key, make_preshared_key
from tests.mesh.fleets import make_facts, make_node, make_peer, nets, render_node, say

EAST = [
    make_node("a", location="east", internal="192.168.1.1/24", pods="10.2.1.0/24"),
    make_node("b", location="east", internal="192.168.1.2/24", pods="10.2.2.0/24"),
]
WEST = [
    make_node(
        "c",
        location="west",
        endpoint="203.0.113.3:1234",
        internal="192.168.2.1/24",
        pods="10.2.3.0/24",
        location_ips="192.168.9.9/32",
    ),
    make_node("d", location="west", internal="192.168.2.2/24", pods="10.2.4.0/24"),
]
MESH = [*EAST, *WEST]
PEER = make_peer("p", "10.5.0.1/32 10.5.0.2/32")
DUAL = Settings(subnets=nets("10.4.0.0/16 fd00:4::/64"))


def find_peer(state: DataplaneState, key: PublicKey) -> str:
    """The one peer with this key, as text."""
    (peer,) = (peer for peer in state.peers if peer.public_key == key)
    return str(peer)


def test_a_leaders_link_is_up_and_bears_the_segments_address() -> None:
    state = render_node("c", MESH)
    assert say(state.links) == ["link kilo0 mtu 1420 up"]
    assert say(state.addresses) == ["address 10.4.0.2/16 dev kilo0"]
    assert say(state.devices) == [f"wireguard kilo0 public-key {make_key('c')} listen-port 1234"]


def test_another_nodes_link_is_down_without_address_or_peers() -> None:
    state = render_node("d", MESH, [PEER])
    assert say(state.links) == ["link kilo0 mtu 1420 down"]
    assert (state.addresses, state.peers) == (frozenset(), frozenset())
    assert say(state.devices) == [f"wireguard kilo0 public-key {make_key('d')} listen-port 51820"]


def test_a_leader_bears_an_address_of_every_kilo_subnet() -> None:
    state = render_node("c", MESH, settings=DUAL)
    assert say(state.addresses) == [
        "address 10.4.0.2/16 dev kilo0",
        "address fd00:4::2/64 dev kilo0",
    ]


def test_the_mtu_of_the_settings_wins_over_the_hosts() -> None:
    assert say(render_node("a", MESH, settings=Settings(mtu=1280)).links) == [
        "link kilo0 mtu 1280 up"
    ]


def test_the_interface_is_called_as_the_flag_says() -> None:
    state = render_node("a", MESH, [PEER], options=RenderOptions(interface="wg7"))
    assert {peer.link for peer in state.peers} == {"wg7"}
    assert {address.link for address in state.addresses} == {"wg7"}
    assert {device.link for device in state.devices} == {"wg7"}
    assert {link.name for link in state.links} == {"wg7"}


def test_a_leader_has_one_peer_for_every_other_segment_and_every_peer() -> None:
    squat = make_peer(
        "squat", "10.5.0.9/32", endpoint="203.0.113.99:7", preshared=make_preshared_key("squat")
    )
    assert say(render_node("a", MESH, [PEER, squat]).peers) == sorted(
        [
            (
                f"peer {make_key('c')} dev kilo0 endpoint 203.0.113.3:1234 allowed-ips"
                " 10.2.3.0/24,10.2.4.0/24,10.4.0.2/32,192.168.2.1/32,192.168.2.2/32,192.168.9.9/32"
            ),
            f"peer {make_key('p')} dev kilo0 allowed-ips 10.5.0.1/32,10.5.0.2/32",
            (
                f"peer {make_key('squat')} dev kilo0 endpoint 203.0.113.99:7"
                " allowed-ips 10.5.0.9/32 preshared-key (hidden)"
            ),
        ]
    )


def test_the_local_nodes_keepalive_holds_towards_everybody_and_nobody_elses_does() -> None:
    hidden = make_node("n", location="home", internal="192.168.5.1/24", keepalive=25)
    peer = make_peer("p", "10.5.0.1/32", keepalive=10)
    assert {p.keepalive_seconds for p in render_node("n", [*MESH, hidden], [peer]).peers} == {25}
    assert {p.keepalive_seconds for p in render_node("a", [*MESH, hidden], [peer]).peers} == {0}


OWN, OTHERS = Endpoint.parse("203.0.113.50:1"), Endpoint.parse("203.0.113.60:2")
NAME = Endpoint.parse("home.example.com:51820")


@pytest.mark.parametrize(
    ("endpoint", "keepalive", "observations", "seen", "expected"),
    [
        pytest.param(
            "192.168.5.1:51820", 0, Observations(), [], "192.168.5.1:51820", id="what the node says"
        ),
        pytest.param(
            "192.168.5.1:51820",
            25,
            Observations(endpoints={make_key("n"): OWN}),
            [(make_key("n"), OTHERS)],
            "203.0.113.50:1",
            id="behind NAT: what we have seen ourselves",
        ),
        pytest.param(
            "192.168.5.1:51820",
            25,
            Observations(),
            [(make_key("n"), OTHERS)],
            "203.0.113.60:2",
            id="else what the others have seen",
        ),
        pytest.param(
            "192.168.5.1:51820",
            25,
            Observations(lost_endpoints={make_key("n"): OWN}),
            [(make_key("n"), OTHERS)],
            "203.0.113.60:2",
            id="what the others see comes before where we lost it",
        ),
        pytest.param(
            "192.168.5.1:51820",
            25,
            Observations(lost_endpoints={make_key("n"): OWN}),
            [],
            "203.0.113.50:1",
            id="which comes before what the node says",
        ),
        pytest.param(
            "192.168.5.1:51820",
            25,
            Observations(lost_endpoints={make_key("n"): OWN}),
            [(make_key("n"), OTHERS)],
            "203.0.113.60:2",
            id="which is worth more than where we last saw it",
        ),
        pytest.param(
            "192.168.5.1:51820",
            25,
            Observations(lost_endpoints={make_key("n"): OWN}),
            [],
            "203.0.113.50:1",
            id="else where we last saw it",
        ),
        pytest.param(
            "192.168.5.1:51820",
            25,
            Observations(),
            [],
            "192.168.5.1:51820",
            id="else what the node says",
        ),
        pytest.param(
            "192.168.5.1:51820",
            0,
            Observations(endpoints={make_key("n"): OWN}),
            [(make_key("n"), OTHERS)],
            "192.168.5.1:51820",
            id="without keepalive nothing that was seen counts",
        ),
        pytest.param(
            "home.example.com:51820",
            0,
            Observations(resolved={"home.example.com": ip_address("2001:db8::5")}),
            [],
            "[2001:db8::5]:51820",
            id="a name is resolved",
        ),
        pytest.param(
            "home.example.com:51820",
            0,
            Observations(),
            [],
            None,
            id="a name not resolved yet gives no endpoint, and stops nobody else",
        ),
    ],
)
def test_the_endpoint_of_another_segment_is(
    endpoint: str,
    keepalive: int,
    observations: Observations,
    seen: list[tuple[PublicKey, Endpoint]],
    expected: str | None,
) -> None:
    nodes = [
        make_node("n", location="home", endpoint=endpoint, keepalive=keepalive),
        make_node("a", location="east", internal="192.168.1.1/24"),
        make_node("c", location="west", internal="192.168.2.1/24", seen=seen),
    ]
    state = render_node("a", nodes, observations=observations)
    (peer,) = (peer for peer in state.peers if peer.public_key == make_key("n"))
    assert (str(peer.endpoint) if peer.endpoint else None) == expected


def test_a_peer_behind_nat_is_where_it_was_seen_too() -> None:
    peer = make_peer("p", "10.5.0.1/32", endpoint="203.0.113.1:1", keepalive=10)
    state = render_node(
        "a", MESH, [peer], observations=Observations(endpoints={make_key("p"): OWN})
    )
    assert "endpoint 203.0.113.50:1 " in find_peer(state, make_key("p"))


def test_a_node_that_takes_no_part_gets_an_error_that_says_why() -> None:
    nodes = [make_node("a", key="disk"), make_node("b", key="disk")]
    with pytest.raises(MeshError) as caught:
        render_node("b", nodes)
    assert str(caught.value) == (
        f"Node b: publicKey {make_key('disk')} refused: it is the key of node a"
    )
    with pytest.raises(MeshError, match=r"^node x takes no part in the mesh$"):
        render_node("x", nodes, host=make_facts(eth0="192.168.1.1/24"))
