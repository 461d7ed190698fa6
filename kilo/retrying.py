"""How long to wait before what failed is tried again: written once for all who try again."""

from __future__ import annotations

FIRST_SECONDS, LONGEST_SECONDS = 1.0, 30.0


def back_off(failures: int) -> float:
    """Seconds to wait after so many failures in a row (1 or more): 1, 2, 4 and so on, up to 30."""
    # The exponent is bounded too: after a thousand failures a float would overflow.
    return min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(failures - 1, 10))
