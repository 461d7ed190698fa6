"""What all files of the directory hold, re-reading only those that changed.

A file that breaks keeps its last good content until it is whole again or goes, because it is
most likely being written; so does one that is empty or missing for a moment.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from kilo.backends.file.reading import NOTHING, Content, read_content
from kilo.backends.file.scanning import Listing, Stamp, find_stamp, identify_directory, list_files
from kilo.backends.objects import Found, ReportedNode, join_objects
from kilo.errors import BackendError
from kilo.mesh.model import Problem, Snapshot

GONE_GRACE_SECONDS = 0.2
"""Some editors remove or rename a file and write it anew."""
TOGETHER_SECONDS = 2.0
"""How long the first of many to go waits for the others."""
EMPTY_GRACE_SECONDS = 5.0
"""Others truncate it first and may be slow to fill it: a busy disk held one up for 1.2 s."""
CONFIRMING_LOOKS = 2
"""After the first that raised a doubt."""
RACY_NANOSECONDS = 20_000_000
"""Kernels stamp files by a clock of 1 to 10 ms: a change right after a read may not show."""
RACY_SECONDS = 0.1
STAYS = "what was last read there stays in force"


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """A file's state that is probably a passing one."""

    grace_seconds: float
    """Also tells one state from another."""
    since: float
    looks: int
    """How often it was seen; a file replaced again and again may be missed twice by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file: what of it is in force, and what is wrong with it now."""

    stamp: Stamp | None = None
    """None: to be read again at the next look."""
    content: Content = NOTHING
    trouble: tuple[Problem, ...] = ()
    """Why the file as it is now is not what is in force."""
    doubt: Doubt | None = None
    again_at: float | None = None
    """When to look again, by the monotonic clock, even if nothing is heard of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The directory at one moment."""

    snapshot: Snapshot
    again_at: float | None
    """When a doubt will be settled, by the monotonic clock; None if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A file in which an object stands."""

    path: str
    is_alone: bool
    """Nothing else stands in the file."""


class Tree:
    """The directory's content. Blocks on the file system; used in one thread at a time."""

    def __init__(self, directory: Path, topology_label: str) -> None:
        self.directory = directory
        self.files_read = 0
        """How often a file was read so far."""
        self._topology_label = topology_label
        self._entries: dict[str, Entry] = {}
        self._problems: list[Problem] = []
        self._has_twins = False
        self._snapshot: Snapshot | None = None
        self._identity: tuple[int, int] | None = None
        self._accepted: tuple[int, int] | None = None
        """Device and inode of the directory that was last taken at its word."""
        self._held_documents = False
        self._held_declared = False

    def look(
        self, held: Mapping[str, float], now: float, *, touched: Collection[str] | None = None
    ) -> Look:
        """Read what changed. ``held`` tells of files being written, and until when to wait;
        ``touched`` are the only ones that may have changed, None: any.

        ``BackendError`` where the directory cannot be read, is empty although it was not, or has
        been replaced by one that holds at most what agents report.
        """
        if touched is not None and self._take_stamps(touched, held, now):
            return self._show()
        self._identity = identify_directory(self.directory)
        listing = list_files(self.directory)
        entries = {
            path: self._update(path, stamp, held.get(path, 0.0), now)
            for path, stamp in listing.files.items()
        }
        entries |= self._keep_missing(listing, now)
        self._has_twins = listing.has_twins
        has_documents = any(entry.content.documents for entry in entries.values())
        if self._held_documents and not has_documents:
            self._snapshot = None
            raise BackendError(f"{self.directory}: is empty although it was not: is it mounted?")
        self._judge_directory(entries)
        self._held_documents = has_documents
        if self._snapshot is None or (entries, listing.problems) != (self._entries, self._problems):
            self._entries, self._problems = entries, listing.problems
            self._snapshot = self._join()
        return self._show()

    def _show(self) -> Look:
        if self._snapshot is None:
            raise ValueError("nothing has been seen")
        again = (entry.again_at for entry in self._entries.values() if entry.again_at is not None)
        return Look(snapshot=self._snapshot, again_at=min(again, default=None))

    def _take_stamps(self, touched: Collection[str], held: Mapping[str, float], now: float) -> bool:
        """Whether reports written anew, with nothing new in them, are all that has happened, as it
        mostly is; then they are read, and no other file is looked at.
        """
        if self._snapshot is None or self._has_twins or self.has_moved():
            return False
        due = {path for path, one in self._entries.items() if one.again_at and one.again_at <= now}
        entries: dict[str, Entry] = {}
        for path in due.union(touched):
            old, stamp = self._entries.get(path), find_stamp(self.directory, path)
            if old is None or stamp is None or old.doubt or old.trouble:
                return False
            if held.get(path, 0.0) > now:
                return False
            new = old if old.stamp == stamp else self._read(path, stamp, old, now)
            if new.trouble or new.content.rest != old.content.rest or not new.content.rest:
                return False
            if any(self._has_rival(found.name) for found in new.content.found):
                return False
            entries[path] = new
        self._entries |= entries
        stamps = dict(
            stamp for one in entries.values() for stamp in _list_stamps(one.content.found)
        )
        last_seen = MappingProxyType({**self._snapshot.last_seen, **stamps})
        self._snapshot = replace(self._snapshot, last_seen=last_seen)
        return True

    def _has_rival(self, name: str) -> bool:
        """Whether another file reports that node, too."""
        report = f"NodeReport {name}"
        return self._snapshot is None or any(p.object == report for p in self._snapshot.problems)

    def _judge_directory(self, entries: Mapping[str, Entry]) -> None:
        """Raise ``BackendError`` for one in another's place that holds at most reports: agents
        write those into an empty mount point, too.
        """
        declared = [entry for entry in entries.values() if _is_declared(entry)]
        if self._held_declared and not declared and self._identity != self._accepted:
            self._snapshot = None
            raise BackendError(
                f"{self.directory}: is another directory than before, in which nobody declares"
                " anything: is it mounted?"
            )
        if not self._held_declared or any(entry.doubt is None for entry in declared):
            self._accepted = self._identity
        self._held_declared = bool(declared)

    def check_accepted(self) -> None:
        """Raise ``BackendError`` while it is not clear whether the directory, seen in another's
        place, is to be taken at its word: nothing may be written to it meanwhile.
        """
        if self._identity != self._accepted:
            raise BackendError(f"{self.directory}: is another directory than before")

    def has_moved(self) -> bool:
        """Whether the directory is another one than at the last look, or gone, or back."""
        try:
            return identify_directory(self.directory) != self._identity
        except BackendError:
            return self._identity is not None

    def find(self, kind: str, name: str | None) -> list[Place]:
        """The files in which an object stands, or any of its kind, as of the last look."""
        return [
            Place(path=path, is_alone=entry.content.objects == 1 and not entry.trouble)
            for path, entry in sorted(self._entries.items())
            if any(one.kind == kind and name in (None, one.name) for one in entry.content.found)
        ]

    def forget(self, path: str) -> None:
        """We removed the file ourselves: no grace for it, nor for a directory it leaves empty."""
        self._entries.pop(path, None)
        self._held_documents = False
        self._snapshot = None

    def _update(self, path: str, stamp: Stamp, held_until: float, now: float) -> Entry:
        old = self._entries.get(path)
        if held_until > now:
            return replace(old or Entry(), stamp=None, doubt=None, again_at=held_until)
        if old and old.stamp == stamp:
            return old
        if stamp.size == 0 and old and old.content.found:
            doubted = _doubt(old, now, EMPTY_GRACE_SECONDS)
            if doubted:
                return doubted
        return self._read(path, stamp, old or Entry(), now)

    def _read(self, path: str, stamp: Stamp, old: Entry, now: float) -> Entry:
        self.files_read += 1
        content, read_stamp = read_content(self.directory, path, self._topology_label, old.content)
        # Either way round: the file's clock may be another machine's, and far ahead.
        is_racy = abs(time.time_ns() - stamp.mtime_ns) < RACY_NANOSECONDS
        if is_racy or content == NOTHING or read_stamp not in (stamp, None):
            # Changed or gone while it was being read, or a moment before: this may be half of it.
            in_force = replace(old, doubt=None) if old.content.found else Entry(content=content)
            return replace(in_force, stamp=None, again_at=now + RACY_SECONDS)
        entry = Entry(stamp=read_stamp, content=content)
        if content.broken and old.content.found and not old.content.broken:
            problems = tuple(
                replace(problem, reason=f"{problem.reason}; {STAYS}")
                for problem in content.problems[-1:]
            )
            return replace(entry, content=old.content, trouble=problems)
        return entry

    def _keep_missing(self, listing: Listing, now: float) -> dict[str, Entry]:
        """Entries of files that are not listed but not yet to be given up."""
        missing = {path: one for path, one in self._entries.items() if path not in listing.files}
        kept = {
            path: replace(old, stamp=None, doubt=None, again_at=None)
            for path, old in missing.items()
            if any(path == one or path.startswith(f"{one}/") for one in listing.unknown)
        }
        gone = {path: old for path, old in missing.items() if path not in kept}
        return kept | _doubt_gone(
            {path: old for path, old in gone.items() if old.content.found}, now
        )

    def _join(self) -> Snapshot:
        found: list[Found] = []
        doubtful: list[Found] = []
        problems = list(self._problems)
        for _, entry in sorted(self._entries.items()):
            (doubtful if entry.doubt else found).extend(entry.content.found)
            problems += entry.content.problems
            problems += entry.trouble
        # A file renamed is one gone and one new with the same objects: no duplicates, these.
        there = {(one.kind, one.name) for one in found}
        found += (one for one in doubtful if (one.kind, one.name) not in there)
        return join_objects(found, problems)


def _list_stamps(reports: Iterable[Found]) -> Iterator[tuple[str, int]]:
    for report in reports:
        match report.value:
            case ReportedNode(last_seen=int(last_seen)):
                yield report.name, last_seen


def _is_declared(entry: Entry) -> bool:
    """Whether a person wrote any of it."""
    return any(one.kind != "NodeReport" for one in entry.content.found)


def _doubt_gone(gone: Mapping[str, Entry], now: float) -> dict[str, Entry]:
    """Those that are not to be given up yet: all until the last has been missing for long enough.
    What goes together, a node's declaration and its report, must not leave half of it in between.
    """
    doubted = {path: _doubt(old, now, GONE_GRACE_SECONDS) for path, old in gone.items()}
    if any(doubted.values()):
        again_at = now + GONE_GRACE_SECONDS / CONFIRMING_LOOKS
        for path, old in gone.items():
            if old.doubt and now < old.doubt.since + TOGETHER_SECONDS:
                doubted[path] = doubted[path] or replace(old, again_at=again_at)
    return {path: entry for path, entry in doubted.items() if entry}


def _doubt(old: Entry, now: float, grace_seconds: float) -> Entry | None:
    """The entry kept for a while; None once the while is over."""
    doubt = old.doubt
    if doubt is None or doubt.grace_seconds != grace_seconds:
        doubt = Doubt(grace_seconds=grace_seconds, since=now, looks=0)
    doubt = replace(doubt, looks=doubt.looks + 1)
    if now >= doubt.since + grace_seconds and doubt.looks > CONFIRMING_LOOKS:
        return None
    return replace(old, stamp=None, doubt=doubt, again_at=now + grace_seconds / CONFIRMING_LOOKS)
