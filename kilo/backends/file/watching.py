"""The kernel's word that something below the directory changed, by ``watchdog`` (inotify).

It is a hint, never the truth: what the files hold is read from the files, and a slow re-scan
finds what no event told of (network file systems, what links lead to).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from kilo.backends.file.scanning import TEMPORARY, is_ignored

HOLD_SECONDS = 5.0
"""How long to wait, after the last write, for a writer to close its file."""
STOP_SECONDS = 5.0

# Not opening and closing for reading: our own reading would be an event.
EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileModifiedEvent,
    FileClosedEvent,
    FileMovedEvent,
    FileDeletedEvent,
    DirCreatedEvent,
    DirMovedEvent,
    DirDeletedEvent,
]


MOST_HEARD = 1000
"""Of so many the kernel may have told some only: its own queue has an end."""
EVERYTHING = ""
"""Stands for all paths where a directory came or went, or a link that others may lead through."""


class DirectoryWatch:
    """Watches one directory; ``notify`` is called in a thread of watchdog's."""

    def __init__(self, directory: Path, notify: Callable[[], None]) -> None:
        self._directory = directory
        self._notify = notify
        self._observer: BaseObserver | None = None
        self._handler = _Handler(Path("/"), notify)
        self._identity: tuple[int, int] | None = None

    def ensure(self, identity: tuple[int, int]) -> bool:
        """Watch the directory of that device and inode, and whether nobody did until now;
        ``OSError`` where inotify refuses.

        Blocks: it visits every directory below.
        """
        if self._identity == identity and self._is_alive():
            return False
        self.stop()
        # inotify does not follow a link at the end of the path it is given.
        root = self._directory.resolve()
        self._handler = _Handler(root, self._notify)
        observer = Observer()
        self._observer = observer
        try:
            observer.schedule(self._handler, str(root), recursive=True, event_filter=EVENTS)
            observer.start()
        except OSError:
            self.stop()
            raise
        self._identity = identity
        return True

    def stop(self) -> None:
        """End watching; blocks until watchdog's threads have ended."""
        self._identity = None
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            if observer.is_alive():
                observer.join(STOP_SECONDS)

    def take_touched(self) -> set[str] | None:
        """The files of which something was heard since this was last asked; None: of more than
        can be told, so that all are to be looked at.
        """
        heard, touched = self._handler.heard, set[str]()
        for _ in range(len(heard)):
            touched.add(heard.popitem()[0])
        return None if EVERYTHING in touched else touched

    def held(self) -> dict[str, float]:
        """Files being written now, and until when to wait for their end (monotonic clock)."""
        return {path: at + HOLD_SECONDS for path, at in list(self._handler.written_at.items())}

    def _is_alive(self) -> bool:
        # An emitter ends by itself when its directory is deleted.
        observer = self._observer
        return (
            observer is not None
            and observer.is_alive()
            and not self._handler.lost_root
            and all(emitter.is_alive() for emitter in observer.emitters)
        )


class _Handler(FileSystemEventHandler):
    """Notes which files are written but not closed, and passes the rest on as one hint."""

    def __init__(self, root: Path, notify: Callable[[], None]) -> None:
        self.written_at: dict[str, float] = {}
        """Path relative to the root -> when it was last written to."""
        self.heard: dict[str, None] = {}
        """Paths relative to the root; put in and taken out, one by one, by different threads."""
        self.lost_root = False
        """The directory was deleted; another of its name, and even inode number, is not it."""
        self._root = root
        self._notify = notify

    def dispatch(self, event: FileSystemEvent) -> None:
        """Called by watchdog for every event."""
        path = os.fsdecode(event.src_path)
        relative, name = self._relate(path), os.path.basename(path)  # noqa: PTH119 - for every event
        # Other events of hidden names count: atomic writers of mounted volumes rename hidden links.
        if isinstance(event, FileModifiedEvent | FileClosedEvent) and is_ignored(name):
            return
        if isinstance(event, DirDeletedEvent) and relative == ".":
            self.lost_root = True
        if isinstance(event, FileModifiedEvent):
            self.written_at[relative] = time.monotonic()
        elif not isinstance(event, FileCreatedEvent):
            self.written_at.pop(relative, None)
        self._forget_old()
        touched = tuple(self._list_touched(event))
        for one in touched:
            self.heard[one if len(self.heard) < MOST_HEARD else EVERYTHING] = None
        if touched:
            self._notify()

    def _list_touched(self, event: FileSystemEvent) -> Iterator[str]:
        if event.is_directory:
            yield EVERYTHING
            return
        for path in map(os.fsdecode, (event.src_path, event.dest_path)):
            name = os.path.basename(path)  # noqa: PTH119 - for every event
            if not name:  # only what is moved has a destination
                continue
            # A file beside the one that it is about to replace says nothing yet.
            if not name.endswith(TEMPORARY):
                yield EVERYTHING if is_ignored(name) else self._relate(path)

    def _relate(self, path: str) -> str:
        """As ``os.path.relpath``, which asks where we are and takes both paths apart."""
        inside = path.removeprefix(f"{self._root}/")
        return os.path.relpath(path, self._root) if inside == path else inside

    def _forget_old(self) -> None:
        oldest = time.monotonic() - HOLD_SECONDS
        for path, at in list(self.written_at.items()):
            if at < oldest:
                self.written_at.pop(path, None)
