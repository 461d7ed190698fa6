"""What the store has said, when, and who is live by it; or what the disk says in its place.

Liveness is judged on the store's clock, so that while the store is away nobody looks dead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from kilo.errors import BackendError
from kilo.log import get_logger
from kilo.mesh.model import NodeReport, NodeSpec, Snapshot
from kilo.mesh.plan import join_report
from kilo.mesh.readiness import Heartbeat, find_next_expiry, find_ready_nodes, note_heartbeats
from kilo.notices import Notices
from kilo.storeclock import StoreClock

CHECK_SECONDS = 1.0
"""How often to look for nodes gone silent, at least: the clock may stop and go between."""


class LastGood(Protocol):
    """Keeps the last good snapshot for a start without the store."""

    def load(self) -> Snapshot | None: ...
    def save(self, snapshot: Snapshot) -> None: ...


class Heard:
    """The snapshot in force, with the heartbeats."""

    def __init__(self, local: str, last_good: LastGood) -> None:
        """``local`` is the name of the own node, which is always live to itself."""
        self.snapshot: Snapshot | None = None
        self.heartbeats: Mapping[str, Heartbeat] = {}
        self._local = local
        self._last_good = last_good
        self._saved: Snapshot | None = None
        self._has_store = False
        self._clock = StoreClock()
        self._log = get_logger("snapshot")
        self._notices = Notices("snapshot")
        self._ready: frozenset[str] = frozenset()
        self.first_answer = asyncio.Event()

    @property
    def now(self) -> float:
        """Seconds on the clock of the heartbeats."""
        return self._clock.now()

    @property
    def is_away(self) -> bool:
        """Whether the store cannot be heard."""
        return self._clock.stopped

    def hear(self, snapshot: Snapshot, report: NodeReport | None) -> bool:
        """The store says this. True if it is news, and not only heartbeats.

        ``report`` is what the local node is to be known by, whatever the store has of it.
        """
        self._clock.start()
        self._has_store = True
        self.heartbeats = note_heartbeats(
            self.heartbeats, snapshot.last_seen, now=self.now, wall=self._tell_time(snapshot)
        )
        if report is not None:
            snapshot = join_report(snapshot, report)
        is_news = snapshot != self.snapshot or not self.first_answer.is_set()
        self.snapshot = snapshot
        self.first_answer.set()
        return is_news or self.has_new_readiness()

    def doubts(self, snapshot: Snapshot) -> bool:
        """Whether the store is as empty as a mount point with nothing mounted, at the start of an
        agent that once saw a mesh in it. What it says of the own node may be our own doing.
        """
        if self._has_store or snapshot.peers or snapshot.settings:
            return False
        if any(node.name != self._local or node.spec != NodeSpec() for node in snapshot.nodes):
            return False
        saved = self.snapshot or self._last_good.load()
        return saved is not None and bool(
            saved.peers or any(node.name != self._local for node in saved.nodes)
        )

    def lose(self) -> bool:
        """The store cannot be heard. True if a snapshot from the disk is news."""
        self._clock.stop()
        if self.snapshot is not None:
            return False
        snapshot = self._last_good.load()
        if snapshot is None:
            return False
        # Whether they live cannot be told: they count as live until the store is back.
        self.heartbeats = {
            name: Heartbeat(stamp=stamp, seen_at=self.now)
            for name, stamp in snapshot.last_seen.items()
        }
        self.snapshot = self._saved = snapshot
        self._log.warning("starting from the last good snapshot", nodes=len(snapshot.nodes))
        return True

    def report(self, report: NodeReport) -> None:
        """The own node is known by this now."""
        if self.snapshot is not None:
            self.snapshot = join_report(self.snapshot, report)

    def note_readiness(self) -> None:
        """A pass takes account of who is ready now."""
        self._ready = self._find_ready()

    def has_new_readiness(self) -> bool:
        """Whether others are ready than at the last pass."""
        return self._find_ready() != self._ready

    async def wait_for_silence(self) -> None:
        """Until the next live node may have been silent for too long, a second at most."""
        expiry = None if self.is_away else find_next_expiry(self.heartbeats, now=self.now)
        pause = CHECK_SECONDS if expiry is None else min(CHECK_SECONDS, expiry - self.now + 0.01)
        await asyncio.sleep(pause)

    async def keep(self, snapshot: Snapshot) -> None:
        """Save what just worked, for a start without the store, unless it is saved already."""
        if self.is_away:
            return
        stamps = {n: beat.stamp for n, beat in self.heartbeats.items() if n in self._ready}
        snapshot = replace(snapshot, last_seen=stamps, problems=())
        same_nodes = self._saved is not None and self._saved.last_seen.keys() == stamps.keys()
        if snapshot == self._saved and same_nodes:
            return
        try:
            await asyncio.to_thread(self._last_good.save, snapshot)  # blocks: write, fsync, rename
        except BackendError as error:
            self._notices.tell("snapshot not kept", [str(error)])
        else:
            self._notices.tell("snapshot not kept", ())
            self._saved = snapshot

    def _tell_time(self, snapshot: Snapshot) -> float:
        """Unix seconds, to judge the stamps of nodes first seen now: the own clock, unless it is
        ahead of everybody else's. By a wrong clock of its own a host that starts would take all
        others for dead.
        """
        others = (stamp for name, stamp in snapshot.last_seen.items() if name != self._local)
        return min(time.time(), max(others, default=float("inf")))

    def _find_ready(self) -> frozenset[str]:
        if self.snapshot is None:
            return frozenset()
        nodes = find_ready_nodes(self.snapshot, self.heartbeats, now=self.now, local=self._local)
        return frozenset(node.name for node in nodes)
