"""One set of credentials, and the sockets opened with it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from kilo import __version__
from kilo.backends.kubernetes.credentials import Credentials
from kilo.backends.kubernetes.failures import CONNECT_SECONDS, Target, translate
from kilo.backends.tls import present_certificate
from kilo.daemonthread import run_in_daemon_thread
from kilo.errors import BackendError

IDLE_SECONDS = 75.0
"""An unused connection is kept so long: over the 30 s between two check-ins of an agent, and
under the 90 s after which API servers close it (``IdleTimeout`` of their http.Server)."""
PROBE_AFTER_SECONDS, PROBE_INTERVAL_SECONDS, PROBES = 10, 5, 3
"""TCP keepalive: a server that vanished is noticed after 25 s, where nothing else notices."""
MAX_ANSWER_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: object = None
    content_type: str = "application/json"
    encoding: str = "gzip"


class Answer:
    """What a server answers: the status now, the body when it is read."""

    def __init__(
        self, response: aiohttp.ClientResponse, target: Target, *, deadline: float, seconds: float
    ) -> None:
        self.target = target
        self.status = response.status
        self._response = response
        self._deadline = deadline
        self._seconds = seconds

    @property
    def retry_after(self) -> str | None:
        return self._response.headers.get("Retry-After")

    async def read(self) -> bytes:
        """The whole body, within the time of the request. ``ApiError`` if it does not come."""
        content = bytearray()
        with translate(self.target, seconds=self._seconds):
            async with asyncio.timeout_at(self._deadline):
                async for chunk in self._response.content.iter_any():
                    content += chunk
                    if len(content) > MAX_ANSWER_BYTES:
                        raise self.target.fail(f"the answer has over {MAX_ANSWER_BYTES} bytes")
        return bytes(content)

    async def follow(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, however long that takes. ``ApiError`` if it is cut."""
        with translate(self.target, seconds=self._seconds):
            async for chunk in self._response.content.iter_any():
                yield chunk


class Connection:
    """Sends requests with one set of credentials; sockets are opened as they are needed."""

    def __init__(self, credentials: Credentials) -> None:
        """Blocks on the CAs of the system. ``BackendError`` for certificates of no use."""
        self.credentials = credentials
        self._rest = _make_rest(credentials)
        self.is_closed = False
        self._users = 0
        self._responses: set[aiohttp.ClientResponse] = set()
        self._is_retired = False

    @asynccontextmanager
    async def send(self, ask: Ask, *, seconds: float) -> AsyncIterator[Answer]:
        """The answer, once its status is there; that, and ``Answer.read``, have ``seconds``.

        ``ApiError`` if none comes. What of the body is not read by the end is thrown away.
        """
        target = Target(credentials=self.credentials, method=ask.method, path=ask.path)
        deadline = asyncio.get_running_loop().time() + seconds
        if self.is_closed:  # other credentials came while this request waited; aiohttp has no word
            raise target.fail("the connection was closed")
        self._users += 1
        try:
            with translate(target, seconds=seconds):
                async with asyncio.timeout_at(deadline):
                    response = await self._request(ask)
            self._responses.add(response)
            try:
                yield Answer(response, target, deadline=deadline, seconds=seconds)
            finally:
                # The socket is kept for another request only if the body was read to its end.
                response.close()
                self._responses.discard(response)
        finally:
            self._users -= 1
            await self._close_if_unused()

    async def retire(self) -> None:
        """To be used no more: close when the last request has ended."""
        self._is_retired = True
        await self._close_if_unused()

    async def close(self) -> None:
        """Close every socket now; requests under way fail."""
        self.is_closed = True
        # Closing the session wakes nobody who waits for more of an answer; this does.
        for response in tuple(self._responses):
            response.close()
        await self._rest.close()

    async def _close_if_unused(self) -> None:
        if self._is_retired and not self._users:
            await self.close()

    async def _request(self, ask: Ask) -> aiohttp.ClientResponse:
        query = f"?{urlencode(ask.query)}" if ask.query else ""
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": ask.encoding,
            "Content-Type": ask.content_type,
            "User-Agent": f"kg/{__version__}",
        }
        if self.credentials.authorization:
            headers["Authorization"] = self.credentials.authorization
        answer = await self._rest.request(  # type: ignore[no-untyped-call]  # it has no types
            ask.method,
            yarl.URL(f"{self.credentials.server}{ask.path}{query}", encoded=True),
            headers=headers,
            body=ask.body,
            _request_timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS),
        )
        response: aiohttp.ClientResponse = answer.response
        return response


class _Rest(RESTClientObject):
    """The package's client with a session of our own choosing, by the hook it has for that."""

    def _create_pool_manager(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            ssl=self.ssl_context,
            keepalive_timeout=IDLE_SECONDS,
            socket_factory=_open_socket,
            resolver=_Resolver(),
        )
        # Not trusting the environment: its proxies are meant for other things, .netrc as well.
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )


class _Resolver(AbstractResolver):
    """Looks names up in threads that no exit waits for: a lookup hangs for long at times."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        # In a daemon thread: getaddrinfo(3).
        found = await run_in_daemon_thread(
            "api-server-name", lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        )
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Nothing is held."""


def _make_rest(credentials: Credentials) -> _Rest:
    settings = Configuration(
        host=credentials.server,
        ca_cert_data=credentials.authorities.decode("ascii", "ignore") or None,
        verify_ssl=not credentials.insecure,
        tls_server_name=credentials.server_name or None,
        proxy=credentials.proxy or None,
    )
    try:
        rest = _Rest(settings)
    except (ssl.SSLError, ValueError) as error:
        raise BackendError(
            f"kubernetes: {credentials.trust}: holds no usable certificate"
        ) from error
    # As Go's TLS: CAs made by older kubeadms lack extensions that Python 3.13 insists on.
    rest.ssl_context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if credentials.certificate:
        present_certificate(
            rest.ssl_context, credentials.certificate, credentials.key, store="kubernetes"
        )
    return rest


def _open_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket whose dead peer is noticed, for an address as ``getaddrinfo`` gives it."""
    family, kind, protocol, _, _ = address
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_SECONDS)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_INTERVAL_SECONDS)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    opened.setblocking(False)  # noqa: FBT003 - the standard library's signature
    return opened
