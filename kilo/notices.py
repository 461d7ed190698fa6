"""What an operator should hear of: logged when it begins, not on every pass while it lasts."""

from __future__ import annotations

from collections.abc import Iterable

from kilo.log import get_logger


class Notices:
    """Remembers, by kind, what has been said."""

    def __init__(self, component: str) -> None:
        self._log = get_logger(component)
        self._told: dict[str, frozenset[str]] = {}

    def tell(self, kind: str, lines: Iterable[str]) -> None:
        """These are all the lines of a kind that hold now; log those that did not before."""
        told, now = self._told.get(kind, frozenset()), frozenset(lines)
        for line in sorted(now - told):
            self._log.warning(kind, detail=line)
        self._told[kind] = now
