"""Remarks where operators of a cluster look for them: as Events, and in the status of Peers.

An Event is named after what it says, so that it is there once however many agents tell it and
however often. The server forgets Events after an hour; what still holds is told again. All is
done at leisure and by few calls, for nothing in the mesh waits for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kilo.backends.documents import API_VERSION, is_object_name
from kilo.backends.kubernetes.client import MERGE_PATCH, ApiError, Client
from kilo.backends.kubernetes.peerstatus import (
    Handshake,
    PeerNews,
    cut,
    format_time,
    make_status_patch,
)
from kilo.backends.kubernetes.settings import SETTINGS_NAME
from kilo.backends.kubernetes.sources import FORBIDDEN, NOT_FOUND, PEERS, expecting_kubernetes
from kilo.log import get_logger
from kilo.mesh.remarks import Remark, Remarks

CALL_SECONDS = 0.1
"""At least so long from one call to the next."""
FORGET_SECONDS = 600.0
"""How long what was told counts as told, and a server that refuses is not asked again."""
MOST_EVENTS, MOST_EVENTS_OF_ONE = 500, 50
"""Made in that time, and of one object: a value that is wrong in another way every second is a
new Event every time."""
MOST_COMPLAINTS = 500
"""In the life of an agent; it remembers each, to say it once."""
FEW_PEERS = 3
"""So many are read one by one; more by a list of all."""
PAGE = 100
"""Peers in one answer; the size of each is bounded by etcd only, at 1.5 MB."""
CONFLICT = 409
NOT_TAKEN = (400, 413, 422)
"""HTTP's for what is wrong with this one object, and would be wrong again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The object that an Event is about."""

    api_version: str
    kind: str
    name: str
    namespace: str = ""
    """Empty for objects of the whole cluster."""
    uid: str = ""

    def refer(self) -> dict[str, str]:
        """As an Event's ``involvedObject``."""
        optional = {"namespace": self.namespace, "uid": self.uid}
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "name": self.name,
            **{name: value for name, value in optional.items() if value},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenPeer:
    """A Peer as the server has it, without what is secret."""

    uid: str
    status: object


class Remarker:
    """Writes what was not written yet; remembers it for ``FORGET_SECONDS``.

    What the server has no place for (an older CustomResourceDefinition, a ClusterRole without
    these verbs) is said once in the log and done without.
    """

    def __init__(
        self,
        client: Client,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._clock = clock
        self._wall_clock = wall_clock
        self._log = get_logger("remarks")
        self._told_events: set[Remark] = set()
        self._made_events: Counter[str] = Counter()
        """By object."""
        self._told_peers: dict[str, PeerNews] = {}
        self._closed: set[str] = set()
        self._complaints: set[str] = set()
        self._forget_at = clock() + FORGET_SECONDS
        self._next_call_at = clock()

    async def remark(self, remarks: Remarks) -> None:
        """Bring the cluster up to them. ``BackendError`` if it cannot be used now; what has been
        written by then is not written again.
        """
        self._forget(remarks)
        events = self._choose_events(remarks.remarks)
        news = self._choose_news(remarks)
        names = {one.object.partition(" ")[2] for one in events if one.object.startswith("Peer ")}
        peers = await self._read_peers(sorted(names | news.keys()))
        for name, one in news.items():
            if "status" not in self._closed:
                await self._update(name, peers.get(name), one)
        for event in events:
            if "events" not in self._closed:
                await self._tell(event, peers, node=remarks.node)

    # What there is to do.

    def _forget(self, remarks: Remarks) -> None:
        if self._clock() >= self._forget_at:
            self._told_events.clear()
            self._made_events.clear()
            self._told_peers.clear()
            self._closed.clear()
            self._forget_at = self._clock() + FORGET_SECONDS
        self._told_events.intersection_update(remarks.remarks)
        for name in self._told_peers.keys() - remarks.peers.keys() - remarks.handshakes.keys():
            del self._told_peers[name]

    def _choose_events(self, remarks: Sequence[Remark]) -> list[Remark]:
        if "events" in self._closed:
            return []
        more = len(remarks) - MOST_EVENTS
        self._complain("limit", f"{more} more remarks are not shown as Events" if more > 0 else "")
        return [remark for remark in remarks[:MOST_EVENTS] if remark not in self._told_events]

    def _choose_news(self, remarks: Remarks) -> dict[str, PeerNews]:
        if "status" in self._closed:
            return {}
        news = {
            name: _make_news(remarks, name)
            for name in sorted(remarks.peers.keys() | remarks.handshakes.keys())
            if is_object_name(name)
        }
        return {name: one for name, one in news.items() if self._told_peers.get(name) != one}

    # Peers.

    async def _read_peers(self, names: Sequence[str]) -> dict[str, SeenPeer]:
        """Those of these names that there are, and perhaps others."""
        if not names or "peers" in self._closed:
            return {}
        try:
            if len(names) > FEW_PEERS:
                return await self._list_peers({})
            found: dict[str, SeenPeer] = {}
            for name in filter(is_object_name, names):
                found |= await self._list_peers({"fieldSelector": f"metadata.name={name}"})
        except ApiError as error:
            self._close_or_raise("peers", error)
            return {}
        return found

    async def _list_peers(self, query: Mapping[str, str]) -> dict[str, SeenPeer]:
        found: dict[str, SeenPeer] = {}
        token = ""
        while True:
            page = {"limit": str(PAGE), **query} | ({"continue": token} if token else {})
            answer = await self._call("GET", PEERS, query=page)
            with expecting_kubernetes():
                for peer in answer["items"] or ():
                    uid = str(peer["metadata"]["uid"])
                    found[peer["metadata"]["name"]] = SeenPeer(uid=uid, status=peer.get("status"))
                token = answer["metadata"].get("continue") or ""
            if not token:
                return found

    async def _update(self, name: str, peer: SeenPeer | None, news: PeerNews) -> None:
        """A Peer that is gone meanwhile needs no status."""
        patch = {}
        if peer is not None:
            patch = make_status_patch(peer.status, news, now=int(self._wall_clock()))
        if not patch or await self._patch_status(name, patch):
            self._told_peers[name] = news

    async def _patch_status(self, name: str, patch: Mapping[str, object]) -> bool:
        path = f"{PEERS}/{name}/status"
        try:
            await self._call("PATCH", path, body=patch, content_type=MERGE_PATCH)
        except ApiError as error:
            if error.status == NOT_FOUND and not await self._read_peers([name]):
                return True
            return self._pass_over("status", f"Peer {name}", error)
        self._complain("status", "")
        return True

    # Events.

    async def _tell(self, remark: Remark, peers: Mapping[str, SeenPeer], *, node: str) -> None:
        if self._has_had_enough(remark.object):
            return
        target = await self._find_target(remark.object, peers)
        if target is not None:
            now = format_time(int(self._wall_clock()))
            event = make_event(target, remark, node=node, now=now)
            if not await self._create_event(event, about=remark.object):
                return
        self._told_events.add(remark)

    def _has_had_enough(self, name: str) -> bool:
        """Whether it, or all objects together, have so many new Events that more must wait."""
        if self._made_events.total() >= MOST_EVENTS:
            name, most = "all objects", MOST_EVENTS
        elif self._made_events[name] >= MOST_EVENTS_OF_ONE:
            most = MOST_EVENTS_OF_ONE
        else:
            return False
        text = f"{most} Events were made within {FORGET_SECONDS / 60:g} minutes; more must wait"
        self._complain(f"Events on {name}", text)
        return True

    async def _find_target(self, text: str, peers: Mapping[str, SeenPeer]) -> Target | None:
        """None for what is no object of a cluster, and for a Peer that is gone meanwhile."""
        kind, _, name = text.partition(" ")
        if kind == "Settings" or text == f"ConfigMap {SETTINGS_NAME}":
            return await self._find_settings()
        if not is_object_name(name):
            return None
        if kind == "Node":
            # Its name for a uid, as the kubelet has it: `kubectl describe node` asks for both.
            return Target(api_version="v1", kind=kind, name=name, uid=name)
        if kind != "Peer" or (name not in peers and "peers" not in self._closed):
            return None
        # `kubectl describe` asks for Events by the uid.
        uid = peers[name].uid if name in peers else ""
        return Target(api_version=API_VERSION, kind=kind, name=name, uid=uid)

    async def _find_settings(self) -> Target:
        namespace = self._client.namespace
        path = f"/api/v1/namespaces/{namespace}/configmaps/{SETTINGS_NAME}"
        try:
            answer = await self._call("GET", path)
            with expecting_kubernetes():
                uid = str(answer["metadata"]["uid"])
        except ApiError as error:
            if error.status not in (FORBIDDEN, NOT_FOUND):
                raise
            uid = ""
        return Target(
            api_version="v1", kind="ConfigMap", name=SETTINGS_NAME, namespace=namespace, uid=uid
        )

    async def _create_event(self, event: Mapping[str, Any], *, about: str) -> bool:
        path = f"/api/v1/namespaces/{event['metadata']['namespace']}/events"
        try:
            await self._call("POST", path, body=event)
        except ApiError as error:
            if error.status != CONFLICT:
                return self._pass_over("events", event["metadata"]["name"], error)
        else:
            self._made_events[about] += 1
        self._complain("events", "")
        return True

    # Calls, and what becomes of them.

    async def _call(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        pause = self._next_call_at - self._clock()
        self._next_call_at = max(self._clock(), self._next_call_at) + CALL_SECONDS
        await asyncio.sleep(pause)
        return await self._client.call(method, path, **how)

    def _pass_over(self, channel: str, what: str, error: ApiError) -> bool:
        """Whether this one object counts as told, for it would never be taken."""
        if error.status in NOT_TAKEN:
            self._complain(what, str(error))
            return True
        self._close_or_raise(channel, error)
        return False

    def _close_or_raise(self, channel: str, error: ApiError) -> None:
        """For a while no more of that kind, where there is no place for it."""
        if error.status not in (FORBIDDEN, NOT_FOUND):
            raise error
        self._closed.add(channel)
        self._complain(channel, str(error))

    def _complain(self, what: str, text: str) -> None:
        """Say it if nothing has been said of this since it last went well (an empty text)."""
        if not text:
            self._complaints.discard(what)
        elif what not in self._complaints and len(self._complaints) < MOST_COMPLAINTS:
            self._complaints.add(what)
            self._log.warning("remarks not shown", what=what, detail=text)


def _make_news(remarks: Remarks, name: str) -> PeerNews:
    at = remarks.handshakes.get(name)
    return PeerNews(
        standing=remarks.peers.get(name),
        handshake=None if at is None else Handshake(node=remarks.node, at=at),
    )


def make_event(target: Target, remark: Remark, *, node: str, now: str) -> dict[str, Any]:
    """The Event, ``v1``: of the node ``node``, at ``now`` (RFC 3339).

    It stands in the namespace of its object, those of the whole cluster in ``default``.
    """
    identity = (target.kind, target.name, target.uid, remark.reason, remark.message)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{target.name[:200].rstrip('.-')}.{_hash(identity)}",
            "namespace": target.namespace or "default",
        },
        "involvedObject": target.refer(),
        "type": "Warning",
        "reason": str(remark.reason),
        "message": cut(remark.message),
        "source": {"component": "kilo", "host": node},
        "reportingComponent": "kilo",
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _hash(parts: Iterable[str]) -> str:
    """The same on every agent of every release."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
