"""Calls to an etcd cluster, whichever of its members lives and whatever becomes of credentials.

The package ``etcd3`` has a client of its own, beside which this one stands: docs/adr/0017.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from kilo.backends.etcd.asks import Ask, authenticate
from kilo.backends.etcd.config import EtcdConfig
from kilo.backends.etcd.connection import Connection, Stream
from kilo.backends.etcd.credentials import Credentials, load_credentials
from kilo.backends.etcd.endpoints import Endpoint, read_endpoints
from kilo.backends.etcd.failures import EtcdError
from kilo.backends.readfiles import ReadFiles
from kilo.daemonthread import run_in_daemon_thread
from kilo.errors import BackendError
from kilo.log import get_logger

LOOK_SECONDS = 1.0
"""Between two looks whether a file that credentials came from is another."""
LOAD_SECONDS = 15.0
MEMBER_SECONDS = 3.0
"""What one of several members is given to answer in, before the next is asked."""

Result = TypeVar("Result")
Attempt = Callable[[Connection, str, float], Awaitable[Result]]
"""Of a connection, a token and the seconds that it may take."""

log = get_logger("etcd")


class Client:
    """Talks to one member at a time, to another where that fails. For one event loop."""

    def __init__(self, config: EtcdConfig) -> None:
        """Reads nothing yet: a file that comes late is an error of the first call only.

        ``ConfigError`` for flags that make no sense.
        """
        self._config = config
        self._endpoints = read_endpoints(config)
        # Not all agents on the first member; later on the one that answered last.
        self._turn = random.randrange(len(self._endpoints))  # noqa: S311 - no secret
        self._files = ReadFiles("etcd")
        self._looked_at = 0.0
        self._loading = asyncio.Lock()  # many may ask at once
        self._logging_in = asyncio.Lock()
        self._credentials: Credentials | None = None
        self._token: str | None = None
        """None: to be asked for; empty: the store wants none."""
        self._current: Connection | None = None
        self._open: set[Connection] = set()
        self._is_closed = False
        _warn_of_clear_text(self._endpoints)

    async def call(self, ask: Ask, *, seconds: float = 10.0) -> Any:
        """The answer, within ``seconds`` in all. ``EtcdError`` if there is none, or a refusal."""

        async def attempt(connection: Connection, token: str, left: float) -> Any:
            return await connection.ask(ask, token=token, seconds=left)

        _, answer = await self._try_members(ask, attempt, seconds=seconds)
        return answer

    async def stream(self, ask: Ask, *, first_seconds: float = 5.0) -> AsyncGenerator[Any, None]:
        """The answers to one request as they come.

        Ends when the server ends it. ``EtcdError`` if the first does not come within
        ``first_seconds``, for a refusal, and if the stream breaks, or its member is given up.
        """

        async def attempt(connection: Connection, token: str, left: float) -> Stream:
            return await connection.open(ask, token=token, seconds=left)

        connection, stream = await self._try_members(ask, attempt, seconds=first_seconds)
        async with aclosing(connection.follow(stream)) as answers:
            async for answer in answers:
                yield answer

    async def close(self) -> None:
        """Close every connection; requests under way fail. May be called twice."""
        self._is_closed = True
        for connection in tuple(self._open):
            await connection.close()
        self._open.clear()

    # Members

    async def _try_members(
        self, ask: Ask, attempt: Attempt[Result], *, seconds: float
    ) -> tuple[Connection, Result]:
        """What the first member that does gives, each tried once within ``seconds`` in all."""
        deadline = _now() + seconds
        errors: dict[Endpoint, EtcdError] = {}
        for left in range(len(self._endpoints), 0, -1):
            limit = max(deadline - _now(), 0.0)
            if left > 1:
                limit = min(limit, max(MEMBER_SECONDS, seconds / len(self._endpoints)))
            connection = await self._get_connection()
            try:
                return connection, await self._try_one(connection, attempt, seconds=limit)
            except EtcdError as error:
                if not error.is_of_member:
                    raise
                self._leave(connection)
                errors[connection.endpoint] = error
            if _now() >= deadline:
                break
        raise self._join(ask, errors)

    async def _try_one(
        self, connection: Connection, attempt: Attempt[Result], *, seconds: float
    ) -> Result:
        """What the member gives, asked twice if the token turns out to be outdated."""
        deadline = _now() + seconds
        token = await self._get_token(connection, seconds)
        try:
            return await attempt(connection, token, deadline - _now())
        except EtcdError as error:
            if not (error.is_of_token and connection.credentials.username):
                raise
        if self._token == token:
            self._token = None
        token = await self._get_token(connection, deadline - _now())
        return await attempt(connection, token, deadline - _now())

    def _join(self, ask: Ask, errors: Mapping[Endpoint, EtcdError]) -> EtcdError:
        """One error for all members that were tried, the same whichever was tried first."""
        if len(errors) == 1:
            return next(iter(errors.values()))
        tried = {one: errors[one].message for one in self._endpoints if one in errors}
        said = "; ".join(f"{endpoint}: {message}" for endpoint, message in tried.items())
        return EtcdError(f"etcd: {ask.about}: {said}", code="UNAVAILABLE", message=said)

    def _leave(self, connection: Connection) -> None:
        """Let the next member have its turn; this one may have it again after all others."""
        connection.give_up()
        if connection is self._current:
            self._current = None
            self._turn = (self._turn + 1) % len(self._endpoints)

    # Credentials

    async def _get_connection(self) -> Connection:
        """To the member whose turn it is, with the credentials that are current."""
        credentials = await self._get_credentials()
        if self._is_closed:
            raise EtcdError("etcd: the client is closed")
        current = self._current
        if current is not None and current.credentials == credentials:
            return current
        if current is not None:
            current.retire()
        self._current = made = Connection(self._endpoints[self._turn], credentials)
        self._open = {one for one in self._open if not one.is_closed} | {made}
        return made

    async def _get_credentials(self) -> Credentials:
        async with self._loading:
            if self._credentials is None:
                self._credentials = await self._load()
            elif asyncio.get_running_loop().time() - self._looked_at > LOOK_SECONDS:
                await self._look()
            return self._credentials

    async def _look(self) -> None:
        """Take new credentials if files changed; if those are no good, go on with the old."""
        # In a daemon thread: stat(2), which hangs where a network file system does.
        changed = await self._run(self._files.have_changed)
        self._looked_at = _now()
        if not changed:
            return
        try:
            loaded = await self._load()
        except BackendError as error:
            log.warning("going on with the credentials from before", error=error)
            return
        if loaded != self._credentials:
            self._credentials, self._token = loaded, None

    async def _load(self) -> Credentials:
        self._files = files = ReadFiles("etcd")
        self._looked_at = _now()
        is_tls = any(endpoint.is_tls for endpoint in self._endpoints)
        # In a daemon thread: reads files, which may be far away.
        return await self._run(lambda: load_credentials(self._config, files, is_tls=is_tls))

    async def _run(self, blocking: Callable[[], Result]) -> Result:
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                return await run_in_daemon_thread("etcd-credentials", blocking)
        except TimeoutError:
            raise EtcdError(f"etcd: the credentials cannot be read in {LOAD_SECONDS:g} s") from None

    async def _get_token(self, connection: Connection, seconds: float) -> str:
        """The token in force; logs in if there is none. Empty where none is wanted."""
        user, password = connection.credentials.username, connection.credentials.password
        if not user:
            return ""
        async with self._logging_in:
            if self._token is not None:
                return self._token
            try:
                answer = await connection.ask(
                    authenticate(user, password), token="", seconds=seconds
                )
                self._token = str(answer.token)
            except EtcdError as error:
                if "authentication is not enabled" not in error.message:
                    raise
                self._token = ""
            return self._token


def _warn_of_clear_text(endpoints: tuple[Endpoint, ...]) -> None:
    clear = [str(one) for one in endpoints if not (one.is_tls or one.is_loopback)]
    if clear:
        log.warning(
            "etcd is spoken to without TLS: whoever is on the way can read preshared keys and"
            " passwords, and say who may join the mesh",
            endpoints=clear,
        )


def _now() -> float:
    return asyncio.get_running_loop().time()
