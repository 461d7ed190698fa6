"""The Dataplane contract: the part of the kernel's network state that is ours."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from kilo.errors import DataplaneError
from kilo.mesh.diff import Change, Changes
from kilo.mesh.host import HostFacts
from kilo.mesh.keys import PublicKey
from kilo.mesh.state import (
    Address,
    DataplaneState,
    Link,
    PeerStats,
    Resource,
    Route,
    Sysctl,
    WireGuardDevice,
    WireGuardPeer,
)


class ConsequenceError(DataplaneError):
    """A step that failed like another one, which was to make or change the link it is about."""


class Dataplane(Protocol):
    """The host's network, of which only what bears our mark is ever reported or changed.

    Every method raises ``DataplaneError`` when the kernel cannot be read or refuses.
    """

    async def facts(self) -> HostFacts:
        """What the host is like: all links and addresses, ours too. Never waits for a resolver."""
        ...

    async def read(self) -> DataplaneState:
        """What is there now of ours. A route equal to one of ours but made by somebody else is
        not ours until ``apply`` adopts it.
        """
        ...

    async def observe(self) -> Mapping[PublicKey, PeerStats]:
        """Handshakes, live endpoints and byte counts of our device; empty if it does not exist."""
        ...

    async def apply(self, changes: Changes) -> None:
        """Carry out every step, in order; a step that fails stops none after it.

        All failures are raised together at the end, an ``ExceptionGroup`` of ``DataplaneError``s
        whose texts begin with the step (``+ route 10.2.1.0/24 via 10.4.0.2 dev kilo0: File
        exists``), with ``ConsequenceError`` for what was to be on a link that was refused. An
        addition adopts an identical object of a foreign owner; anything else in the way is a
        failure, never replaced. A peer's change touches only the fields that differ, and a step
        that is already carried out is no failure: two programs may race.
        """
        ...

    def drift(self) -> AsyncIterator[None]:
        """Yields, promptly but at most a few times a second, when something of ours may have been
        touched, or the host's links or addresses have changed; what ``apply`` does to routes,
        barriers, peers and the firewall is not told. Ends only when closed.
        """
        ...

    async def close(self) -> None:
        """Release sockets; changes nothing in the kernel. May be called twice."""
        ...


def find_refused(changes: Changes, errors: Iterable[BaseException]) -> frozenset[Change]:
    """The steps that ``apply`` failed with these errors, whose texts begin with them."""
    openings = {opening for error in errors for opening in _list_openings(error)}
    return frozenset(change for change in changes if str(change) in openings)


def _list_openings(error: BaseException) -> Iterator[str]:
    """What may be the step that an error's text begins with."""
    # Not cut at the first ": ": a step may hold one itself (``via fd00:: dev eth0``).
    text = str(error)
    return (text[: at.start()] for at in re.finditer(": ", text))


def group_failures(
    changes: Changes, errors: Sequence[DataplaneError]
) -> ExceptionGroup[DataplaneError]:
    """The failures of ``apply`` as it raises them, consequences told from causes."""
    refused = find_refused(changes, errors)
    missing = {step.new.name for step in refused if isinstance(step.new, Link)}
    idle = {str(step) for step in refused if _find_carrier(step.resource) in missing}
    failures = [
        error if idle.isdisjoint(_list_openings(error)) else _make_consequence(error)
        for error in errors
    ]
    return ExceptionGroup(f"{len(errors)} of {len(changes)} changes failed", failures)


def _find_carrier(resource: Resource) -> str | None:
    """The link that something is on, or is about."""
    match resource:
        case Sysctl(name=name):
            return next(iter(re.findall(r"\.conf\.([^.]*)\.", name)), None)
        case Address() | Route() | WireGuardDevice() | WireGuardPeer():
            return resource.link
        case _:
            return None


def _make_consequence(error: DataplaneError) -> ConsequenceError:
    consequence = ConsequenceError(str(error))
    consequence.__cause__ = error
    return consequence
