"""Durations as Go writes them, ``1m30s``: the form of Kilo's flags and of ``Settings``."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

# The units of Go's time.ParseDuration; both code points that look like a micro sign are its own.
UNIT_SECONDS = {
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "\u00b5s": Fraction(1, 10**6),
    "\u03bcs": Fraction(1, 10**6),
    "ms": Fraction(1, 10**3),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
}
LONGEST_SECONDS = 2**63 // 10**9  # Go counts nanoseconds in 64 bits, about 292 years

_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_DURATION = re.compile(rf"[-+]?(?:{_PART.pattern})+")


def parse_duration(text: str) -> float:
    """Seconds from Go's syntax: ``30s``, ``1m30s``, ``500ms``, ``-1.5h``, ``0``.

    ``ValueError`` says what is wrong without quoting the text.
    """
    if text.lstrip("+-") == "0" and len(text) <= 2:
        return 0.0
    if len(text) > 100 or not _DURATION.fullmatch(text):
        raise ValueError("is not a duration such as 30s, 1m30s or 500ms")
    seconds = sum(Fraction(number) * UNIT_SECONDS[unit] for number, unit in _PART.findall(text))
    if seconds > LONGEST_SECONDS:
        raise ValueError("is longer than a duration can be (292 years)")
    return float(-seconds if text.startswith("-") else seconds)


def format_duration(seconds: float) -> str:
    """The text, in seconds, that ``parse_duration`` reads as exactly that number."""
    digits = f"{Decimal(repr(float(seconds))):f}"
    return f"{digits.removesuffix('.0')}s"


def format_rounded(seconds: float) -> str:
    """The text in whole seconds, for people."""
    return format_duration(round(seconds))
