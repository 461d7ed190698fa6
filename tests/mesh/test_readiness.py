"""Who takes part (spec section 3), judged without comparing anybody's clocks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kilo.mesh.model import Endpoint, Node, NodeSpec, Snapshot
from kilo.mesh.readiness import (
    READY_SECONDS,
    Heartbeat,
    find_next_expiry,
    find_ready_nodes,
    note_heartbeats,
)
from tests.builders import make_key
from tests.mesh.fleets import make_node

NOW, WALL = 5000.0, 1_700_000_000.0
STAMP = int(WALL)
REPORTED = make_node("n", internal="192.168.1.1/24")
DECLARED = Node(
    name="n", spec=NodeSpec(public_key=make_key("n"), endpoint=Endpoint(host="203.0.113.1", port=1))
)


@pytest.mark.parametrize(
    ("stamp", "age"),
    [
        pytest.param(STAMP, 0.0, id="a stamp of now"),
        pytest.param(STAMP - 59, 59.0, id="one a little old"),
        pytest.param(STAMP - 3600, 3600.0, id="one already old counts as old"),
        pytest.param(STAMP + 3600, 0.0, id="one from the future, of a clock that is ahead"),
    ],
)
def test_at_first_sight_a_stamp_is_as_old_as_it_says(stamp: int, age: float) -> None:
    beats = note_heartbeats({}, {"n": stamp}, now=NOW, wall=WALL)
    assert beats == {"n": Heartbeat(stamp=stamp, seen_at=NOW - age)}


@pytest.mark.parametrize(
    ("stamp", "seen_at"),
    [
        pytest.param(STAMP, NOW - 30, id="the same stamp says nothing"),
        pytest.param(STAMP + 30, NOW, id="a newer one is a sign of life"),
        pytest.param(STAMP - 9000, NOW, id="and so is an older one, of a clock put back"),
    ],
)
def test_from_then_on_only_a_change_counts(stamp: int, seen_at: float) -> None:
    known = {"n": Heartbeat(stamp=STAMP, seen_at=NOW - 30)}
    beats = note_heartbeats(known, {"n": stamp}, now=NOW, wall=WALL)
    assert beats == {"n": Heartbeat(stamp=stamp, seen_at=seen_at)}


def test_a_clock_an_hour_behind_becomes_live_with_its_second_stamp() -> None:
    node = Snapshot(nodes=(REPORTED,))
    first = note_heartbeats({}, {"n": STAMP - 3600}, now=NOW, wall=WALL)
    assert find_ready_nodes(node, first, now=NOW, local="me") == ()
    second = note_heartbeats(first, {"n": STAMP - 3570}, now=NOW + 30, wall=WALL + 30)
    assert find_ready_nodes(node, second, now=NOW + 30, local="me") == (REPORTED,)


def test_the_local_wall_clock_counts_at_first_sight_only() -> None:
    known = {"n": Heartbeat(stamp=STAMP, seen_at=NOW - 1)}
    assert note_heartbeats(known, {"n": STAMP}, now=NOW, wall=WALL + 9e6) == known


def test_a_node_that_vanished_is_forgotten() -> None:
    known = {"n": Heartbeat(stamp=STAMP, seen_at=NOW)}
    assert note_heartbeats(known, {}, now=NOW, wall=WALL) == {}


@pytest.mark.parametrize(
    ("node", "silent", "ready"),
    [
        pytest.param(REPORTED, 0.0, True, id="heard of just now"),
        pytest.param(REPORTED, 59.9, True, id="heard of within 60 s"),
        pytest.param(REPORTED, 60.0, False, id="silent for 60 s"),
        pytest.param(REPORTED, None, False, id="reported, but never stamped"),
        pytest.param(replace(REPORTED, report=None), 0.0, False, id="no key"),
        pytest.param(make_node("n", endpoint=""), 0.0, False, id="no endpoint"),
        pytest.param(make_node("n"), 0.0, True, id="no internal IP is needed"),
        pytest.param(DECLARED, None, True, id="a declared key needs no heartbeat"),
        pytest.param(
            replace(DECLARED, spec=replace(DECLARED.spec, endpoint=None)),
            None,
            False,
            id="a declared key without endpoint",
        ),
        pytest.param(
            replace(REPORTED, spec=DECLARED.spec),
            None,
            False,
            id="a declared key with a report but no stamp",
        ),
        pytest.param(
            replace(REPORTED, spec=DECLARED.spec),
            99.0,
            False,
            id="a declared key whose agent once reported and fell silent",
        ),
    ],
)
def test_a_node_takes_part(node: Node, silent: float | None, ready: bool) -> None:  # noqa: FBT001 - a column of the table
    beats = {} if silent is None else {"n": Heartbeat(stamp=STAMP, seen_at=NOW - silent)}
    found = find_ready_nodes(Snapshot(nodes=(node,)), beats, now=NOW, local="me")
    assert found == ((node,) if ready else ())


def test_the_local_node_needs_no_heartbeat_but_a_key_and_an_endpoint() -> None:
    lost = make_node("lost", endpoint="")
    snapshot = Snapshot(nodes=(lost, REPORTED))
    assert find_ready_nodes(snapshot, {}, now=NOW, local="n") == (REPORTED,)
    assert find_ready_nodes(snapshot, {}, now=NOW, local="lost") == ()


def test_the_next_expiry_is_the_first_still_to_come() -> None:
    beats = {
        "gone": Heartbeat(stamp=0, seen_at=NOW - 61),
        "soon": Heartbeat(stamp=0, seen_at=NOW - 50),
        "later": Heartbeat(stamp=0, seen_at=NOW - 10),
    }
    assert find_next_expiry(beats, now=NOW) == NOW - 50 + READY_SECONDS
    assert find_next_expiry({"gone": beats["gone"]}, now=NOW) is None
    assert find_next_expiry({}, now=NOW) is None


@pytest.mark.parametrize("seen_at", [0.1, 1 / 3, 12345.678901, 1e9 + 0.1])
def test_at_its_expiry_a_node_is_out_whatever_floating_point_does(seen_at: float) -> None:
    beats = {"n": Heartbeat(stamp=0, seen_at=seen_at)}
    expiry = find_next_expiry(beats, now=seen_at)
    assert expiry is not None
    assert find_ready_nodes(Snapshot(nodes=(REPORTED,)), beats, now=expiry, local="me") == ()


def test_beside_kilos_own_agents_a_node_without_pod_subnet_takes_no_part() -> None:
    """They leave it out, and would number the segments otherwise than we do."""
    ours, bare = make_node("a", pods="10.2.1.0/24"), make_node("b")
    kilos = make_node("c", pods="10.2.3.0/24")
    assert kilos.report is not None
    kilos = replace(kilos, report=replace(kilos.report, agent=""))
    beats = {name: Heartbeat(stamp=STAMP, seen_at=NOW) for name in "abc"}
    together = Snapshot(nodes=(ours, bare, kilos))
    assert find_ready_nodes(together, beats, now=NOW, local="b") == (ours, kilos)
    alone = Snapshot(nodes=(ours, bare))
    assert find_ready_nodes(alone, beats, now=NOW, local="a") == (ours, bare)
