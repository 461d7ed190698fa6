"""Actual and desired state -> the ordered steps from one to the other.

What is new comes first, in the order device, firewall, route; what goes comes last and in
reverse, so that a packet never finds a route without the tunnel behind it. Nothing that is
already right appears. ``str(changes)`` is the dry run, the log and the tests' expectation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from kilo.mesh.model import IPAddress
from kilo.mesh.state import (
    FORWARDING,
    Address,
    Barrier,
    DataplaneState,
    Firewall,
    Link,
    Resource,
    Route,
    Rule,
    Sysctl,
    Tunnel,
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
    Barrier,  # before all else, and the last to go: meanwhile no packet finds another way
    Link,
    WireGuardDevice,
    WireGuardPeer,
    Firewall,
    Tunnel,  # after the firewall that lets nobody else's packets in by it
    Sysctl,  # after the firewall too, for packets are forwarded from then on
    Address,
    Route,
    Rule,
)


def diff(actual: DataplaneState, desired: DataplaneState) -> Changes:
    """The steps that make ``actual`` into ``desired``; none where they are equal."""
    gone, new = _leave_out_equals(actual, desired)
    before = {_identify(resource): resource for resource in gone}
    after = {_identify(resource): resource for resource in new}
    changes = [
        Change(old=before.get(identity), new=after.get(identity))
        for identity in before.keys() | after.keys()
    ]
    obstacles = _find_obstacles(changes, desired) if changes else frozenset()
    return Changes(tuple(sorted(changes, key=lambda change: _rank(change, obstacles))))


def _leave_out_equals(
    actual: DataplaneState, desired: DataplaneState
) -> tuple[list[Resource], list[Resource]]:
    """The resources of each that the other does not have as they are.

    By sets, which know the hashes of their members: of ten thousand routes that are as they
    should be each is compared once, and nothing else is computed.
    """
    gone: list[Resource] = []
    new: list[Resource] = []
    for had, wanted in zip(actual.groups(), desired.groups(), strict=True):
        lost, won = _compare(had, wanted)
        gone += lost
        new += won
    return gone, new


def _compare(
    had: AbstractSet[Resource], wanted: AbstractSet[Resource]
) -> tuple[AbstractSet[Resource], AbstractSet[Resource]]:
    """What only the first has, and only the second. The larger one is looked through first: mostly
    all of the other is found in it.
    """
    if len(had) < len(wanted):
        won, lost = _compare(wanted, had)
        return lost, won
    lost = had - wanted
    return lost, wanted - had if len(had) - len(lost) < len(wanted) else frozenset()


def _identify(resource: Resource) -> tuple[object, ...]:
    return (type(resource), *resource.key)


def _find_obstacles(changes: Iterable[Change], desired: DataplaneState) -> frozenset[Resource]:
    """What goes and would be in the way of routes to come.

    Linux takes no route whose gateway is an address of its own: when the segments are numbered
    anew, a gateway may have been ours. And IPv6 takes no gateway on one link while the route to
    it is on another. An address only counts if another one of its family stays: when the last
    one goes the kernel drops the link's routes with it.
    """
    gateways = {route.gateway for route in desired.routes}
    renewed = {(address.link, address.interface.version) for address in desired.addresses}
    return frozenset(
        change.old
        for change in changes
        if change.new is None
        and change.old is not None
        and _is_obstacle(change.old, gateways, renewed)
    )


def _is_obstacle(
    old: Resource, gateways: AbstractSet[IPAddress | None], renewed: AbstractSet[tuple[str, int]]
) -> bool:
    match old:
        case Address():
            return (old.link, old.interface.version) in renewed
        case Route():
            return (
                old.destination.num_addresses == 1 and old.destination.network_address in gateways
            )
        case _:
            return False


def _rank(change: Change, obstacles: AbstractSet[Resource]) -> tuple[int, int, int, str]:
    """Additions in order, then removals in reverse. An address that is in the way goes after the
    new ones, a route before.
    """
    order = ORDER.index(type(change.resource))
    if change.new is None and change.old in obstacles:
        return (0, order, 1 if isinstance(change.old, Address) else -1, str(change))
    if _goes(change):
        return (1, -order, -_place(change), str(change))
    return (0, order, _place(change), str(change))


def _goes(change: Change) -> bool:
    """Whether something is taken away. A link that goes down takes its routes with it."""
    if change.old is None:
        return False
    return change.new is None or (isinstance(change.new, Link) and not change.new.up)


def _place(change: Change) -> int:
    """1 for what comes after others of its kind, and goes before them.

    A peer that loses allowed IPs, after other peers' gains: WireGuard moves an allowed IP between
    peers at once, but one given up first would be nobody's for a moment. And forwarding: when it
    is switched on, what a link has heard from routers goes unless that was prevented before.
    """
    match change:
        case Change(old=WireGuardPeer() as old, new=WireGuardPeer() as new):
            return int(not old.allowed_ips <= new.allowed_ips)
        case Change(resource=Sysctl(name=name)):
            return int(name in FORWARDING.values())
        case _:
            return 0
