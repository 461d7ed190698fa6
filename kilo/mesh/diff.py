"""Actual and desired state -> the ordered steps from one to the other.

What is new comes first, in the order device, firewall, route; what goes comes last and in
reverse, so that a packet never finds a route without the tunnel behind it. Nothing that is
already right appears. ``str(changes)`` is the dry run, the log and the tests' expectation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kilo.mesh.state import Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One step: ``old`` None adds, ``new`` None removes, both replace ``old`` by ``new``."""

    old: Resource | None = None
    new: Resource | None = None

    @property
    def resource(self) -> Resource:
        """What the step is about: the new one, or the one that goes."""
        resource = self.new if self.new is not None else self.old
        assert resource is not None, "a change changes something"
        return resource

    @property
    def verb(self) -> str:
        """``+``, ``-`` or ``~``."""
        if self.old is None:
            return "+"
        return "-" if self.new is None else "~"

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


@dataclass(frozen=True, slots=True)
class Changes:
    """Steps in the order in which they are to be applied; false when there are none."""

    steps: tuple[Change, ...] = ()

    def __iter__(self) -> Iterator[Change]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps))
