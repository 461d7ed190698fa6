"""One end of a link: a mesh that is followed, judged as agents judge it, and written to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from kilo.backends.base import Backend
from kilo.backends.opening import BackendConfig, open_store
from kilo.errors import BackendError
from kilo.heard import Heard
from kilo.kgctl.clusterflags import EndConfig
from kilo.kgctl.clustermirror import Document, ObjectChange, ServiceName
from kilo.kgctl.clusterplan import View
from kilo.kgctl.connection import FOLLOW_AGAIN_SECONDS, Forgetful, survey_heard
from kilo.kgctl.connectpeer import FindFlags
from kilo.kgctl.meshing import find_mesh_flags
from kilo.mesh.model import Peer, Snapshot
from kilo.mesh.survey import NOBODY, make_survey


class PeerWriter(Protocol):
    """Writes the peers of one link. All methods raise ``BackendError``."""

    async def put_peer(self, peer: Peer) -> None:
        """Create the peer, or replace the one of its name if that is the link's."""
        ...

    async def delete_peer(self, name: str) -> None:
        """Delete it if it is the link's; absent is not an error."""
        ...


class FollowedService(Protocol):
    """A Service that is listed and watched while ``run`` runs."""

    @property
    def is_known(self) -> bool:
        """Whether it has been heard of, be it that it is not there."""
        ...

    @property
    def document(self) -> Document | None:
        """As it was last heard; None if there is none."""
        ...

    @property
    def error(self) -> BackendError | None:
        """Why it cannot be heard."""
        ...

    async def run(self) -> None:
        """Follow it until cancelled."""
        ...


class Services(Protocol):
    """Those of one cluster, and the mirrors that a link keeps there. All raise ``BackendError``."""

    async def read(self, name: ServiceName) -> Document | None:
        """It as it is now; None if there is none."""
        ...

    def follow(self, name: ServiceName, changed: Callable[[], None]) -> FollowedService:
        """It as it will be: ``changed`` is called when it has come, gone or changed."""
        ...

    async def list_mirrors(self) -> list[Document] | None:
        """The link's Services and EndpointSlices; None if who asks may not read any."""
        ...

    async def is_taken(self, name: ServiceName) -> bool:
        """Whether there is a Service of that name, and not the link's."""
        ...

    async def change_mirror(self, change: ObjectChange) -> None:
        """Write it, unless one that is not the link's is there, or a slice's Service is not."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """A mesh, open."""

    label: str
    backend: Backend
    flags: FindFlags
    services: tuple[ServiceName, ...]
    """Those to be mirrored at the other end."""
    peers: PeerWriter
    cluster: Services | None
    """None where it is no cluster."""

    async def look(self) -> View:
        """The mesh as the store describes it now."""
        snapshot = await self.backend.snapshot()
        survey = make_survey(snapshot, self.flags(snapshot), wall=time.time())
        return View(label=self.label, survey=survey)

    async def read_services(self) -> Mapping[ServiceName, Document | None]:
        """Those to be mirrored, as they are now; None for one that is not there."""
        cluster = self.cluster
        return {name: await cluster.read(name) for name in self.services} if cluster else {}


@asynccontextmanager
async def open_end(config: EndConfig, link: str) -> AsyncIterator[End]:
    """The mesh that flags name, closed at the end."""
    async with AsyncExitStack() as opened:
        backend = await opened.enter_async_context(open_store(config.store))
        end = End(
            label=config.label,
            backend=backend,
            flags=partial(find_mesh_flags, config.parsed),
            services=config.services,
            # There are no labels: the name says whose a peer is.
            peers=backend,
            cluster=None,
        )
        if config.store.kind == "kubernetes":
            end = await _enter_cluster(end, config.store, link, opened)
        yield end


async def _enter_cluster(end: End, store: BackendConfig, link: str, opened: AsyncExitStack) -> End:
    # Imported here: whoever links other stores need not load this one's library.
    from kilo.backends.kubernetes.client import Access, Client  # noqa: PLC0415 - see above
    from kilo.kgctl.clusterobjects import LinkedCluster  # noqa: PLC0415 - see above

    client = Client(Access(kubeconfig=store.kubeconfig, master=store.master))
    opened.push_async_callback(client.close)
    cluster = LinkedCluster(client, link)
    return replace(end, peers=cluster, cluster=cluster)


class FollowedEnd:
    """An end, its store followed and its nodes' liveness judged meanwhile."""

    def __init__(
        self, end: End, *, changed: Callable[[], None], tell: Callable[[str, list[str]], None]
    ) -> None:
        """``tell`` is given all lines of a kind that hold now."""
        self.end = end
        self._changed = changed
        self._tell = tell
        self._heard = Heard(NOBODY, Forgetful())
        self._services: dict[ServiceName, FollowedService] = {}
        if end.cluster is not None:
            self._services = {name: end.cluster.follow(name, changed) for name in end.services}

    @property
    def is_away(self) -> bool:
        """Whether its store cannot be heard."""
        return self._heard.is_away

    def look(self) -> View | None:
        """The mesh, of those nodes whose stamps change; None before the store has said anything."""
        snapshot = self._heard.snapshot
        if snapshot is None:
            return None
        self._heard.note_readiness()
        survey = survey_heard(self._heard, snapshot, self.end.flags)
        return View(label=self.end.label, survey=survey)

    def read_services(self) -> Mapping[ServiceName, Document | None] | None:
        """As they were last heard; None while that is not known of all."""
        if not all(one.is_known for one in self._services.values()):
            return None
        return {name: one.document for name, one in self._services.items()}

    def list_errors(self) -> list[str]:
        """Why Services cannot be heard."""
        return [str(one.error) for one in self._services.values() if one.error]

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_store())
            group.create_task(self._follow_readiness())
            for one in self._services.values():
                group.create_task(one.run())

    async def _follow_store(self) -> None:
        while True:
            try:
                async for item in self.end.backend.watch():
                    self._hear(item)
            except BackendError as error:
                self._lose(error)
            await asyncio.sleep(FOLLOW_AGAIN_SECONDS)

    def _hear(self, item: Snapshot | BackendError) -> None:
        believed = item if isinstance(item, BackendError) else self._heard.weigh(item)
        if isinstance(believed, BackendError):
            self._lose(believed)
            return
        was_away = self._heard.is_away
        self._tell(
            f"store {self.end.label}",
            [f"{self.end.label}: {why}" for why in believed.away.values()],
        )
        # What could not be written while it was away is due now.
        if self._heard.hear(believed, None) or was_away:
            self._changed()

    def _lose(self, error: BackendError) -> None:
        self._heard.lose()
        self._tell(
            f"store {self.end.label}", [f"{self.end.label}: the link stays as it is there: {error}"]
        )

    async def _follow_readiness(self) -> None:
        while True:
            await self._heard.wait_for_silence()
            if self._heard.first_answer.is_set() and self._heard.has_new_readiness():
                self._changed()
