"""How an etcd is listed and followed, through compactions, cuts and restores."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilo.backends.documents import make_node_document, make_report_document
from kilo.backends.etcd.asks import delete, put, transact
from kilo.backends.etcd.backend import EtcdBackend
from kilo.backends.etcd.client import Client
from kilo.backends.etcd.keys import Keys
from kilo.backends.etcd.source import PAGE, KeySource
from kilo.backends.source import Delete, Event, ExpiredError, Opened, Put
from kilo.errors import BackendError
from kilo.mesh.model import NodeSpec
from tests.backends.etcds import Etcd, connect, connected
from tests.backends.following import LIMIT_SECONDS, Follower, names, texts
from tests.builders import make_peer, make_report
from tests.cluster.relay import Relay

KEYS = Keys("/kilo/")


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Etcd]:
    """One of its own: what is done to it is done to all of it."""
    with Etcd(tmp_path) as one:
        yield one


@pytest.fixture
async def client(etcd: Etcd) -> AsyncIterator[Client]:
    one = connect(etcd.url)
    yield one
    await one.close()


@pytest.fixture
async def backend(etcd: Etcd) -> AsyncIterator[EtcdBackend]:
    one = EtcdBackend(connect(etcd.url), KEYS)
    yield one
    await one.close()


def make_node(name: str, location: str = "") -> bytes:
    return json.dumps(make_node_document(name, NodeSpec(location=location))).encode()


async def put_nodes(client: Client, count: int) -> list[str]:
    found = [f"n{number:04}" for number in range(count)]
    await asyncio.gather(*(client.call(put(KEYS.node(name), make_node(name))) for name in found))
    return found


async def take(source: KeySource, revision: str, count: int) -> list[Event[object]]:
    """So many events of a watch."""
    events: list[Event[object]] = []
    async with asyncio.timeout(LIMIT_SECONDS):
        async for event in source.watch(revision, {}):
            events.append(event)
            if len(events) == count:
                break
    return events


async def test_more_keys_than_a_page_holds_are_listed_as_they_were_at_one_moment(
    client: Client,
) -> None:
    found = await put_nodes(client, 2 * PAGE + 1)
    source = KeySource(client, KEYS)
    stop = asyncio.Event()

    async def disturb() -> None:
        """Give all nodes the same new location in one transaction, again and again."""
        number = 0
        while not stop.is_set():
            number += 1
            puts = [put(KEYS.node(name), make_node(name, f"place-{number}")) for name in found[::3]]
            await client.call(transact(when=[], then=puts))

    async with asyncio.TaskGroup() as group:
        group.create_task(disturb())
        for _ in range(20):
            listing = await source.list({})
            nodes = [item.value.part.nodes[0] for item in listing.items.values()]
            assert [node.name for node in nodes] == found
            assert len({node.spec.location for node in nodes[::3]}) == 1
        stop.set()


async def test_keys_of_others_that_begin_alike_are_not_listed(client: Client) -> None:
    for key in ("/kilo", "/kilo-other/nodes/a1", "/kilo0", "/kil"):
        await client.call(put(key, b"x"))
    listing = await KeySource(client, KEYS).list({})
    assert listing.items == {}


async def test_what_is_held_and_unchanged_stays_the_very_same(client: Client) -> None:
    await put_nodes(client, 3)
    source = KeySource(client, KEYS)
    held = (await source.list({})).items
    await client.call(put(KEYS.node("n0001"), make_node("n0001", "oregon")))
    again = (await source.list(held)).items
    assert [again[key] is held[key] for key in sorted(held)] == [True, False, True]


async def test_a_revision_that_comes_again_with_another_value_is_read_anew(etcd: Etcd) -> None:
    key = KEYS.node("a1")
    etcd.ctl("snapshot", "save", str(etcd.directory / "backup.db"))
    etcd.ctl("put", key, text=make_node("a1", "before").decode())
    async with connected(etcd.url) as client:
        held = (await KeySource(client, KEYS).list({})).items
    etcd.stop()
    etcd.restore(etcd.directory / "backup.db")
    etcd.start()
    etcd.ctl("put", key, text=make_node("a1", "since").decode())
    noted: list[str] = []
    async with connected(etcd.url) as client:
        again = (await KeySource(client, KEYS, note_change=noted.append).list(held)).items
    assert again[key].revision == held[key].revision
    assert again[key].value.part.nodes[0].spec.location == "since"
    assert noted == [key]


async def test_a_watch_tells_each_change_since_its_revision_once_and_in_order(
    client: Client,
) -> None:
    source = KeySource(client, KEYS)
    revision = (await source.list({})).revision
    one, other = KEYS.node("a1"), KEYS.node("b1")
    await client.call(put(one, make_node("a1")))
    await client.call(transact(when=[], then=[put(one, make_node("a1", "x")), put(other, b"{")]))
    await client.call(put("/elsewhere", b"x"))
    await client.call(delete(one))
    opened, *events = await take(source, revision, 5)
    assert opened == Opened()
    at = int(revision)
    shown = [
        (type(event).__name__, event.key, getattr(event, "revision", "") or event.item.revision)  # type: ignore[union-attr]  # Puts and a Delete
        for event in events
    ]
    assert shown == [
        ("Put", one, str(at + 1)),
        ("Put", one, str(at + 2)),
        ("Put", other, str(at + 2)),
        ("Delete", one, str(at + 4)),
    ]
    assert isinstance(events[0], Put)
    assert isinstance(events[-1], Delete)


async def test_a_watch_behind_a_compaction_has_expired(etcd: Etcd, client: Client) -> None:
    source = KeySource(client, KEYS)
    revision = (await source.list({})).revision
    await put_nodes(client, 3)
    etcd.compact()
    with pytest.raises(ExpiredError):
        await take(source, revision, 5)


async def test_a_list_whose_revision_is_compacted_between_two_pages_is_begun_anew(
    etcd: Etcd, client: Client
) -> None:
    found = await put_nodes(client, 2 * PAGE)
    pages = 0

    def compact_after_the_first(_key: str) -> None:
        nonlocal pages
        pages += 1
        if pages == PAGE:  # the last key of the first page
            etcd.ctl("put", "/other", "x")
            etcd.compact()

    source = KeySource(client, KEYS, note_change=compact_after_the_first)
    listing = await source.list({})
    assert len(listing.items) == len(found)
    assert pages == 3 * PAGE


async def test_a_probe_shows_the_revisions_of_reports(client: Client) -> None:
    source = KeySource(client, KEYS)
    document = json.dumps(make_report_document(make_report("a1"), last_seen=7)).encode()
    await client.call(put(KEYS.node("a1"), make_node("a1")))
    answer = await client.call(put(KEYS.report("a1"), document))
    await client.call(put("/other", b"x"))
    probe = await source.probe()
    assert probe.revisions == {KEYS.report("a1"): str(answer.header.revision)}
    assert int(probe.revision) == answer.header.revision + 1
    assert probe.revisions.keys() <= (await source.list({})).items.keys()


async def test_a_change_is_noted_for_who_asked_to_know(client: Client) -> None:
    noted: list[str] = []
    source = KeySource(client, KEYS, note_change=noted.append)
    await client.call(put(KEYS.node("a1"), make_node("a1")))
    listing = await source.list({})
    assert noted == [KEYS.node("a1")]
    await source.list(listing.items)
    assert noted == [KEYS.node("a1")]
    await client.call(delete(KEYS.node("a1")))
    await source.list(listing.items)
    await take(source, listing.revision, 2)
    assert noted == [KEYS.node("a1")] * 3


# Whole watches


async def test_nothing_is_missed_by_a_watch_that_is_cut_while_history_is_compacted(
    etcd: Etcd, client: Client
) -> None:
    with Relay(port=etcd.port) as relay:
        backend = EtcdBackend(connect(f"http://127.0.0.1:{relay.port}"), KEYS)
        for name in ("stays", "goes"):
            await backend.put_peer(make_peer(name))
        follower = Follower(backend)
        await follower.until(lambda snapshot: names(snapshot) == ["goes", "stays"])
        relay.refuse()
        await follower.until_error()
        operator = EtcdBackend(client, KEYS)
        await operator.delete_peer("goes")
        await operator.put_peer(make_peer("comes", "10.5.0.2/32"))
        etcd.compact()
        relay.resume()
        await follower.until(lambda snapshot: names(snapshot) == ["comes", "stays"])
        await operator.put_peer(make_peer("later", "10.5.0.3/32"))
        await follower.until(lambda snapshot: names(snapshot) == ["comes", "later", "stays"])
        await backend.close()


async def test_a_watch_goes_on_through_a_restart(etcd: Etcd, backend: EtcdBackend) -> None:
    await backend.put_peer(make_peer("squat"))
    follower = Follower(backend)
    await follower.next()
    etcd.stop()
    assert "connection" in str(await follower.until_error())
    etcd.start()
    await follower.until(lambda snapshot: names(snapshot) == ["squat"])
    await backend.put_peer(make_peer("tom", "10.5.0.2/32"))
    await follower.until(lambda snapshot: names(snapshot) == ["squat", "tom"])


async def test_a_store_put_back_to_an_older_state_is_noticed(
    etcd: Etcd, backend: EtcdBackend
) -> None:
    await backend.put_peer(make_peer("old"))
    etcd.ctl("snapshot", "save", str(etcd.directory / "backup.db"))
    for number in range(20):
        await backend.put_peer(make_peer("new", f"10.5.0.{number}/32"))
    follower = Follower(backend)
    await follower.until(lambda snapshot: names(snapshot) == ["new", "old"])
    etcd.stop()
    await follower.until_error()
    etcd.restore(etcd.directory / "backup.db")
    etcd.start()
    await follower.until(lambda snapshot: names(snapshot) == ["old"])
    await backend.put_peer(make_peer("tom", "10.5.0.2/32"))
    await follower.until(lambda snapshot: names(snapshot) == ["old", "tom"])


async def test_garbage_is_named_once_and_harms_nothing(etcd: Etcd, backend: EtcdBackend) -> None:
    client = connect(etcd.url)
    await backend.put_peer(make_peer("squat"))
    follower = Follower(backend)
    await follower.next()
    garbage = {
        "/kilo/nodes/binary": b"\xff\x00\xfe",
        "/kilo/peers/huge": b"x" * (2**20),
        "/kilo/nodes/kind": json.dumps({"kind": "Pod"}).encode(),
        "/kilo/pods/other": b"{}",
        "/kilo/nodes/\udcff\n": b"{}",
    }
    for key, value in garbage.items():
        await client.call(put(key, value))
    await follower.until(lambda snapshot: len(snapshot.problems) == len(garbage))
    for key, value in garbage.items():
        await client.call(put(key, value))  # as before: no news
    await backend.put_peer(make_peer("tom", "10.5.0.2/32"))
    last = await follower.until(lambda snapshot: names(snapshot) == ["squat", "tom"])
    assert len(last.problems) == len(garbage)
    assert all(text.isprintable() for text in texts(last))
    assert not [one for one in follower.said if isinstance(one, BackendError)]
    await client.close()


async def test_a_heartbeat_leaves_every_node_the_very_same_value(
    etcd: Etcd, backend: EtcdBackend
) -> None:
    for name in ("a1", "b1"):
        await backend.publish(make_report(name))
    follower = Follower(backend)
    before = await follower.until(lambda snapshot: len(snapshot.last_seen) == 2)
    clock = EtcdBackend(connect(etcd.url), KEYS, wall_clock=lambda: 5_000_000_000)
    await clock.publish(make_report("a1"))
    after = await follower.until(lambda snapshot: snapshot.last_seen != before.last_seen)
    assert after.nodes is before.nodes
    await clock.close()
