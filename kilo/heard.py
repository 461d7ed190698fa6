"""What the store has said, when, and who is live by it; or what the disk says in its place.

Liveness is judged on the store's clock, so that while the store is away nobody looks dead. Of
several stores one may be away, and be known by the disk, while the others are heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from kilo.backends.parts import join_parts, mark_part
from kilo.errors import BackendError
from kilo.log import get_logger
from kilo.mesh.model import NodeReport, NodeSpec, Snapshot
from kilo.mesh.plan import join_report
from kilo.mesh.readiness import Heartbeat, find_next_expiry, find_ready_nodes
from kilo.notices import Notices
from kilo.pulses import Pulses
from kilo.storeclock import StoreClock

CHECK_SECONDS = 1.0
"""How often to look for nodes gone silent, at least: the clock may stop and go between."""
IS_EMPTY = (
    "is empty, although the last good snapshot is not: is it mounted?"
    " (kg uninstall forgets the snapshot)"
)


class LastGood(Protocol):
    """Keeps the last good snapshot for a start without the store."""

    def load(self) -> Snapshot | None: ...
    def save(self, snapshot: Snapshot) -> None: ...


class Heard:
    """The snapshot in force, with the heartbeats."""

    def __init__(self, local: str, last_good: LastGood) -> None:
        """``local`` is the name of the own node, which is always live to itself."""
        self.snapshot: Snapshot | None = None
        self._local = local
        self._last_good = last_good
        self._saved: Snapshot | None = None
        self._on_disk: Snapshot | None = None
        self._has_loaded = False
        self._believed: set[str] = set()
        """Stores that have said something since the start; one that is the only one is ''."""
        self._clock = StoreClock()
        self._pulses = Pulses(self._clock.now, local=local)
        self._log = get_logger("snapshot")
        self._notices = Notices("snapshot")
        self._ready: frozenset[str] = frozenset()
        self.first_answer = asyncio.Event()

    @property
    def now(self) -> float:
        """Seconds on the clock of the heartbeats."""
        return self._clock.now()

    @property
    def heartbeats(self) -> Mapping[str, Heartbeat]:
        """By name of node."""
        return self._pulses.heartbeats

    @property
    def is_away(self) -> bool:
        """Whether the store cannot be heard; of several, whether none can."""
        return self._clock.stopped

    def hear(self, snapshot: Snapshot, report: NodeReport | None) -> bool:
        """The store says this. True if it is news, and not only heartbeats.

        ``report`` is what the local node is to be known by, whatever the store has of it.
        """
        self._clock.start()
        self._pulses.note(snapshot)
        if report is not None:
            snapshot = join_report(snapshot, report)
        is_news = snapshot != self.snapshot or not self.first_answer.is_set()
        self.snapshot = snapshot
        self.first_answer.set()
        return is_news or self.has_new_readiness()

    def weigh(self, snapshot: Snapshot) -> Snapshot | BackendError:
        """What the store says as far as it is to be believed, or why it is not.

        Not believed is a store as empty as a mount point with nothing mounted, at the start of an
        agent that once saw a mesh in it. Of several stores those that are not heard or not believed
        are as they were last known. Where nothing is known of one there is nothing to go by: half a
        mesh would be another one than the others have.
        """
        heard = snapshot.parts or {"": snapshot}
        home = snapshot.home
        empty = [kind for kind, part in heard.items() if self._is_suspect(kind, part, home)]
        self._believed.update(heard.keys() - set(empty))
        if not snapshot.parts:
            return BackendError(f"store: {IS_EMPTY}") if empty else snapshot
        away = {**snapshot.away, **{kind: f"{kind}: {IS_EMPTY}" for kind in empty}}
        self._pulses.lose(away)
        parts = {kind: part for kind, part in heard.items() if kind not in empty}
        missing = away.keys() - parts.keys()
        if not missing:
            return snapshot
        known = self._find_known_parts(home)
        if not missing <= known.keys():
            return BackendError("; ".join(away[kind] for kind in away if kind in missing))
        last = {kind: known[kind] for kind in missing}
        if self.snapshot is None:
            self._trust(join_parts(last, home=home))
        return join_parts({**parts, **last}, home=home, away=away)

    def _is_suspect(self, kind: str, part: Snapshot, home: str) -> bool:
        """Whether a store holds nothing that once held something. What it says of the own node may
        be our own doing.
        """
        if kind in self._believed or part.peers or part.settings:
            return False
        if any(node.name != self._local or node.spec != NodeSpec() for node in part.nodes):
            return False
        known = self._find_known_parts(home).get(kind, Snapshot())
        return bool(known.peers or any(node.name != self._local for node in known.nodes))

    def _find_known_parts(self, home: str) -> Mapping[str, Snapshot]:
        """Each store as it was last heard, be it before the start."""
        known = self.snapshot or self._load()
        if known is None or known.parts:
            return known.parts if known else {}
        # What was the only store is the first of several now.
        return {home: mark_part(known, home)}

    def _load(self) -> Snapshot | None:
        if not self._has_loaded:
            self._on_disk, self._has_loaded = self._last_good.load(), True
        return self._on_disk

    def _trust(self, snapshot: Snapshot) -> None:
        """What comes from the disk. Whether its nodes live cannot be told: they count as live until
        their store is heard.
        """
        self._pulses.trust(snapshot)
        self._log.warning("starting from the last good snapshot", nodes=len(snapshot.nodes))

    def lose(self) -> bool:
        """The store cannot be heard. True if a snapshot from the disk is news."""
        self._clock.stop()
        if self.snapshot is not None:
            return False
        snapshot = self._load()
        if snapshot is None:
            return False
        self.snapshot = self._saved = snapshot
        self._trust(snapshot)
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
        expiry = None if self.is_away else find_next_expiry(self._pulses.aging, now=self.now)
        pause = CHECK_SECONDS if expiry is None else min(CHECK_SECONDS, expiry - self.now + 0.01)
        await asyncio.sleep(pause)

    async def keep(self, snapshot: Snapshot) -> None:
        """Save what just worked, for a start without the store, unless it is saved already."""
        if self.is_away:
            return
        stamps = {n: beat.stamp for n, beat in self.heartbeats.items() if n in self._ready}
        snapshot = replace(snapshot, last_seen=stamps, problems=(), away={})
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

    def _find_ready(self) -> frozenset[str]:
        if self.snapshot is None:
            return frozenset()
        nodes = find_ready_nodes(self.snapshot, self.heartbeats, now=self.now, local=self._local)
        return frozenset(node.name for node in nodes)
