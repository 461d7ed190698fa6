"""The file backend: composes looking, listening and writing into the ``Backend`` contract.

Everything that touches the file system runs in one thread of the backend's own, one call
after the other: a hanging network file system blocks that thread and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TypeVar

from kilo.backends.documents import (
    DEFAULT_TOPOLOGY_LABEL,
    SETTINGS_NAME,
    make_node_document,
    make_settings_document,
)
from kilo.backends.file import writing
from kilo.backends.file.scanning import identify_directory
from kilo.backends.file.tree import Look, Tree
from kilo.backends.file.watching import DirectoryWatch
from kilo.backends.news import News
from kilo.daemonthread import DaemonThread
from kilo.errors import BackendError
from kilo.log import get_logger
from kilo.mesh.model import NodeReport, NodeSpec, PartialSettings, Peer, Snapshot
from kilo.mesh.remarks import Remarks

T = TypeVar("T")

DEBOUNCE_SECONDS = 0.06
MAX_DEBOUNCE_SECONDS = 0.25
"""However long a burst of events lasts, it is looked at after this."""
TICK_SECONDS = 1.0
"""How often to see whether the directory itself is there; for a poll, to look at everything."""
PATIENCE_SECONDS = 20.0
"""A file system that does not answer for so long counts as away."""
SNAPSHOT_SECONDS = 3.0
"""How long ``snapshot`` waits for a file that is being written."""


class FileBackend:
    """A directory of YAML and JSON files. Implements ``Backend``; for one event loop."""

    def __init__(
        self,
        directory: Path,
        *,
        topology_label: str = DEFAULT_TOPOLOGY_LABEL,
        rescan_seconds: float = 30.0,
        patience_seconds: float = PATIENCE_SECONDS,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self._rescan_seconds = rescan_seconds
        self._patience_seconds = patience_seconds
        self._wall_clock = wall_clock
        self._tree = Tree(directory, topology_label)
        self._watch = DirectoryWatch(directory, self._notify)
        self._thread = DaemonThread("files")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wakes: set[asyncio.Event] = set()
        self._is_polling = False
        self._rescan_at = 0.0
        self._has_warned = False
        self._closed = asyncio.Event()
        self._log = get_logger("file")

    async def watch(self) -> AsyncIterator[Snapshot | BackendError]:
        """The snapshot now and after every change; see the contract."""
        news = News()
        wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._wakes.add(wake)
        try:
            while not self._closed.is_set():
                wake.clear()
                outcome, look_at = await self._look_listening()
                if self._closed.is_set():
                    return
                if news.notice(outcome):
                    yield outcome
                await self._pause(wake, look_at)
        finally:
            self._wakes.discard(wake)

    async def snapshot(self) -> Snapshot:
        """What the directory holds now; waits a little for files that are being written."""
        deadline = time.monotonic() + SNAPSHOT_SECONDS
        while True:
            look = await self._in_thread(self._look)
            now = time.monotonic()
            if look.again_at is None or now >= deadline:
                return look.snapshot
            await asyncio.sleep(max(0.0, look.again_at - now))

    async def publish(self, report: NodeReport) -> None:
        """Write ``reports/NAME.yaml``."""

        def write() -> None:
            self._look()
            self._tree.check_accepted()
            last_seen = int(self._wall_clock())
            writing.write_report(self.directory, report, last_seen=last_seen)

        await self._in_thread(write)

    async def withdraw(self, name: str) -> None:
        """Remove ``reports/NAME.yaml``."""

        def delete() -> None:
            self._look()
            writing.delete_report(self._tree, name)

        await self._in_thread(delete)

    async def put_peer(self, peer: Peer) -> None:
        """Write the file that holds this peer alone, ``peers/NAME.yaml`` if there is none."""

        def write() -> None:
            self._look()
            writing.write_peer(self._tree, peer)

        await self._in_thread(write)

    async def delete_peer(self, name: str) -> None:
        """Remove the file that holds this peer alone."""
        await self._delete("Peer", name)

    async def declare_node(self, name: str, spec: NodeSpec) -> None:
        """Write the file that holds this node alone, ``nodes/NAME.yaml`` if there is none."""
        await self._write(lambda: make_node_document(name, spec))

    async def forget_node(self, name: str) -> None:
        """Remove the file that holds this node alone, and its report."""

        def delete() -> None:
            self._look()
            writing.delete_node(self._tree, name)

        await self._in_thread(delete)

    async def declare_settings(self, settings: PartialSettings) -> None:
        """Write the file that holds the settings alone, ``settings.yaml`` if there is none."""
        await self._write(lambda: make_settings_document(settings))

    async def forget_settings(self) -> None:
        """Remove the file that holds the settings alone."""
        await self._delete("Settings", SETTINGS_NAME)

    async def remark(self, remarks: Remarks) -> None:
        """Nothing: a directory has no place for them; the agent's log has."""

    async def close(self) -> None:
        """End every watch; a call still blocked on the file system is left to itself."""
        if self._closed.is_set():
            return
        self._closed.set()
        for wake in self._wakes:
            wake.set()
        self._thread.run(self._watch.stop)
        self._thread.end()

    async def _write(self, make: Callable[[], Mapping[str, object]]) -> None:
        def write() -> None:
            self._look()
            writing.write_object(self._tree, make)

        await self._in_thread(write)

    async def _delete(self, kind: str, name: str) -> None:
        def delete() -> None:
            self._look()
            writing.delete_object(self._tree, kind, name)

        await self._in_thread(delete)

    # In the backend's thread.

    def _look(self) -> Look:
        return self._tree.look(self._watch.held(), time.monotonic())

    def _listen_and_look(self) -> Look:
        """Begin to listen before looking, so that no change falls between the two."""
        try:
            self._listen()
            return self._look_again()
        except BackendError:
            # Inode numbers are used again: after an absence nothing tells the old one from a new.
            self._watch.stop()
            raise

    def _look_again(self) -> Look:
        """At what was heard of; now and then at everything, for no event tells of some changes."""
        touched = self._watch.take_touched()
        now = time.monotonic()
        if self._is_polling or now >= self._rescan_at:
            touched, self._rescan_at = None, now + self._rescan_seconds
        return self._tree.look(self._watch.held(), now, touched=touched)

    def _listen(self) -> None:
        try:
            if self._watch.ensure(identify_directory(self.directory)):
                self._rescan_at = 0.0  # nobody has listened until now
        except OSError as error:
            self._is_polling = True
            self._warn_polling(error)
        else:
            self._is_polling = False

    def _warn_polling(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._log.warning(
                "no change notifications, looking every second instead",
                directory=str(self.directory),
                error=error.strerror or str(error),
            )

    # In the event loop.

    async def _look_listening(self) -> tuple[Snapshot | BackendError, float]:
        """What to tell, and when to look again at the latest."""
        try:
            look = await self._in_thread(self._listen_and_look)
        except BackendError as error:
            return error, time.monotonic() + TICK_SECONDS
        latest = time.monotonic() + TICK_SECONDS if self._is_polling else self._rescan_at
        return look.snapshot, latest if look.again_at is None else min(latest, look.again_at)

    async def _pause(self, wake: asyncio.Event, look_at: float) -> None:
        """Until something was heard, the directory moved, or it is time to look anyway."""
        while not self._closed.is_set():
            remaining = look_at - time.monotonic()
            if remaining <= 0:
                return
            if await _wait(wake, min(remaining, TICK_SECONDS)):
                await self._debounce(wake)
                return
            try:
                if await self._in_thread(self._tree.has_moved):
                    return
            except BackendError:
                return  # it does not even answer: the next look will say so

    async def _debounce(self, wake: asyncio.Event) -> None:
        """Let a burst of events end: an editor's save is several."""
        deadline = time.monotonic() + MAX_DEBOUNCE_SECONDS
        while not self._closed.is_set() and time.monotonic() < deadline:
            wake.clear()
            if not await _wait(wake, DEBOUNCE_SECONDS):
                return

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """Run what blocks on the file system: stat, open, read, write, rename."""
        if self._closed.is_set():
            raise BackendError(f"{self.directory}: closed")
        future = self._thread.run(call)
        done, _ = await asyncio.wait({future}, timeout=self._patience_seconds)
        if not done:
            future.cancel()
            raise BackendError(f"{self.directory}: no answer in {self._patience_seconds:g} s")
        return future.result()

    def _notify(self) -> None:
        """Called in watchdog's thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the thread did
                loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        for wake in self._wakes:
            wake.set()


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    """Whether it was set within that time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
