"""A link at work: both ends followed, each told what the other has become.

As with agents nothing is remembered of what was written: a pass compares what both stores hold with
what they should, and writes the difference. A store that is away is neither judged nor written to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from kilo.errors import BackendError, KiloError, MeshError
from kilo.kgctl.clusterend import End, FollowedEnd
from kilo.kgctl.clustermirror import (
    Document,
    NoMirrorError,
    ObjectChange,
    ServiceName,
    diff_objects,
    make_mirror,
)
from kilo.kgctl.clusterplan import PeerChange, View, find_strangers, list_own, plan_link
from kilo.kgctl.connection import News
from kilo.retrying import back_off

RESYNC_SECONDS = 30.0
"""How soon a mirror that somebody else has changed is put right."""
LAST_PASS_SECONDS = 20.0
"""How long an end lets a pass that has begun come to its own."""

Say = Callable[[str], None]
Change = PeerChange | ObjectChange


class Scribe:
    """Says what is written, and writes it, unless it is only to be said."""

    def __init__(self, say: Say, *, dry_run: bool = False) -> None:
        self._say = say
        self._dry_run = dry_run

    async def write(self, end: End, changes: Iterable[Change]) -> list[str]:
        """Each is tried though another fails; why those failed that did."""
        failures = []
        for change in changes:
            try:
                if not self._dry_run:
                    await _write(end, change)
            except BackendError as error:
                failures.append(f"{change}: {error}")
            else:
                self._say(f"{change}{' (dry run)' if self._dry_run else ''}")
        return failures


async def _write(end: End, change: Change) -> None:
    match change:
        case PeerChange(name=name, peer=None):
            await end.peers.delete_peer(name)
        case PeerChange(peer=peer) if peer is not None:
            await end.peers.put_peer(peer)
        case ObjectChange() if end.cluster is not None:
            await end.cluster.change_mirror(change)


# At once.


async def look_at_both(link: str, one: End, other: End, tell: Say) -> tuple[View, View]:
    """Both meshes now; what is in doubt is told. ``MeshError`` if they must not be linked, in one
    line; ``BackendError`` if either cannot be read.
    """
    views = await one.look(), await other.look()
    for view in views:
        for doubt in view.survey.doubts:
            tell(f"{view.label}: {doubt}")
    refusals = (*plan_link(link, *views).refusals, *find_strangers(link, *views))
    if refusals:
        raise MeshError("; ".join(refusals))
    return views


async def link_once(link: str, one: End, other: End, scribe: Scribe, tell: Say) -> list[str]:
    """Link them as they are now; why what failed has failed. Raises as ``look_at_both``."""
    views = await look_at_both(link, one, other, tell)
    plan = plan_link(link, *views)
    services = await one.read_services(), await other.read_services()
    for note in plan.notes:
        tell(note)
    failures = []
    for end in (one, other):
        failures += await scribe.write(end, _pick(plan.changes, end))
    for place, target in enumerate((other, one)):
        wanted, unmirrored = make_mirrors(link, views[place], services[place])
        changes = await plan_mirrors(target, wanted)
        failures += [*unmirrored, *await scribe.write(target, changes)]
    return failures


async def unlink(link: str, end: End, scribe: Scribe) -> list[str]:
    """Take out of one end all that the link has made there; why what failed has failed."""
    try:
        peers = list_own(link, (await end.backend.snapshot()).peers)
        changes: list[Change] = [
            PeerChange(label=end.label, name=name, peer=None) for name in sorted(peers)
        ]
        changes += await plan_mirrors(end, ())
    except KiloError as error:
        return [f"{end.label}: {error}"]
    return await scribe.write(end, changes)


def _pick(changes: Iterable[PeerChange], end: End) -> list[PeerChange]:
    return [change for change in changes if change.label == end.label]


def make_mirrors(
    link: str, source: View, services: Mapping[ServiceName, Document | None]
) -> tuple[list[Document], list[str]]:
    """What the other end is to hold of these Services, and why some of them are not there."""
    wanted: list[Document] = []
    reasons = []
    cidrs = source.survey.topology.settings.service_cidrs
    for name, document in services.items():
        try:
            wanted += make_mirror(link, name, document, cidrs)
        except NoMirrorError as error:
            reasons.append(f"{source.label}: service {name} {error}")
    return wanted, reasons


async def plan_mirrors(target: End, wanted: Sequence[Document]) -> list[ObjectChange]:
    """What is to be written there for these to be the link's only ones."""
    if target.cluster is None:
        return []
    held = await target.cluster.list_mirrors()
    if held is None and wanted:
        raise BackendError(
            f"{target.label}: services and endpointslices may not be listed there:"
            " see examples/kubernetes/link.yaml"
        )
    return list(diff_objects(target.label, wanted, held or ()))


# For as long as it takes.


class LinkLoop:
    """Two meshes kept linked."""

    def __init__(self, link: str, ends: tuple[End, End], *, scribe: Scribe, tell: Say) -> None:
        self._link = link
        self._scribe = scribe
        self._news = News(tell)
        self._due = asyncio.Event()
        self._failures = 0
        one, other = (FollowedEnd(end, changed=self._due.set, tell=self._news.tell) for end in ends)
        self._ends = (one, other)

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set; what was made stays."""
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(end.run()) for end in self._ends]
            passes = group.create_task(self._reconcile(stop))
            await stop.wait()
            for task in running:
                task.cancel()
            self._due.set()
            await asyncio.wait({passes}, timeout=LAST_PASS_SECONDS)
            passes.cancel()

    async def _reconcile(self, stop: asyncio.Event) -> None:
        while True:
            await self._wait_until_due()
            if stop.is_set():
                return
            try:
                failures = await self._make_pass()
            except (BackendError, MeshError) as error:
                failures = [str(error)]
            self._failures = self._failures + 1 if failures else 0
            self._news.tell("failure", failures)

    async def _wait_until_due(self) -> None:
        pause = min(RESYNC_SECONDS, back_off(self._failures)) if self._failures else RESYNC_SECONDS
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._due.wait()
        self._due.clear()

    async def _make_pass(self) -> list[str]:
        """Why what failed has failed."""
        one, other = (end.look() for end in self._ends)
        if one is None or other is None:
            return []
        plan = plan_link(self._link, one, other)
        kept = [f"the link stays as it is: {refusal}" for refusal in plan.refusals]
        self._news.tell("refusal", kept)
        self._news.tell("note", plan.notes)
        if kept:
            return []
        failures = []
        for followed in self._ends:
            if not followed.is_away:
                changes = _pick(plan.changes, followed.end)
                failures += await self._scribe.write(followed.end, changes)
        failures += await self._mirror((one, other))
        if not failures:
            self._tell_linked(one, other)
        return failures

    async def _mirror(self, views: tuple[View, View]) -> list[str]:
        failures, unmirrored, errors = [], [], []
        for place, (source, target) in enumerate((self._ends, self._ends[::-1])):
            errors += source.list_errors()
            services = source.read_services()
            if services is None or target.is_away:
                continue
            wanted, reasons = make_mirrors(self._link, views[place], services)
            unmirrored += reasons
            changes = await plan_mirrors(target.end, wanted)
            failures += await self._scribe.write(target.end, changes)
        self._news.tell("service", unmirrored)
        self._news.tell("unheard service", errors)
        return failures

    def _tell_linked(self, one: View, other: View) -> None:
        leaders = [
            ", ".join(segment.leader.name for segment in view.segments) or "nobody"
            for view in (one, other)
        ]
        self._news.tell(
            "linked",
            [f"linked: {one.label} by {leaders[0]}, {other.label} by {leaders[1]}"],
        )
