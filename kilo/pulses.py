"""When each node was last heard of, by the store that it stands in.

While a store cannot be heard nobody in it grows any older; the others' nodes do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from kilo.mesh.model import Snapshot
from kilo.mesh.readiness import Heartbeat, note_heartbeats, tell_time
from kilo.storeclock import StoreClock


class Pulses:
    """The heartbeats of all nodes, on one clock though each store has its own."""

    def __init__(self, clock: Callable[[], float], *, local: str) -> None:
        """``clock`` gives the seconds that all is shown on; ``local`` is the own node's name."""
        self._clock = clock
        self._local = local
        self._clocks: dict[str, StoreClock] = {}
        """By store; one that is the only one is called ''."""
        self._beats: dict[str, Mapping[str, Heartbeat]] = {}
        """By store, on its clock."""

    @property
    def heartbeats(self) -> Mapping[str, Heartbeat]:
        """By name of node."""
        return self._show(self._beats)

    @property
    def aging(self) -> Mapping[str, Heartbeat]:
        """Those of stores that can be heard."""
        return self._show([origin for origin in self._beats if not self._clocks[origin].stopped])

    def _show(self, origins: Iterable[str]) -> Mapping[str, Heartbeat]:
        shown: dict[str, Heartbeat] = {}
        for origin in origins:
            beats, lag = self._beats[origin], self._clocks[origin].lag()
            shown.update(_shift(beats, lag) if lag else beats)
        return shown

    def lose(self, origins: Iterable[str]) -> None:
        """These stores cannot be heard, until a snapshot comes in which they are not away."""
        for origin in origins:
            self._find_clock(origin).stop()

    def note(self, snapshot: Snapshot) -> None:
        """These are the stamps now; those of stores that are lost are as they were."""
        stamps = _split(snapshot)
        self._beats = {origin: self._note(origin, stamps[origin], snapshot) for origin in stamps}

    def trust(self, snapshot: Snapshot) -> None:
        """These nodes count as heard of now: whether they live cannot be told."""
        for origin, stamps in _split(snapshot).items():
            now = self._find_clock(origin).now()
            self._beats[origin] = {
                name: Heartbeat(stamp=stamp, seen_at=now) for name, stamp in stamps.items()
            }

    def _note(
        self, origin: str, stamps: Mapping[str, int], snapshot: Snapshot
    ) -> Mapping[str, Heartbeat]:
        clock = self._find_clock(origin)
        # Nobody can write into a store that is away: the moment it is back all its stamps are old,
        # and only by each other can they be judged.
        witnesses = stamps if clock.stopped else snapshot.last_seen
        if origin not in snapshot.away:
            clock.start()
        wall = tell_time(witnesses, wall=time.time(), local=self._local)
        return note_heartbeats(self._beats.get(origin, {}), stamps, now=clock.now(), wall=wall)

    def _find_clock(self, origin: str) -> StoreClock:
        return self._clocks.setdefault(origin, StoreClock(self._clock))


def _split(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    """The stamps by store."""
    origins = {node.name: node.origin for node in snapshot.nodes}
    stamps: dict[str, dict[str, int]] = {}
    for name, stamp in snapshot.last_seen.items():
        stamps.setdefault(origins.get(name, ""), {})[name] = stamp
    return stamps


def _shift(beats: Mapping[str, Heartbeat], seconds: float) -> dict[str, Heartbeat]:
    return {name: replace(beat, seen_at=beat.seen_at + seconds) for name, beat in beats.items()}
