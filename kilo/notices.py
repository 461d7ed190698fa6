"""What an operator should hear of: logged when it begins, not on every pass while it lasts."""

from __future__ import annotations

from collections.abc import Iterable

from kilo.log import get_logger

MOST_LINES = 1000
"""Logged at once: who claims a hundred thousand addresses is not to fill the disk."""


class Notices:
    """Remembers, by kind, what has been said."""

    def __init__(self, component: str) -> None:
        self._log = get_logger(component)
        self._told: dict[str, frozenset[str]] = {}

    def tell(self, kind: str, lines: Iterable[str]) -> None:
        """These are all the lines of a kind that hold now; log those that did not before."""
        told, now = self._told.get(kind, frozenset()), frozenset(lines)
        new = sorted(now - told)
        for line in new[:MOST_LINES]:
            self._log.warning(kind, detail=line)
        if len(new) > MOST_LINES:
            self._log.warning(kind, detail=f"and {len(new) - MOST_LINES} more, not shown here")
        self._told[kind] = now
