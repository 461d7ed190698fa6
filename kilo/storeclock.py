"""Time as far as the store can be heard: a clock that stands still while it cannot.

Liveness is judged on it, so that an outage of the store makes nobody look dead. Of several stores
each has its own, so that the outage of one is none of the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class StoreClock:
    """Monotonic seconds, less all the time the store was away."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lost = 0.0
        self._stopped_at: float | None = None

    def now(self) -> float:
        """Seconds; the same for as long as the clock is stopped."""
        at = self._monotonic() if self._stopped_at is None else self._stopped_at
        return at - self._lost

    def lag(self) -> float:
        """Seconds that it is behind: all the time the store was away."""
        # Exactly 0 where it never was: the difference of two readings of a clock would not be.
        stopped = 0.0 if self._stopped_at is None else self._monotonic() - self._stopped_at
        return self._lost + stopped

    @property
    def stopped(self) -> bool:
        """Whether the store is away."""
        return self._stopped_at is not None

    def stop(self) -> None:
        """The store can no longer be heard; may be said twice."""
        if self._stopped_at is None:
            self._stopped_at = self._monotonic()

    def start(self) -> None:
        """The store is heard again; may be said twice."""
        if self._stopped_at is not None:
            self._lost += self._monotonic() - self._stopped_at
            self._stopped_at = None
