"""Who was heard of when, where one of two stores is away for a while."""

from __future__ import annotations

import time
from types import MappingProxyType

from kilo.mesh.model import Node, Snapshot
from kilo.pulses import Pulses

NOW = int(time.time())


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def make_snapshot(*, away: bool = False, **stamps: int) -> Snapshot:
    """Nodes whose names begin with ``r`` stand in the rack's store, the others in the cluster's."""
    nodes = (Node(name=n, origin="etcd" if n[0] == "r" else "kubernetes") for n in sorted(stamps))
    return Snapshot(
        nodes=tuple(nodes),
        last_seen=MappingProxyType(stamps),
        away={"etcd": "gone"} if away else {},
    )


def find_ages(pulses: Pulses, clock: Clock) -> dict[str, int]:
    """Seconds since each was heard of."""
    return {name: round(clock() - beat.seen_at) for name, beat in pulses.heartbeats.items()}


def make_pulses() -> tuple[Pulses, Clock]:
    clock = Clock()
    return Pulses(clock, local="me"), clock


def test_nobody_in_a_store_that_is_away_grows_older_and_the_others_do() -> None:
    pulses, clock = make_pulses()
    pulses.note(make_snapshot(c1=NOW, r1=NOW))
    clock.seconds += 10
    pulses.lose(["etcd"])
    pulses.note(make_snapshot(away=True, c1=NOW, r1=NOW))
    clock.seconds += 100
    assert find_ages(pulses, clock) == {"c1": 110, "r1": 10}
    pulses.note(make_snapshot(c1=NOW, r1=NOW))
    clock.seconds += 5
    assert find_ages(pulses, clock) == {"c1": 115, "r1": 15}


def test_only_nodes_of_stores_that_are_heard_are_waited_for_to_fall_silent() -> None:
    pulses, _ = make_pulses()
    pulses.note(make_snapshot(c1=NOW, r1=NOW))
    pulses.lose(["etcd"])
    assert pulses.aging.keys() == {"c1"}


def test_the_stamps_of_a_store_just_back_are_judged_by_each_other() -> None:
    """Its nodes could not write; those of the other store could."""
    pulses, clock = make_pulses()
    pulses.lose(["etcd"])
    pulses.note(make_snapshot(c1=NOW, r1=NOW - 600, r2=NOW - 640))
    assert find_ages(pulses, clock) == {"c1": 0, "r1": 0, "r2": 40}


def test_the_stamps_of_a_store_that_was_there_all_the_time_are_judged_by_everybodys() -> None:
    """A node alone in its store, and dead for an hour, is not to rise whenever an agent starts."""
    pulses, clock = make_pulses()
    pulses.note(make_snapshot(c1=NOW, r1=NOW - 3600))
    assert find_ages(pulses, clock) == {"c1": 0, "r1": 3600}


def test_whoever_comes_from_the_disk_counts_as_heard_of_until_its_store_is_back() -> None:
    pulses, clock = make_pulses()
    pulses.lose(["etcd"])
    pulses.trust(make_snapshot(r1=NOW - 600, r2=NOW - 4000))
    for away in (True, True, False):
        clock.seconds += 100
        pulses.note(make_snapshot(away=away, c1=NOW, r1=NOW - 600, r2=NOW - 4000))
    clock.seconds += 7
    assert find_ages(pulses, clock) == {"c1": 207, "r1": 7, "r2": 7}
