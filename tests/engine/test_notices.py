"""What is said, and how often."""

from __future__ import annotations

from structlog.testing import capture_logs

from kilo.notices import MOST_LINES, Notices


def test_a_line_is_said_when_it_begins_to_hold_and_when_it_does_so_again() -> None:
    notices = Notices("tests")
    with capture_logs() as logs:
        for lines in (["a"], ["a", "b"], ["b"], ["a", "b"]):
            notices.tell("refused", lines)
    assert [log["detail"] for log in logs] == ["a", "b", "a"]


def test_of_a_flood_some_lines_are_said_once_and_the_rest_counted() -> None:
    notices = Notices("tests")
    flood = [f"{number:06}" for number in range(60_000)]
    with capture_logs() as logs:
        notices.tell("refused", flood)
        notices.tell("refused", [*flood, "one more"])
    said = [log["detail"] for log in logs]
    assert said[:MOST_LINES] == flood[:MOST_LINES]
    assert said[MOST_LINES:] == [f"and {60_000 - MOST_LINES} more, not shown here", "one more"]
