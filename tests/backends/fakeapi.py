"""An HTTPS server on loopback that answers what a test says, and notes what it was asked."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from kilo.backends.kubernetes.client import Access, ApiError, Client
from kilo.lab.certificates import Authority
from tests.backends.following import LIMIT_SECONDS

NODES = "/api/v1/nodes"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    user: str
    """Common name of the client certificate."""
    connection: int
    """Tells one TCP connection from another."""

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")


class FakeApi:
    """Answers by ``handler``; requests without one of ``tokens``, if there are any, get a 401."""

    def __init__(self, authority: Authority, directory: Path) -> None:
        self.authority = authority
        self.directory = directory
        self.port = 0
        self.asked: list[Asked] = []
        self.tokens: set[str] = set()
        self.handler: Handler = answer({"kind": "Status"})
        self._connections: set[asyncio.BaseTransport] = set()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def certificate_file(self) -> Path:
        return self.directory / "ca.crt"

    @asynccontextmanager
    async def serve(
        self, *, hosts: tuple[str, ...] = ("127.0.0.1",), asks_certificate: bool = False
    ) -> AsyncIterator[FakeApi]:
        """Listen, on the port of the last time if there was one."""
        self.authority.write(self.directory)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self.authority.issue_server(hosts).write(self.directory, "server"))
        if asks_certificate:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(self.certificate_file)
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._serve)
        # Handlers that never answer are cancelled at the end, not waited for.
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=context)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self._connections.add(request.transport)
        certificate = request.transport.get_extra_info("peercert") or {}
        names = {key: value for part in certificate.get("subject", ()) for key, value in part}
        asked = Asked(
            method=request.method,
            path=request.path,
            query=dict(request.query),
            headers=dict(request.headers),
            body=await request.read(),
            user=names.get("commonName", ""),
            connection=id(request.transport),
        )
        self.asked.append(asked)
        if self.tokens and asked.token not in self.tokens:
            return refuse(401, "Unauthorized", "Unauthorized")
        return await self.handler(request)

    def count_connections(self) -> int:
        """Those that are open."""
        self._connections = {one for one in self._connections if not one.is_closing()}
        return len(self._connections)


def answer(
    document: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> Handler:
    """A handler that always answers this as JSON; bytes as they are."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()

    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=body, status=status, headers=headers)

    return handle


def refuse(status: int, reason: str, message: str, **headers: str) -> web.Response:
    """What an API server answers when it refuses."""
    document = {"kind": "Status", "status": "Failure", "reason": reason, "message": message}
    return web.json_response(document, status=status, headers=headers)


def stream(*chunks: bytes, cut: bool = False, hold: asyncio.Event | None = None) -> Handler:
    """A handler that sends these chunks, waits for ``hold`` if given, and ends or is cut off."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        if hold is not None:
            await hold.wait()
        if cut:
            assert request.transport is not None
            request.transport.abort()
        return response

    return handle


async def keep_silent(_: web.Request) -> web.StreamResponse:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Try again and again until it is so."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while not await is_so():  # noqa: ASYNC110 - what changes has no event
            await asyncio.sleep(0.02)


def make_kubeconfig(path: Path, *, cluster: dict[str, Any], user: dict[str, Any]) -> str:
    """Write a kubeconfig of one context, and return its path as text."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "there",
        "contexts": [{"name": "there", "context": {"cluster": "there", "user": "me"}}],
        "clusters": [{"name": "there", "cluster": cluster}],
        "users": [{"name": "me", "user": user}],
    }
    made = path.with_name(f".{path.name}.new")
    made.write_text(json.dumps(document))
    made.replace(path)
    return str(path)


# What tests ask of the client


def connect(api: FakeApi, **user: str) -> Client:
    cluster = {"server": api.url, "certificate-authority": "ca.crt"}
    path = api.directory / "kubeconfig"
    return Client(Access(kubeconfig=make_kubeconfig(path, cluster=cluster, user=user)))


async def fail(client: Client, **how: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await client.call("GET", NODES, **how)
    assert "\n" not in str(caught.value)
    return caught.value


async def collect(client: Client, **how: Any) -> tuple[list[dict[str, Any]], str]:
    """Everything a stream yields, and the text of the error that it ends with, if any."""
    got: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(LIMIT_SECONDS), aclosing(open_stream(client, **how)) as lines:
            async for line in lines:
                got.append(line)  # noqa: PERF401 - what came before an error counts
    except ApiError as error:
        return got, str(error)
    return got, ""


def open_stream(client: Client, **how: Any) -> Any:
    return client.stream(NODES, query={"watch": "true"}, **how)
