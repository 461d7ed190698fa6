"""A link at work: both ends followed, each told what the other has become.

As with agents nothing is remembered of what was written: a pass compares what both stores hold with
what they should, and writes the difference. A store that is away is neither judged nor written to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from kilo.errors import BackendError, KiloError, MeshError
from kilo.kgctl.clusterend import End, FollowedEnd, Services
from kilo.kgctl.clustermirror import (
    Document,
    NoMirrorError,
    ObjectChange,
    ServiceName,
    describe_taken,
    diff_objects,
    find_service,
    identify,
    make_mirror,
)
from kilo.kgctl.clusterplan import (
    PeerChange,
    View,
    diff_peers,
    find_strangers,
    is_own,
    list_own,
    plan_link,
)
from kilo.kgctl.connection import LAST_PASS_SECONDS, News
from kilo.mesh.model import Snapshot
from kilo.retrying import back_off

RESYNC_SECONDS = 30.0
"""How soon a mirror that somebody else has changed is put right."""
UNLISTED = "services and endpointslices may not be listed there"

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
        failures += [*unmirrored, *await mirror(link, target, wanted, scribe)]
    return failures


async def unlink(link: str, end: End, scribe: Scribe, tell: Say) -> list[str]:
    """Take out of one end all that the link has made there; why what failed has failed."""
    try:
        snapshot = await end.backend.snapshot()
        mirrors = await end.cluster.list_mirrors() if end.cluster else []
    except KiloError as error:
        return [f"{end.label}: {error}"]
    if mirrors is None:
        # A link without Services needs no such rights: no failure, as a rule.
        tell(f"{end.label}: {UNLISTED}: mirrors, if there are any, stay")
    changes: list[Change] = [
        *diff_peers(end.label, {}, list_own(link, snapshot.peers)),
        *diff_objects(end.label, (), mirrors or ()),
    ]
    return [*_list_unread(link, end.label, snapshot), *await scribe.write(end, changes)]


def _list_unread(link: str, label: str, snapshot: Snapshot) -> Iterator[str]:
    """Peers of the link that are no peers any more, and so are not found to be taken away."""
    for problem in snapshot.problems:
        kind, _, name = problem.object.partition(" ")
        if kind == "Peer" and is_own(link, name):
            yield f"{label}: {problem}: kgctl delete peer {name}"


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


async def mirror(link: str, target: End, wanted: Sequence[Document], scribe: Scribe) -> list[str]:
    """Make these the link's only mirrors there; why what failed has failed. ``BackendError`` where
    it may not be seen what is there.
    """
    if target.cluster is None:
        return []
    held = await target.cluster.list_mirrors()
    if held is None and wanted:
        raise BackendError(f"{target.label}: {UNLISTED}: see examples/kubernetes/link.yaml")
    taken = await _find_taken(target.cluster, wanted, held or ())
    failures = [f"{target.label}: {describe_taken('Service', str(n), link)}" for n in taken]
    kept = [document for document in wanted if find_service(document) not in taken]
    changes = diff_objects(target.label, kept, held or ())
    return [*failures, *await scribe.write(target, changes)]


async def _find_taken(
    cluster: Services, wanted: Iterable[Document], held: Iterable[Document]
) -> list[ServiceName]:
    """Services that somebody else has there under the name of a mirror: a slice would join them."""
    own = set(map(identify, held))
    services = (identify(document) for document in wanted if document["kind"] == "Service")
    return [one[1] for one in services if one not in own and await cluster.is_taken(one[1])]


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
            failures += await mirror(self._link, target.end, wanted, self._scribe)
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
