"""The Dataplane contract: the part of the kernel's network state that is ours."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Protocol

from kilo.mesh.diff import Change, Changes
from kilo.mesh.host import HostFacts
from kilo.mesh.keys import PublicKey
from kilo.mesh.state import DataplaneState, PeerStats


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
        exists``). An addition adopts an identical object of a foreign owner; anything else in
        the way is a failure, never replaced. A peer's change touches only the fields that differ,
        and a step that is already carried out is no failure: two programs may race.
        """
        ...

    def drift(self) -> AsyncIterator[None]:
        """Yields, promptly but at most a few times a second, when something of ours may have been
        touched, or the host's links or addresses have changed. Ends only when closed.
        """
        ...

    async def close(self) -> None:
        """Release sockets; changes nothing in the kernel. May be called twice."""
        ...


def find_refused(changes: Changes, errors: Iterable[BaseException]) -> frozenset[Change]:
    """The steps that ``apply`` failed with these errors, whose texts begin with them."""
    # Not cut at the first ": ": a step may hold one itself (``via fd00:: dev eth0``).
    openings = {text[: at.start()] for text in map(str, errors) for at in re.finditer(": ", text)}
    return frozenset(change for change in changes if str(change) in openings)
