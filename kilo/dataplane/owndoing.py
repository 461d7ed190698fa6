"""What our own changes come back as among the kernel's notifications, so that they wake nobody.

Told by what a message says, never by who seems to have sent it: numbers of senders are used again.
A route that is as we know it to be is no news, whoever says so; one that is not is news.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from kilo.mesh.diff import Change
from kilo.mesh.state import Barrier, Route


class OwnDoing:
    """What we know to be there of ours, and what we are about to do to it."""

    def __init__(self) -> None:
        self._there: AbstractSet[object] | None = None
        self._transactions = 0

    def forget(self) -> None:
        """It is being read, or a change has failed: until it is known again everything is news."""
        self._there = None

    def know(self, there: AbstractSet[Route | Barrier]) -> None:
        """All routes and barriers of ours, as they were just read."""
        self._there = there

    def intend(self, steps: Iterable[Change]) -> None:
        """They are carried out from now on."""
        if self._there is not None:
            ours = [s for s in steps if isinstance(s.resource, Route | Barrier)]
            gone = {step.old for step in ours}
            self._there = (self._there - gone) | {step.new for step in ours if step.new}

    def is_news(self, route: Route | Barrier | None, *, gone: bool) -> bool:
        """Whether it is not as we know it to be; None: what no route of ours can be."""
        return self._there is None or route is None or (route in self._there) == gone

    def expect_transaction(self) -> None:
        """The next one of nftables' that is about us is ours."""
        self._transactions = 1

    def expect_none(self) -> None:
        """It has happened, and been heard of; or it has not."""
        self._transactions = 0

    def take_transaction(self) -> bool:
        """Whether one that has happened is the one that was expected."""
        expected, self._transactions = self._transactions, 0
        return bool(expected)
