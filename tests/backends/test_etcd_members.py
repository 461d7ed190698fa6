"""Members that die, freeze and lose each other, and what becomes of requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kilo.backends.etcd.asks import follow_prefix, get, grant, put, transact
from kilo.backends.etcd.client import Client
from kilo.backends.etcd.failures import EtcdError
from tests.backends.etcds import (
    KEY,
    Etcd,
    connect,
    connected,
    hear_failure,
    running_cluster,
    share_etcd,
    succeeds,
)
from tests.backends.fakeapi import until
from tests.backends.following import LIMIT_SECONDS
from tests.cluster.relay import Relay


def url_of(relay: Relay) -> str:
    return f"http://127.0.0.1:{relay.port}"


@pytest.fixture
async def two_ways() -> AsyncIterator[tuple[Relay, Relay]]:
    """Two endpoints of one store, either of which may be broken."""
    port = share_etcd().port
    with Relay(port=port) as one, Relay(port=port) as other:
        yield one, other


@asynccontextmanager
async def using_both(ways: tuple[Relay, Relay]) -> AsyncIterator[tuple[Client, Relay, Relay]]:
    """A client of both, the one that it is connected to, and the other."""
    async with connected(*map(url_of, ways)) as client:
        await client.call(get(KEY))
        assert client._current is not None
        used, other = sorted(ways, key=lambda way: way.port != client._current.endpoint.port)  # type: ignore[union-attr]  # it has one
        yield client, used, other


async def test_another_member_is_asked_where_one_is_dead(two_ways: tuple[Relay, Relay]) -> None:
    async with using_both(two_ways) as (client, used, other):
        used.refuse()
        await client.call(get(KEY))
        used.resume()
        other.refuse()
        await client.call(get(KEY))


async def test_a_frozen_member_costs_seconds_once(two_ways: tuple[Relay, Relay]) -> None:
    loop = asyncio.get_running_loop()
    async with using_both(two_ways) as (client, used, _):
        used.freeze()
        began_at = loop.time()
        await client.call(get(KEY))
        assert 1.0 < loop.time() - began_at < 9.0
        began_at = loop.time()
        for _ in range(20):
            await client.call(get(KEY))
        assert loop.time() - began_at < 3.0
        used.resume()


async def test_streams_of_a_member_that_is_given_up_break_and_open_elsewhere(
    two_ways: tuple[Relay, Relay],
) -> None:
    async with using_both(two_ways) as (client, used, _):
        stream = client.stream(follow_prefix("/elsewhere/", after_revision=0))
        await anext(stream)
        used.freeze()
        await client.call(put("/elsewhere/a", b"x"))
        with pytest.raises(EtcdError, match="the connection was closed"):
            async with asyncio.timeout(LIMIT_SECONDS):
                await anext(stream)
        again = client.stream(follow_prefix("/elsewhere/", after_revision=0))
        assert (await anext(again)).created
        used.resume()


async def test_a_stream_on_a_frozen_member_breaks_though_nobody_asks(tmp_path: Path) -> None:
    with Etcd(tmp_path) as etcd:
        async with connected(etcd.url) as client:
            stream = client.stream(follow_prefix("/kilo/", after_revision=0))
            await anext(stream)
            etcd.freeze()
            with pytest.raises(EtcdError, match="the member does not answer any more"):
                async with asyncio.timeout(2 * LIMIT_SECONDS):
                    await anext(stream)


async def test_where_no_member_answers_all_are_named_in_their_order() -> None:
    texts = set()
    for _ in range(8):  # whichever comes first
        texts.add(await hear_failure("http://127.0.0.1:9", "http://127.0.0.1:10"))
    (text,) = texts
    assert text == (
        f"etcd: get {KEY}: http://127.0.0.1:9: connection refused;"
        " http://127.0.0.1:10: connection refused"
    )


@pytest.mark.parametrize("host", ["etcd..example", "x" * 64])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_name_that_no_host_can_have_is_one_line(scheme: str, host: str) -> None:
    url = f"{scheme}://{host}:2379"
    assert await hear_failure(url) == (
        f"etcd {url}: get {KEY}: cannot resolve {host}: is no name of a host"
    )


async def test_what_may_have_been_carried_out_is_asked_of_another_member(
    two_ways: tuple[Relay, Relay],
) -> None:
    async with using_both(two_ways) as (client, used, unused):
        for way in two_ways:
            way.freeze()  # whether a request has been heard behind it nobody can tell
        ask = transact(when=[], then=[put("/unclear", b"x")])
        with pytest.raises(EtcdError) as caught:
            await client.call(ask)
        assert url_of(used) in str(caught.value)
        assert url_of(unused) in str(caught.value)


async def test_what_was_never_sent_is_asked_of_another_member_in_any_case(
    two_ways: tuple[Relay, Relay],
) -> None:
    async with using_both(two_ways) as (client, used, _):
        used.refuse()
        await until(lambda: has_noticed(client))
        await client.call(transact(when=[], then=[put("/sent/a", b"x")]))


async def has_noticed(client: Client) -> bool:
    """gRPC learns a moment later that its connection is gone."""
    channel: Any = client._current and client._current._channel
    return bool(channel.get_state().name != "READY")


async def test_a_member_that_lost_its_cluster_cuts_the_watch(tmp_path: Path) -> None:
    with running_cluster(tmp_path, 3) as members:
        client = connect(members[0].url)
        stream = client.stream(follow_prefix("/kilo/", after_revision=0))
        await anext(stream)
        for member in members[1:]:
            member.stop()
        with pytest.raises(EtcdError, match="no leader"):
            async with asyncio.timeout(LIMIT_SECONDS):
                await anext(stream)
        await client.close()


async def test_any_member_killed_or_frozen_leaves_the_store_usable(tmp_path: Path) -> None:
    with running_cluster(tmp_path, 3) as members:
        client = connect(*(one.url for one in members))
        for number, member in enumerate(members):
            (member.stop, member.freeze)[number % 2]()
            async with asyncio.timeout(LIMIT_SECONDS):
                while not await succeeds(client, put(KEY, b"%d" % number)):
                    pass
            assert (await client.call(get(KEY))).kvs[0].value == b"%d" % number
            (member.start, member.thaw)[number % 2]()
        await client.close()


async def test_closing_ends_what_is_under_way_in_one_line(tmp_path: Path) -> None:
    with Etcd(tmp_path) as etcd:
        client = connect(etcd.url)
        stream = client.stream(follow_prefix("/kilo/", after_revision=0))
        await anext(stream)
        etcd.freeze()
        calls = [
            asyncio.ensure_future(client.call(grant(60))),
            asyncio.ensure_future(anext(stream)),
        ]
        await asyncio.sleep(0)
        await client.close()
        await client.close()
        for call in calls:
            with pytest.raises(EtcdError, match="closed"):
                async with asyncio.timeout(LIMIT_SECONDS):
                    await call
        with pytest.raises(EtcdError, match="the client is closed"):
            await client.call(get(KEY))


def test_what_is_asked_shows_no_value() -> None:
    assert "secret" not in repr(put(KEY, b"secret"))
