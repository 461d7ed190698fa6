"""Three collections told as one stream of snapshots, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from kilo.backends.entries import Entry
from kilo.backends.kubernetes.entries import decode_node, decode_peer
from kilo.backends.source import Event, Item, Listing, Opened, Probe, Put
from kilo.backends.watching import StoreWatch
from kilo.errors import BackendError
from kilo.mesh.model import Snapshot
from tests.backends.virtualtime import in_virtual_time, now
from tests.builders import make_key

PREFIX = "kilo.squat.ai/"


class Feed:
    """Objects of one kind, as a test puts them. Implements ``Source``."""

    def __init__(self) -> None:
        self.items: dict[str, Item[Entry]] = {}
        self.trouble: BaseException | None = None
        self._revision = 1
        self._told: asyncio.Queue[Event[Entry] | None] = asyncio.Queue()

    def put(self, key: str, entry: Entry) -> None:
        self._revision += 1
        self.items[key] = Item(value=entry, revision=str(self._revision))
        self._told.put_nowait(Put(key, self.items[key]))

    def break_down(self, trouble: BaseException) -> None:
        self.trouble = trouble
        self._told.put_nowait(None)

    def check_in(self, name: str, stamp: int) -> None:
        self.put(name, make_entry(name, stamp, self.items.get(name)))

    async def list(self, held: Mapping[str, Item[Entry]]) -> Listing[Entry]:  # noqa: ARG002 - nothing to decode
        self._answer()
        return Listing(items=dict(self.items), revision=str(self._revision))

    async def probe(self) -> Probe:
        self._answer()
        return Probe(revision=str(self._revision), revisions={})

    async def watch(
        self,
        revision: str,  # noqa: ARG002 - the queue knows what was told
        held: Mapping[str, Item[Entry]],  # noqa: ARG002 - nothing to decode
    ) -> AsyncGenerator[Event[Entry], None]:
        self._answer()
        yield Opened()
        while event := await self._told.get():
            yield event
        self._answer()

    def _answer(self) -> None:
        if self.trouble:
            raise self.trouble


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    nodes: Feed
    peers: Feed
    settings: Feed

    @property
    def feeds(self) -> dict[str, Feed]:
        return {"nodes": self.nodes, "peers": self.peers, "settings": self.settings}


def make_entry(name: str, stamp: int, held: Item[Entry] | None = None, **more: str) -> Entry:
    annotations = {"key": str(make_key(name)), "last-seen": str(stamp)} | more
    document: dict[str, Any] = {
        "metadata": {
            "name": name,
            "annotations": {f"{PREFIX}{key}": value for key, value in annotations.items()},
        },
        "spec": {},
    }
    return decode_node(document, held.value if held else None, topology_label="region")


class Told:
    """All that a watch says, and when."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[float, Snapshot | BackendError]] = []

    async def take(self, watch: StoreWatch) -> None:
        async for outcome in watch.follow():
            self.outcomes.append((now(), outcome))

    @property
    def last(self) -> Snapshot | BackendError:
        return self.outcomes[-1][1]


@asynccontextmanager
async def watching(cluster: Cluster) -> AsyncIterator[Told]:
    told = Told()
    watch = StoreWatch(cluster.feeds)
    task = asyncio.ensure_future(told.take(watch))
    await asyncio.sleep(1.0)
    yield told
    await watch.stop()
    await task


def make_cluster() -> Cluster:
    return Cluster(nodes=Feed(), peers=Feed(), settings=Feed())


@in_virtual_time
async def test_heartbeats_are_told_once_a_second_and_the_last_one_is() -> None:
    cluster = make_cluster()
    for number in range(100):
        cluster.nodes.check_in(f"n{number}", 0)
    async with watching(cluster) as told:
        for beat in range(1, 601):
            cluster.nodes.check_in(f"n{beat % 100}", beat)
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.1)
        assert 50 <= len(told.outcomes) <= 63
        last = told.last
        assert isinstance(last, Snapshot)
        assert sorted(last.last_seen.values()) == list(range(501, 601))
        first = told.outcomes[0][1]
        assert isinstance(first, Snapshot)
        assert last.nodes is first.nodes


@in_virtual_time
async def test_a_change_is_told_at_once_amid_heartbeats() -> None:
    cluster = make_cluster()
    cluster.nodes.check_in("a", 0)
    async with watching(cluster) as told:
        cluster.nodes.check_in("a", 1)
        await asyncio.sleep(0.3)
        count = len(told.outcomes)
        cluster.nodes.put("a", make_entry("a", 1, location="oregon"))
        await asyncio.sleep(0.05)
        assert len(told.outcomes) == count + 1
        assert isinstance(told.last, Snapshot)
        assert told.last.nodes[0].spec.location == "oregon"


@in_virtual_time
async def test_a_burst_of_changes_is_told_as_one_and_held_for_no_longer_than_a_moment() -> None:
    cluster = make_cluster()
    async with watching(cluster) as told:
        for number in range(300):
            cluster.nodes.check_in(f"n{number}", 0)
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert isinstance(told.last, Snapshot)
        assert len(told.last.nodes) == 300
        assert 3.0 / 0.3 <= len(told.outcomes) <= 3.0 / 0.25 + 3


@in_virtual_time
async def test_nothing_is_told_before_all_is_listed() -> None:
    cluster = make_cluster()
    cluster.nodes.check_in("a", 0)
    cluster.peers.trouble = BackendError("404 for a moment")
    async with watching(cluster) as told:
        assert told.outcomes == []
        cluster.peers.trouble = None
        await asyncio.sleep(5)
        assert len(told.outcomes) == 1


@in_virtual_time
async def test_an_outage_is_told_once_and_its_end_with_the_stamps_of_then() -> None:
    cluster = make_cluster()
    feeds = (cluster.nodes, cluster.peers, cluster.settings)
    cluster.nodes.check_in("a", 0)
    async with watching(cluster) as told:
        for feed in feeds:
            feed.break_down(BackendError("refused"))
        await asyncio.sleep(300)
        cluster.nodes.check_in("a", 7)
        for feed in feeds:
            feed.trouble = None
        await asyncio.sleep(10)
        before, error, *after = (outcome for _, outcome in told.outcomes)
        assert str(error) == "refused"
        assert after[-1] == before
        assert isinstance(told.last, Snapshot)
        assert told.last.last_seen == {"a": 7}


@in_virtual_time
async def test_peers_that_cannot_be_heard_for_long_are_an_outage_too() -> None:
    cluster = make_cluster()
    async with watching(cluster) as told:
        cluster.peers.break_down(BackendError("peers is forbidden"))
        await asyncio.sleep(20)
        assert str(told.last) == "peers is forbidden"
        cluster.peers.trouble = None
        await asyncio.sleep(10)
        assert isinstance(told.last, Snapshot)


@in_virtual_time
async def test_a_bug_is_not_an_outage() -> None:
    cluster = make_cluster()
    cluster.nodes.trouble = ZeroDivisionError()
    with pytest.raises(ExceptionGroup) as caught:
        await Told().take(StoreWatch(cluster.feeds))
    assert caught.group_contains(ZeroDivisionError)


def test_a_preshared_key_is_in_no_repr() -> None:
    secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I="
    spec = {"publicKey": "x", "presharedKey": secret, "allowedIPs": ["10.5.0.1/32"]}
    entry = decode_peer({"metadata": {"name": "squat"}, "spec": spec}, None)
    assert secret not in repr(entry)
