"""Random meshes, with all the quarrels about addresses, keys and names that there may be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from hypothesis import strategies as st

from kilo.mesh.host import HostFacts
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Encapsulation, Endpoint, Granularity, Node, Peer, Settings
from kilo.mesh.render import render
from kilo.mesh.state import DataplaneState
from kilo.mesh.topology import Topology, build_topology
from kilo.mesh.view import Observations, RenderOptions
from tests.builders import make_key, make_preshared_key
from tests.mesh.fleets import make_facts, make_host, make_node, make_peer, nets

LOCATIONS = ("", "east", "west")
PODS = nets(
    "10.2.0.0/20 10.2.1.0/24 10.2.2.0/24 10.2.3.0/24 10.2.64.0/24 fd00:2:1::/64 fd00:2:2::/64"
)
LOCATION_IPS = nets(
    "192.168.8.8/32 192.168.8.0/24 192.168.0.0/16 10.2.1.0/28 10.5.0.0/16 fd00:8::/64 0.0.0.0/0"
)
CLAIMS = nets(
    "10.5.0.1/32 10.5.0.2/32 10.5.0.0/24 10.5.0.0/16 10.2.1.0/25 10.2.0.0/16 10.4.0.1/32"
    " 192.168.1.1/32 192.168.0.0/16 10.43.1.0/24 0.0.0.0/0 ::/0 fd00:5::1/128 fd00::/16"
)
SUBNETS = ("10.4.0.0/16", "10.4.0.0/24 fd00:4::/64", "fd00:4::/64")
ENDPOINTS = (
    "198.51.100.{i}:51820",
    "192.168.{place}.{i}:51820",
    "h{i}.example.com:1",
    "[2001:db8::{i}]:9",
)
SEEN = tuple(map(Endpoint.parse, ("203.0.113.1:1", "192.168.1.1:2", "192.168.2.2:3")))


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """A mesh as declared, and what its hosts are like."""

    nodes: tuple[Node, ...]
    peers: tuple[Peer, ...]
    settings: Settings
    options: RenderOptions
    bare: frozenset[str]
    """Nodes whose hosts do not bear the internal addresses they were forced to have."""
    observations: Observations

    @cached_property
    def topology(self) -> Topology:
        return build_topology(self.nodes, self.peers, self.settings)

    def render(self, name: str) -> DataplaneState:
        """What the kernel of a node should look like."""
        return render(
            self.topology,
            name=name,
            host=self.make_host(name),
            options=self.options,
            observations=self.observations,
        )

    def make_host(self, name: str) -> HostFacts:
        if name in self.bare:
            return make_facts(eth0="198.51.100.200/24")
        return make_host(next(node for node in self.nodes if node.name == name))


def _some(pool: tuple[object, ...], most: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pool), max_size=most, unique=True).map(
        lambda chosen: " ".join(map(str, chosen))
    )


def sightings(names: str) -> st.SearchStrategy[dict[PublicKey, Endpoint]]:
    """Where some devices have been seen."""
    return st.dictionaries(
        st.sampled_from([make_key(name) for name in names]), st.sampled_from(SEEN), max_size=3
    )


@st.composite
def nodes(draw: st.DrawFn, name: str) -> Node:
    """A node; small numbers make many of them collide."""
    place = draw(st.integers(0, len(LOCATIONS) - 1))
    i = draw(st.integers(1, 9))
    internal = (f"192.168.{place}.{i}/24", f"fd00:1:{place}::{i}/64")
    key = draw(st.sampled_from((name, name, name, name, "shared")))
    return make_node(
        name,
        location=LOCATIONS[place],
        endpoint=draw(st.sampled_from(ENDPOINTS)).format(i=i, place=place),
        internal=" ".join(draw(st.sampled_from((internal, internal[:1], internal[1:], ())))),
        pods=draw(_some(PODS, 2)),
        leader=draw(st.booleans()),
        keepalive=draw(st.sampled_from((0, 25))),
        location_ips=draw(_some(LOCATION_IPS, 2)),
        key=key,
        seen=draw(sightings("abc")).items(),
    )


@st.composite
def peers(draw: st.DrawFn, name: str) -> Peer:
    """A peer, often with claims it must not have."""
    peer = make_peer(
        name,
        draw(_some(CLAIMS, 3)),
        endpoint=draw(st.sampled_from(("", "203.0.113.77:7", "p.example.com:8"))),
        keepalive=draw(st.sampled_from((0, 10))),
        key=draw(st.sampled_from((name, name, "a", "p"))),
    )
    return replace(peer, preshared_key=draw(st.sampled_from((None, make_preshared_key(name)))))


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """A mesh of one to seven nodes, ``a`` always among them with a key of its own."""
    others = draw(st.lists(st.sampled_from("bcdefg"), max_size=6, unique=True))
    members = [draw(nodes(name)) for name in ("a", *others)]
    first = members[0]
    assert first.report is not None
    members[0] = replace(first, report=replace(first.report, public_key=make_key("a")))
    names = draw(st.lists(st.sampled_from("pqr"), max_size=3, unique=True))
    return Fleet(
        nodes=tuple(draw(st.permutations(members))),
        peers=tuple(draw(peers(name)) for name in names),
        settings=Settings(
            granularity=draw(st.sampled_from(Granularity)),
            encapsulation=draw(st.sampled_from(Encapsulation)),
            subnets=nets(draw(st.sampled_from(SUBNETS))),
            service_cidrs=nets(draw(st.sampled_from(("", "10.43.0.0/16")))),
        ),
        options=RenderOptions(
            local=draw(st.booleans()), cni=draw(st.booleans()), forward_rules=draw(st.booleans())
        ),
        bare=draw(st.frozensets(st.sampled_from("abc"), max_size=1)),
        observations=Observations(
            endpoints=draw(sightings("abcdp")),
            resolved={f"h{i}.example.com": SEEN[0].ip for i in range(1, 5) if SEEN[0].ip},
        ),
    )
