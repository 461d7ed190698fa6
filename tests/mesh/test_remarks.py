"""Who has what to say about which object."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from kilo.mesh.conflicts import Refusal
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Node, Peer, Problem, Settings, Snapshot
from kilo.mesh.remarks import (
    HANDSHAKE_SECONDS,
    MOST_REMARKS,
    PeerStanding,
    Reason,
    Remark,
    Remarks,
    build_remarks,
    find_speaker,
)
from kilo.mesh.state import PeerStats
from kilo.mesh.topology import Topology, build_topology
from tests.builders import make_key, make_preshared_key
from tests.mesh.fleets import make_node, make_peer, nets

BAD_KEEPALIVE = Problem(
    source="nodes",
    object="Node b",
    field="metadata.annotations[kilo.squat.ai/persistent-keepalive]",
    value="often",
    reason="is not a whole number; counts as absent",
)
BAD_PEER = Problem(
    source="peers",
    object="Peer broken",
    field="spec.publicKey",
    value="x",
    reason="is not a key; the Peer is left out",
)
STRAY_FILE = Problem(source="notes.txt", object="", reason="is not YAML")

A = make_node("a", location="north", internal="192.168.1.11/24", pods="10.2.1.0/24")
B = make_node("b", location="north", internal="192.168.1.12/24", pods="10.2.2.0/24")
C = make_node("c", location="south", internal="192.168.2.11/24", pods="10.2.3.0/24")
PHONE = make_peer("phone", "10.5.0.1/32")


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """What a pass knows; ``told`` is what its agent told last."""

    nodes: Sequence[Node] = (A, B, C)
    peers: Sequence[Peer] = (PHONE,)
    problems: tuple[Problem, ...] = ()
    handshakes: Mapping[str, float] = field(default_factory=dict)
    told: Mapping[str, int] = field(default_factory=dict)

    def remark(self, local: str) -> Remarks:
        topology = build_topology(self.nodes, self.peers, Settings())
        snapshot = Snapshot(peers=tuple(self.peers), problems=self.problems)
        stats = make_stats(self.handshakes)
        return build_remarks(snapshot, topology, local=local, stats=stats, told=self.told)


def make_stats(handshakes: Mapping[str, float]) -> dict[PublicKey, PeerStats]:
    return {
        make_key(name): PeerStats(
            endpoint=None, latest_handshake=at, received_bytes=0, sent_bytes=0
        )
        for name, at in handshakes.items()
    }


def declare(node: Node) -> Node:
    """The same machine without an agent: an operator wrote down its key."""
    assert node.report is not None
    spec = replace(
        node.spec,
        public_key=node.report.public_key,
        endpoint=node.report.endpoint,
        internal_ips=node.report.internal_ips,
    )
    return Node(name=node.name, spec=spec)


def give_kilos_own_agent(node: Node) -> Node:
    assert node.report is not None
    return replace(node, report=replace(node.report, agent=""))


def say(remarks: Iterable[Remark]) -> list[str]:
    return [f"{one.object}: {one.reason}: {one.message}" for one in remarks]


def test_an_invalid_value_is_a_remark_on_its_object_that_names_field_and_value() -> None:
    assert say(Mesh(problems=(BAD_KEEPALIVE,)).remark("a").remarks) == [
        (
            "Node b: Invalid: metadata.annotations[kilo.squat.ai/persistent-keepalive]: 'often'"
            " is not a whole number; counts as absent"
        )
    ]


def test_an_object_that_is_wrong_as_a_whole_is_remarked_on_without_a_field() -> None:
    problem = Problem(source="x", object="Peer x", reason="is not a mapping; left out")

    (remark,) = Mesh(problems=(problem,)).remark("a").remarks

    assert remark.message == "is not a mapping; left out"


def test_a_problem_of_no_object_is_no_remark() -> None:
    assert Mesh(problems=(STRAY_FILE,)).remark("a").remarks == ()


def test_a_refused_claim_of_a_peer_is_a_remark_on_the_peer() -> None:
    thief = make_peer("thief", "10.2.1.0/25 10.5.0.9/32")

    assert say(Mesh(peers=(thief,)).remark("a").remarks) == [
        (
            "Peer thief: Refused: spec.allowedIPs 10.2.1.0/25 refused:"
            " it lies inside 10.2.1.0/24 of Node a"
        )
    ]


def test_a_conflict_between_nodes_is_a_remark_on_the_node_that_loses() -> None:
    clone = make_node("z", location="east", internal="192.168.9.1/24", key="a")

    assert say(Mesh(nodes=(A, B, C, clone)).remark("a").remarks) == [
        f"Node z: Refused: publicKey {make_key('a')} refused: it is the key of node a"
    ]


def test_what_a_segment_claims_is_a_remark_on_the_nodes_that_were_declared_with_it() -> None:
    printers = nets("10.5.7.0/24")
    north = (A, replace(B, spec=replace(B.spec, allowed_location_ips=printers)))
    south = replace(C, spec=replace(C.spec, allowed_location_ips=printers))

    assert say(Mesh(nodes=(*north, south)).remark("a").remarks) == [
        (
            "Node b: Refused: allowedLocationIPs 10.5.7.0/24 refused:"
            " it overlaps 10.5.7.0/24 of segment location:south"
        )
    ]


def test_of_thousands_of_refusals_some_are_told_and_the_rest_counted() -> None:
    """By each object: the many of one leave room for what others are told."""
    greedy = make_peer("greedy", " ".join(f"10.2.1.{i}/32" for i in range(250)))
    thief = make_peer("thief", "10.2.2.0/25")

    remarks = Mesh(peers=(greedy, thief), problems=(BAD_PEER,)).remark("a").remarks

    assert [one.object for one in remarks].count("Peer greedy") == MOST_REMARKS
    assert sum(one.message == "and 231 more of the kind, not shown here" for one in remarks) == 1
    assert {"Peer broken", "Peer thief"} < {one.object for one in remarks}


def test_a_node_that_declares_thousands_of_addresses_holds_nobody_up() -> None:
    """As many as an annotation may hold, each refused."""
    many = nets(" ".join(f"10.5.{i >> 8}.{i & 255}/32" for i in range(8000)))
    nodes = [replace(one, spec=replace(one.spec, allowed_location_ips=many)) for one in (A, B, C)]
    begin = time.monotonic()

    remarks = Mesh(nodes=nodes, peers=()).remark("a").remarks

    assert time.monotonic() - begin < 20.0  # half a second; by comparing each with each, minutes
    assert len(remarks) == 2 * MOST_REMARKS


def test_a_claim_of_a_segment_that_is_gone_is_nobodys() -> None:
    refusal = Refusal(claimant="Segment x", field="f", value="10.5.0.0/24", reason="so")
    topology = replace(build_topology((A,), (), Settings()), refusals=(refusal,))

    remarks = build_remarks(Snapshot(), topology, local="a", stats={}, told={})

    assert remarks.remarks == ()


def test_remarks_are_sorted_and_the_same_whatever_the_order_of_what_they_come_from() -> None:
    first = Mesh(problems=(BAD_KEEPALIVE, BAD_PEER), nodes=(A, B, C)).remark("a")
    second = Mesh(problems=(BAD_PEER, BAD_KEEPALIVE, BAD_PEER), nodes=(C, B, A)).remark("a")

    assert first == second
    assert [one.object for one in first.remarks] == ["Node b", "Peer broken"]


def test_only_the_leader_of_the_first_segment_speaks() -> None:
    mesh = Mesh(problems=(BAD_KEEPALIVE, BAD_PEER))
    told = {name: mesh.remark(name) for name in "abc"}

    assert told["a"].remarks
    assert told["a"].peers.keys() == {"broken", "phone"}
    assert told["b"] == told["c"] == Remarks()


def test_an_agents_silence_is_the_same_whoever_it_is() -> None:
    assert Mesh().remark("c") == Remarks()
    assert Mesh().remark("c").node == "c"


@pytest.mark.parametrize(
    ("nodes", "speaker"),
    [
        ((A, B, C), "a"),
        ((B, C), "b"),
        ((declare(A), C), "c"),  # the first segment is led by a machine without an agent
        ((declare(replace(A, spec=replace(A.spec, leader=True))), B), "b"),  # so are all
        ((declare(A),), None),
        ((give_kilos_own_agent(A), B, C), "c"),
        ((give_kilos_own_agent(A), B), "b"),
        ((), None),
    ],
)
def test_the_speaker_is_the_first_leader_whose_agent_can_speak(
    nodes: Sequence[Node], speaker: str | None
) -> None:
    assert find_speaker(build_topology(nodes, (), Settings())) == speaker


def test_where_no_agent_takes_part_each_speaks_of_its_own_node_alone() -> None:
    """The only one with an agent was dropped, for it bears the key of another."""
    clone = make_node("z", location="east", internal="192.168.9.1/24", key="a")
    mesh = Mesh(nodes=(declare(A), clone), problems=(BAD_PEER,))

    remarks = mesh.remark("z")

    assert [one.object for one in remarks.remarks] == ["Node z"]
    assert remarks.peers == {}


# What becomes of peers.


def test_a_peer_that_takes_part_is_ready() -> None:
    assert Mesh().remark("a").peers == {"phone": PeerStanding(ready=True)}


def test_a_peer_that_is_left_something_is_ready_and_told_what_was_refused() -> None:
    standing = Mesh(peers=(make_peer("thief", "10.2.1.0/25 10.5.0.9/32"),)).remark("a").peers

    assert standing["thief"].ready
    assert [one.reason for one in standing["thief"].remarks] == [Reason.REFUSED]


def test_a_peer_that_is_refused_everything_is_not_ready() -> None:
    standing = Mesh(peers=(make_peer("thief", "10.2.1.0/25"),)).remark("a").peers

    assert not standing["thief"].ready
    assert [one.reason for one in standing["thief"].remarks] == [Reason.REFUSED]


def test_a_peer_that_cannot_be_read_is_not_ready_and_told_why() -> None:
    standing = Mesh(problems=(BAD_PEER,)).remark("a").peers

    assert not standing["broken"].ready
    assert [one.reason for one in standing["broken"].remarks] == [Reason.INVALID]


def test_a_problem_of_peers_without_a_name_makes_no_standing() -> None:
    nameless = Problem(source="x", object="Peer", field="metadata.name", reason="is missing")

    assert Mesh(problems=(nameless,)).remark("a").peers.keys() == {"phone"}


def test_no_secret_is_in_what_is_said_of_a_peer_that_has_one() -> None:
    secret = make_preshared_key("s")
    thief = make_peer("thief", "10.2.1.0/25", preshared=secret)

    assert secret.reveal() not in repr(Mesh(peers=(thief,)).remark("a"))


# Handshakes.


def test_every_leader_tells_the_handshakes_of_its_own_device() -> None:
    mesh = Mesh(handshakes={"phone": 1_700_000_000.7, "c": 1_700_000_000.0})

    assert mesh.remark("a").handshakes == {"phone": 1_700_000_000}
    assert mesh.remark("c").handshakes == {"phone": 1_700_000_000}


def test_a_node_that_leads_nothing_tells_no_handshakes() -> None:
    assert Mesh(handshakes={"phone": 1_700_000_000.0}).remark("b").handshakes == {}


def test_a_node_that_takes_no_part_tells_no_handshakes() -> None:
    topology = Topology(settings=Settings(), segments=(), peers=(PHONE,), refusals=())
    stats = make_stats({"phone": 1_700_000_000.0})

    remarks = build_remarks(Snapshot(), topology, local="a", stats=stats, told={})

    assert remarks.handshakes == {}


@pytest.mark.parametrize(
    ("latest", "told", "expected"),
    [
        (0, None, {}),  # never
        (1000, None, {"phone": 1000}),  # the first
        (1120, 1000, {"phone": 1000}),  # a rekey, which nobody needs to hear of
        (1000 + HANDSHAKE_SECONDS, 1000, {"phone": 1000 + HANDSHAKE_SECONDS}),
        (1000, 90_000, {"phone": 1000}),  # the clock was wrong when that was told
        (0, 1000, {"phone": 1000}),  # the device was made anew: what was told was true
    ],
)
def test_a_handshake_is_told_when_it_is_the_first_or_much_newer_than_the_one_told(
    latest: int, told: int | None, expected: dict[str, int]
) -> None:
    before = {} if told is None else {"phone": told}
    mesh = Mesh(handshakes={"phone": float(latest)}, told=before)

    assert mesh.remark("a").handshakes == expected
