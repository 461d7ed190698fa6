"""Calls to a Kubernetes API server: JSON in, JSON out, whatever happens to credentials meanwhile.

Nothing here knows what a Node is, and nothing is tried again but a request that was refused for
credentials that are not current any more: when to try again is the callers' to decide.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property
from http import HTTPStatus
from typing import Any, TypeVar

from kilo.backends.kubernetes.connection import Answer, Ask, Connection
from kilo.backends.kubernetes.credentials import Access, load_credentials, read_namespace
from kilo.backends.kubernetes.failures import ApiError
from kilo.backends.kubernetes.lines import LineSplitter, TooLongError
from kilo.backends.readfiles import ReadFiles
from kilo.daemonthread import run_in_daemon_thread
from kilo.errors import BackendError
from kilo.log import get_logger

__all__ = ["JSON_PATCH", "MERGE_PATCH", "Access", "ApiError", "Client"]

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
LOOK_SECONDS = 1.0
"""Between two looks whether a file that credentials came from is another."""
LOAD_SECONDS = 15.0
"""For reading all of them, a plugin's 10 s included."""
MAX_LINE_BYTES = 64 * 1024 * 1024

Result = TypeVar("Result")

log = get_logger("kubernetes")


class Client:
    """Talks to one API server, with the credentials that are current. For one event loop."""

    def __init__(self, access: Access) -> None:
        """Reads nothing yet: a token that comes late is an error of the first call only."""
        self._access = access
        self._files = ReadFiles("kubernetes")
        self._looked_at = self._loaded_at = 0.0
        self._loading = asyncio.Lock()  # many may ask at once, and a plugin must run once
        self._current: Connection | None = None
        self._open: set[Connection] = set()
        self._is_closed = False

    @cached_property
    def namespace(self) -> str:
        """Of the pod that we are in, else ``kube-system``. Reads a small local file once."""
        return read_namespace(self._access)

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] = {},
        body: object = None,
        content_type: str = "application/json",
        timeout_seconds: float = 10.0,
    ) -> dict[str, Any]:
        """The decoded JSON that is answered. ``path`` is quoted already, without a query.

        ``ApiError`` if no connection, no whole answer within ``timeout_seconds``, or a refusal.
        """
        ask = Ask(method=method, path=path, query=query, body=body, content_type=content_type)
        async with self._send(ask, seconds=timeout_seconds) as answer:
            return _decode(await answer.read(), answer)

    async def stream(
        self, path: str, *, query: Mapping[str, str], first_seconds: float = 5.0
    ) -> AsyncGenerator[dict[str, Any], None]:
        """An empty dict once the server answers, then each line of what it sends, decoded.

        Ends when the server ends it. ``ApiError`` if there is no answer within ``first_seconds``,
        for a refusal, and if it is cut. There is no limit to silence: that is the callers'.
        """
        # Not compressed: a decoder may sit on the last line for as long as no other comes.
        ask = Ask(method="GET", path=path, query=query, encoding="identity")
        async with self._send(ask, seconds=first_seconds) as answer:
            yield {}
            lines = LineSplitter(longest=MAX_LINE_BYTES)
            async for chunk in answer.follow():
                for line in _split(lines, chunk, answer):
                    yield _decode(line, answer)
            if lines.has_rest:
                raise answer.target.fail("the answer was cut in the middle of a line")

    async def close(self) -> None:
        """Close every connection; requests under way fail. May be called twice."""
        self._is_closed = True
        for connection in tuple(self._open):
            await connection.close()
        self._open.clear()

    # Requests

    @asynccontextmanager
    async def _send(self, ask: Ask, *, seconds: float) -> AsyncIterator[Answer]:
        """A successful answer. Asked twice if the credentials turn out to be outdated."""
        connection = await self._get_connection()
        async with AsyncExitStack() as stack:
            answer = await stack.enter_async_context(connection.send(ask, seconds=seconds))
            if answer.status == HTTPStatus.UNAUTHORIZED:
                renewed = await self._renew(connection)
                if renewed.credentials != connection.credentials:
                    await stack.aclose()  # the old one is not to live as long as a stream
                    answer = await stack.enter_async_context(renewed.send(ask, seconds=seconds))
            if not HTTPStatus(200) <= answer.status < HTTPStatus(300):
                body = await answer.read()
                raise answer.target.refuse(answer.status, body, answer.retry_after)
            yield answer

    # Credentials

    async def _get_connection(self) -> Connection:
        """A connection with the credentials that are current, as far as the files say."""
        async with self._loading:
            if self._is_closed:
                raise ApiError("kubernetes: the client is closed")
            if self._current is None or self._has_expired(self._current):
                return await self._load()
            if time.monotonic() - self._looked_at > LOOK_SECONDS:
                await self._look()
            return self._current

    def _has_expired(self, connection: Connection) -> bool:
        """Whether a plugin must be run again. Not at each request, should it print old times."""
        expires_at = connection.credentials.expires_at
        if expires_at is None or time.monotonic() - self._loaded_at < LOOK_SECONDS:
            return False
        return time.time() >= expires_at

    async def _look(self) -> None:
        """Take new credentials if files changed; if those are no good, go on with the old."""
        # In a daemon thread: stat(2), which hangs where a network file system does.
        changed = await self._run(self._files.have_changed)
        self._looked_at = time.monotonic()
        if changed:
            try:
                await self._load()
            except ApiError as error:
                log.warning("going on with the credentials from before", error=error)

    async def _renew(self, refused: Connection) -> Connection:
        """After a 401: read the credentials again, unless another request did so already."""
        async with self._loading:
            if self._current is not None and self._current is not refused:
                return self._current
            return await self._load()

    async def _load(self) -> Connection:
        """Read the credentials. A connection stays in use if they are what they were."""
        access = self._access
        self._files = files = ReadFiles("kubernetes")
        self._looked_at = time.monotonic()
        # In a daemon thread: reads files, which may be far away, and waits for plugins.
        loaded = await self._run(lambda: Connection(load_credentials(access, files)))
        self._loaded_at = time.monotonic()
        current = self._current
        if current is not None and current.credentials == loaded.credentials:
            current.credentials = loaded.credentials  # they may expire at another time
            return current
        self._current = loaded
        self._open = {one for one in self._open if not one.is_closed} | {loaded}
        if current is not None:
            await current.retire()
        return loaded

    async def _run(self, blocking: Callable[[], Result]) -> Result:
        """What a call returns that reads credentials. ``ApiError`` whatever happens to it."""
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                result = await run_in_daemon_thread("credentials", blocking)
        except TimeoutError as error:
            raise ApiError(f"kubernetes: no credentials read in {LOAD_SECONDS:g} s") from error
        except BackendError as error:
            raise ApiError(str(error)) from error
        if self._is_closed:
            raise ApiError("kubernetes: the client is closed")
        return result


def _split(lines: LineSplitter, chunk: bytes, answer: Answer) -> list[bytes]:
    try:
        return lines.feed(chunk)
    except TooLongError as error:
        raise answer.target.fail(str(error)) from error


def _decode(text: bytes, answer: Answer) -> dict[str, Any]:
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise answer.target.fail("what is answered is not JSON") from error
    if not isinstance(decoded, dict):
        raise answer.target.fail("what is answered is no JSON object")
    return decoded
