"""The prober counts what is lost, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import permutations

import pytest

from kilo.errors import LabError
from kilo.lab.lab import Lab
from kilo.lab.probe import count_losses

HOSTS = ["a", "b", "c", "d", "e", "f"]
LAN = "networks: {lan: {subnets: [192.168.1.0/24]}}\nhosts:\n" + "".join(
    f"  {name}: {{agent: false, networks: {{lan: 192.168.1.{11 + number}}}}}\n"
    for number, name in enumerate(HOSTS)
)
ADDRESSES = {name: f"192.168.1.{11 + number}" for number, name in enumerate(HOSTS)}


@pytest.fixture
def lan(make_lab: Callable[[str], Lab]) -> Lab:
    return make_lab(LAN)


def let_pass(seconds: float) -> None:
    """Time is what a probe measures over, so here it passes on purpose."""
    threading.Event().wait(seconds)


def test_nothing_is_lost_between_six_hosts_in_twenty_seconds(lan: Lab) -> None:
    with lan.probe(permutations(HOSTS, 2), addresses=ADDRESSES) as probe:
        let_pass(20)
        losses = probe.stop()
    assert losses.lost == 0, losses
    assert len(losses.pairs) == 30
    assert all(loss.sent > 1000 for loss in losses.pairs.values()), "10 ms apart, slow or not"


def test_a_cut_counts_as_loss_for_the_pair_and_only_for_it(lan: Lab) -> None:
    with lan.probe([("a", "b"), ("b", "a"), ("a", "c")], addresses=ADDRESSES) as probe:
        let_pass(1)
        lan.cut("a", "b")
        let_pass(1)
        lan.heal()
        let_pass(1)
        losses = probe.stop()
    assert losses.pairs["a", "c"].lost == 0
    for pair in (("a", "b"), ("b", "a")):
        loss = losses.pairs[pair]
        assert 50 <= loss.lost <= loss.sent - 100, losses
        assert loss.longest_gap_seconds == pytest.approx((loss.lost + 1) * 0.01)


def test_what_has_no_route_counts_as_lost(lan: Lab) -> None:
    with lan.probe([("a", "b")], addresses={"b": "203.0.113.1"}) as probe:
        let_pass(0.5)
        losses = probe.stop()
    assert losses.lost == losses.sent > 0


def test_a_prober_whose_host_dies_is_an_error_and_no_loss(lan: Lab) -> None:
    with lan.probe([("a", "b")], addresses=ADDRESSES) as probe:
        lan.kill("b")
        with pytest.raises(LabError, match="host b: its prober has ended"):
            probe.stop()


@pytest.mark.parametrize(
    ("seen", "sent", "expected"),
    [
        (b"", 0, (0, 0)),
        (b"", 3, (3, 3)),
        (b"\1\1\1", 3, (0, 0)),
        (b"\1\0\1", 3, (1, 1)),
        (b"\1\0\0\1\0", 5, (3, 2)),
        (b"\1", 4, (3, 3)),
    ],
)
def test_losses_are_what_is_missing_and_its_longest_run(
    seen: bytes, sent: int, expected: tuple[int, int]
) -> None:
    assert count_losses(seen, sent) == expected
