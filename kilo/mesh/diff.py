"""Actual and desired state -> the ordered steps from one to the other.

What is new comes first, in the order device, firewall, route; what goes comes last and in
reverse, so that a packet never finds a route without the tunnel behind it. Nothing that is
already right appears. ``str(changes)`` is the dry run, the log and the tests' expectation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kilo.mesh.state import (
    Address,
    DataplaneState,
    Firewall,
    Link,
    Resource,
    Route,
    Rule,
    WireGuardDevice,
    WireGuardPeer,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One step: ``old`` None adds, ``new`` None removes, both replace ``old`` by ``new``."""

    old: Resource | None = None
    new: Resource | None = None

    @property
    def resource(self) -> Resource:
        """What the step is about: the new one, or the one that goes."""
        resource = self.new if self.new is not None else self.old
        if resource is None:
            raise ValueError("a change has an old resource, a new one or both")
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


ORDER: tuple[type, ...] = (
    Link,
    WireGuardDevice,
    WireGuardPeer,
    Address,
    Firewall,
    Route,
    Rule,
)


def diff(actual: DataplaneState, desired: DataplaneState) -> Changes:
    """The steps that make ``actual`` into ``desired``; none where they are equal."""
    before = {_identify(resource): resource for resource in actual.resources()}
    after = {_identify(resource): resource for resource in desired.resources()}
    changes = [
        Change(old=before.get(identity), new=after.get(identity))
        for identity in before.keys() | after.keys()
        if before.get(identity) != after.get(identity)
    ]
    return Changes(tuple(sorted(changes, key=_rank)))


def _identify(resource: Resource) -> tuple[object, ...]:
    return (type(resource), *resource.key)


def _rank(change: Change) -> tuple[int, int, str]:
    """Additions in order, then removals in reverse; a link that goes down goes, as it takes
    its routes with it.
    """
    order = ORDER.index(type(change.resource))
    goes = change.new is None or (isinstance(change.new, Link) and not change.new.up)
    if goes and change.old is not None:
        return (1, -order, str(change))
    return (0, order, str(change))
