"""Durations: Go's syntax in, exact seconds out."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.mesh.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("1h", 3600.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("0", 0.0),
        ("+0", 0.0),
        ("-1m", -60.0),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("1ns", 1e-9),
        ("2h45m30.5s", 9930.5),
    ],
)
def test_what_go_reads_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a duration"),
        ("30", "is not a duration"),  # Go wants a unit for anything but 0
        ("s", "is not a duration"),
        (".s", "is not a duration"),
        ("30 s", "is not a duration"),
        ("30S", "is not a duration"),
        ("1d", "is not a duration"),
        ("--1s", "is not a duration"),
        ("1e3s", "is not a duration"),
        ("\u0663s", "is not a duration"),  # digits of other scripts
        ("9999999h", "is longer than"),
        ("9" * 5000 + "s", "is not a duration"),
    ],
)
def test_what_go_refuses_is_refused_without_quoting_it(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_duration(text)
    assert len(str(caught.value)) < 80


@settings(deadline=None)
@given(st.floats(min_value=1e-9, max_value=1e9))
def test_a_written_duration_is_read_back_exactly(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_duration(text), float)
