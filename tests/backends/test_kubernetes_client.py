"""The HTTP client against a server that answers whatever the test likes."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
from contextlib import aclosing
from pathlib import Path

import pytest
from aiohttp import web

from kilo import __version__
from kilo.backends.kubernetes.client import MERGE_PATCH, Access, ApiError, Client
from kilo.backends.kubernetes.connection import Ask, Connection
from kilo.backends.kubernetes.credentials import Credentials
from tests.backends.fakeapi import (
    NODES,
    FakeApi,
    answer,
    collect,
    connect,
    fail,
    keep_silent,
    make_kubeconfig,
    open_stream,
    refuse,
    stream,
    until,
)
from tests.backends.following import LIMIT_SECONDS

# Requests


async def test_a_call_says_who_asks_and_what_it_takes(client: Client, api: FakeApi) -> None:
    api.handler = answer({"items": [1]})
    assert await client.call("GET", NODES, query={"limit": "500", "continue": "a+/= &"}) == {
        "items": [1]
    }
    asked = api.asked[-1]
    assert (asked.method, asked.path, asked.query) == (
        "GET",
        NODES,
        {"limit": "500", "continue": "a+/= &"},
    )
    assert asked.token == "one"
    assert asked.headers["User-Agent"] == f"kg/{__version__}"
    assert asked.headers["Accept"] == "application/json"


async def test_a_patch_is_sent_as_the_kind_of_patch_it_is(client: Client, api: FakeApi) -> None:
    body = {"metadata": {"annotations": {"a": None, "b": "ä"}}}
    await client.call("PATCH", f"{NODES}/a", body=body, content_type=MERGE_PATCH)
    assert json.loads(api.asked[-1].body) == body
    assert api.asked[-1].headers["Content-Type"] == MERGE_PATCH


async def test_calls_share_a_connection(client: Client, api: FakeApi) -> None:
    for _ in range(3):
        await client.call("GET", NODES)
    assert len({asked.connection for asked in api.asked}) == 1


async def test_a_compressed_answer_is_read(client: Client, api: FakeApi) -> None:
    body = gzip.compress(json.dumps({"items": []}).encode())
    api.handler = answer(body, headers={"Content-Encoding": "gzip"})
    assert await client.call("GET", NODES) == {"items": []}


async def test_proxies_of_the_environment_are_not_used(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    client = connect(api)
    await client.call("GET", NODES)
    await client.close()


async def test_a_proxy_that_is_away_is_named_without_its_password(api: FakeApi) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        proxy = f"http://me:s3cr3t@127.0.0.1:{bound.getsockname()[1]}"
        cluster = {"server": api.url, "certificate-authority": "ca.crt", "proxy-url": proxy}
        path = make_kubeconfig(api.directory / "kubeconfig", cluster=cluster, user={})
        client = Client(Access(kubeconfig=path))
        assert str(await fail(client)).endswith("proxy 127.0.0.1: connection refused")
        await client.close()


async def test_a_proxy_that_refuses_is_named_without_its_password(api: FakeApi) -> None:
    async def refuse_tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse_tunnel, "127.0.0.1", 0) as listening:
        proxy = f"http://me:s3cr3t@127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        cluster = {"server": "https://127.0.0.1:1", "proxy-url": proxy}
        path = make_kubeconfig(api.directory / "kubeconfig", cluster=cluster, user={})
        client = Client(Access(kubeconfig=path))
        assert str(await fail(client)).endswith("proxy 127.0.0.1: 407 Who are you")
        await client.close()


def test_the_password_of_a_url_is_in_no_text_and_no_repr() -> None:
    credentials = Credentials(server="https://a", proxy="http://me:s3cr3t@proxy:3128")
    assert "s3cr3t" not in repr(credentials)
    # As yarl writes it, which need not be how it was written before.
    text = "InvalidURL: http://me:s3cr%33t@proxy:3128/ is no use"
    assert credentials.redact(text) == "InvalidURL: http://proxy:3128/ is no use"


async def test_a_server_that_vanishes_will_be_noticed_by_the_kernel(
    client: Client, api: FakeApi
) -> None:
    api.handler = stream(b"\n", hold=asyncio.Event())
    async with aclosing(open_stream(client)) as lines:
        assert await anext(lines) == {}
        sockets = await asyncio.create_subprocess_exec(
            "ss", "-tnoH", f"dport = :{api.port}", stdout=asyncio.subprocess.PIPE
        )
        listed, _ = await sockets.communicate()
        assert b"timer:(keepalive," in listed


async def test_a_request_on_a_connection_that_was_retired_is_an_error_like_others(
    api: FakeApi,
) -> None:
    connection = Connection(Credentials(server=api.url, insecure=True))
    await connection.retire()
    with pytest.raises(ApiError, match="the connection was closed"):
        async with connection.send(Ask(method="GET", path=NODES), seconds=LIMIT_SECONDS):
            pass


# Refusals and garbage


async def test_a_refusal_names_server_request_status_and_reason(
    client: Client, api: FakeApi
) -> None:
    async def forbid(_: web.Request) -> web.Response:
        return refuse(403, "Forbidden", 'nodes is forbidden: User "a" cannot list resource')

    api.handler = forbid
    error = await fail(client)
    assert (error.status, error.reason, error.retry_after_seconds) == (403, "Forbidden", None)
    assert str(error) == (
        f"kubernetes {api.url}: GET /api/v1/nodes: 403 Forbidden: "
        'nodes is forbidden: User "a" cannot list resource'
    )


async def test_what_the_server_asks_for_before_the_next_try_is_passed_on(
    client: Client, api: FakeApi
) -> None:
    async def overload(_: web.Request) -> web.Response:
        return refuse(429, "TooManyRequests", "please try again", **{"Retry-After": "7"})

    api.handler = overload
    error = await fail(client)
    assert (error.status, error.retry_after_seconds) == (429, 7.0)
    assert len(api.asked) == 1, "nothing is tried again here"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 503, "503 Service Unavailable"),
        (b"upstream\n\x1b[31mdown", 502, "502 Bad Gateway: upstream [31mdown"),
        (b"[1]", 500, "500 Internal Server Error"),
        (b"[" * 100_000, 500, "500 Internal Server Error: " + "[" * 299 + "…"),
        (b'{"message": 7, "reason": []}', 409, "409 Conflict"),
        (b"x" * 1_000, 799, "799: " + "x" * 299 + "…"),
        (b"<html>login</html>", 200, "what is answered is not JSON"),
        (b"[1]", 200, "what is answered is no JSON object"),
        (b"", 200, "what is answered is not JSON"),
        (b"[" * 100_000, 200, "what is answered is not JSON"),
    ],
)
async def test_garbage_is_an_error_of_one_short_line(
    client: Client, api: FakeApi, body: bytes, status: int, text: str
) -> None:
    api.handler = answer(body, status=status)
    error = await fail(client)
    assert str(error) == f"kubernetes {api.url}: GET /api/v1/nodes: {text}"
    assert error.status == (status if status != 200 else 0)


async def test_a_token_that_the_server_echoes_is_not_in_the_error(
    client: Client, api: FakeApi
) -> None:
    client = connect(api, token="s3cr3t-token")

    async def echo(request: web.Request) -> web.Response:
        return refuse(400, "BadRequest", request.headers["Authorization"])

    api.handler = echo
    assert "s3cr3t-token" not in str(await fail(client))
    await client.close()


async def test_an_answer_cut_short_is_an_error(client: Client, api: FakeApi) -> None:
    api.handler = stream(b'{"items": [', cut=True)
    error = await fail(client)
    assert str(error).endswith("the answer was cut")
    assert error.status == 0


# Silence


async def test_a_server_that_does_not_answer_is_given_up(client: Client, api: FakeApi) -> None:
    api.handler = keep_silent
    error = await fail(client, timeout_seconds=0.2)
    assert str(error) == f"kubernetes {api.url}: GET /api/v1/nodes: no answer in 0.2 s"
    assert error.status == 0


async def test_an_answer_that_stops_in_the_middle_is_given_up(client: Client, api: FakeApi) -> None:
    hold = asyncio.Event()
    api.handler = stream(b'{"items": [', hold=hold)
    error = await fail(client, timeout_seconds=0.5)
    assert str(error).endswith("no answer in 0.5 s")
    hold.set()


async def test_a_stream_that_does_not_begin_is_given_up(client: Client, api: FakeApi) -> None:
    api.handler = keep_silent
    got, error = await collect(client, first_seconds=0.2)
    assert got == []
    assert error.endswith("no answer in 0.2 s")


async def test_a_server_that_nobody_listens_for_is_refused() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and never listens: nobody else gets the port
        server = f"http://127.0.0.1:{bound.getsockname()[1]}"
        client = Client(Access(master=server))
        assert str(await fail(client)) == f"kubernetes {server}: GET {NODES}: connection refused"
        await client.close()


async def test_a_server_that_accepts_and_says_nothing_is_no_connection(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = f"https://127.0.0.1:{listening.getsockname()[1]}"
        client = Client(Access(master=server))
        began = time.monotonic()
        error = await fail(client, timeout_seconds=60.0)
        assert time.monotonic() - began < 30
        assert str(error).endswith("no connection in 5 s")
        await client.close()


async def test_a_server_that_hangs_up_is_named(client: Client, api: FakeApi) -> None:
    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    api.handler = hang_up
    assert str(await fail(client)).endswith("the server closed the connection without an answer")


async def test_a_name_that_cannot_be_resolved_is_named() -> None:
    client = Client(Access(master=f"http://{'a' * 64}.test"))
    error = await fail(client)
    assert error.status == 0
    assert f"{'a' * 64}.test" in str(error)
    await client.close()


# Streams


async def test_a_stream_gives_first_that_the_server_answers_then_each_line(
    client: Client, api: FakeApi
) -> None:
    api.handler = stream(
        b'{"type": "ADDED"}\n{"type":', b' "BOOKMARK"}\n\n', b'{"type": "ERROR"}\n'
    )
    assert await collect(client) == (
        [{}, {"type": "ADDED"}, {"type": "BOOKMARK"}, {"type": "ERROR"}],
        "",
    )


async def test_a_line_arrives_while_the_stream_is_open(client: Client, api: FakeApi) -> None:
    hold = asyncio.Event()
    api.handler = stream(b'{"a": 1}\n', hold=hold)
    async with asyncio.timeout(LIMIT_SECONDS), aclosing(open_stream(client)) as lines:
        assert await anext(lines) == {}
        assert await anext(lines) == {"a": 1}
        hold.set()
        with pytest.raises(StopAsyncIteration):
            await anext(lines)


async def test_silence_in_a_stream_is_no_error(client: Client, api: FakeApi) -> None:
    hold = asyncio.Event()
    api.handler = stream(b"\n", hold=hold)
    async with asyncio.timeout(LIMIT_SECONDS):
        async with aclosing(open_stream(client, first_seconds=1.0)) as lines:
            assert await anext(lines) == {}
            waiting = asyncio.ensure_future(anext(lines, None))
            _, pending = await asyncio.wait([waiting], timeout=2.0)
            assert pending
            hold.set()
            assert await waiting is None


async def test_a_line_of_many_megabytes_is_read(client: Client, api: FakeApi) -> None:
    line = json.dumps({"big": "x" * 5_000_000}).encode() + b"\n"
    api.handler = stream(line, line)
    got, error = await collect(client)
    assert error == ""
    assert [len(item["big"]) for item in got[1:]] == [5_000_000, 5_000_000]


async def test_a_line_without_end_is_an_error_before_memory_is_full(
    client: Client, api: FakeApi
) -> None:
    api.handler = stream(*[b"x" * 2_000_000] * 40)
    got, error = await collect(client)
    assert got == [{}]
    assert error.endswith("a line has more than 67108864 bytes")


@pytest.mark.parametrize("cut", [False, True])
async def test_half_a_line_at_the_end_is_an_error_and_no_line(
    client: Client, api: FakeApi, *, cut: bool
) -> None:
    api.handler = stream(b'{"a": 1}\n', b'{"a": 2}', cut=cut)
    got, error = await collect(client)
    assert {"a": 2} not in got
    assert "was cut" in error


async def test_a_line_that_is_no_json_is_an_error(client: Client, api: FakeApi) -> None:
    api.handler = stream(b'{"a": 1}\n<html>\n{"a": 2}\n')
    got, error = await collect(client)
    assert got == [{}, {"a": 1}]
    assert error.endswith("what is answered is not JSON")


async def test_a_stream_that_is_refused_says_why(client: Client, api: FakeApi) -> None:
    async def expire(_: web.Request) -> web.Response:
        return refuse(410, "Expired", "too old resource version: 1 (7)")

    api.handler = expire
    with pytest.raises(ApiError) as caught:
        await anext(open_stream(client))
    assert (caught.value.status, caught.value.reason) == (410, "Expired")


async def test_a_stream_left_early_closes_its_connection(client: Client, api: FakeApi) -> None:
    api.handler = stream(b'{"a": 1}\n', hold=asyncio.Event())
    lines = open_stream(client)
    assert await anext(lines) == {}
    await lines.aclose()

    async def are_closed() -> bool:
        return api.count_connections() == 0

    await until(are_closed)


# The end


async def test_a_closed_client_says_so_and_may_be_closed_again(client: Client) -> None:
    await client.call("GET", NODES)
    await client.close()
    await client.close()
    assert str(await fail(client)) == "kubernetes: the client is closed"


async def test_a_client_that_never_called_can_be_closed(client: Client) -> None:
    await client.close()


async def test_closing_ends_a_stream_with_an_error(client: Client, api: FakeApi) -> None:
    api.handler = stream(b"\n", hold=asyncio.Event())
    lines = open_stream(client)
    assert await anext(lines) == {}
    waiting = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)  # let it begin to wait
    await client.close()
    with pytest.raises(ApiError):
        async with asyncio.timeout(LIMIT_SECONDS):
            await waiting


async def test_nothing_is_left_open(api: FakeApi) -> None:
    client = connect(api)
    await client.call("GET", NODES)
    await client.close()

    async def are_closed() -> bool:
        return api.count_connections() == 0

    await until(are_closed)
