"""Whose clock is wrong."""

from __future__ import annotations

from kilo.mesh.survey import blames_here, list_clock_doubts

NOW = 1_000_000
FIVE = ("a", "b", "c", "d", "e")


def test_a_clock_that_is_ahead_is_named() -> None:
    stamps = {"a": NOW + 600, "b": NOW - 5, "c": NOW + 30}
    assert list(list_clock_doubts(stamps, wall=NOW)) == [
        "Node a: its clock is 600s ahead of this one"
    ]


def test_a_clock_that_is_behind_is_named_only_of_who_is_alive() -> None:
    stamps = {"a": NOW - 600, "b": NOW - 600, "c": NOW - 100}
    assert list(list_clock_doubts(stamps, wall=NOW, alive=["a", "c"])) == [
        "Node a: its clock is 600s behind this one"
    ]


def test_where_most_are_ahead_the_own_clock_is_behind() -> None:
    stamps = dict.fromkeys(FIVE, NOW + 600) | {"own": NOW}
    assert list(list_clock_doubts(stamps, wall=NOW, local="own")) == [
        "this host's clock is 600s behind those of 5 nodes"
    ]


def test_where_most_are_behind_the_own_clock_is_ahead() -> None:
    stamps = dict.fromkeys(FIVE, NOW - 600) | {"own": NOW}
    assert list(list_clock_doubts(stamps, wall=NOW, local="own", alive=FIVE)) == [
        "this host's clock is 600s ahead of those of 5 nodes"
    ]


def test_this_clock_is_wrong_where_more_than_two_differ_and_most() -> None:
    assert blames_here(3, 3)
    assert blames_here(3, 5)
    assert not blames_here(2, 2)  # two may both be wrong
    assert not blames_here(3, 6)  # as many are right


def test_ones_own_stamp_is_not_compared_with_ones_own_clock() -> None:
    assert not list(list_clock_doubts({"own": NOW + 600}, wall=NOW, local="own", alive=["own"]))
