"""One member of an etcd, spoken to with one set of credentials, through a gRPC channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from kilo.backends.etcd.asks import Ask
from kilo.backends.etcd.credentials import Credentials
from kilo.backends.etcd.diagnosis import find_fault
from kilo.backends.etcd.endpoints import Endpoint
from kilo.backends.etcd.failures import CLOSED, Target, show_seconds, translate
from kilo.backends.etcd.library import grpc, messages
from kilo.backends.fields import show_name
from kilo.daemonthread import run_in_daemon_thread

CONNECT_SECONDS = 3.0
"""For name, TCP connection and TLS handshake."""
MAX_ANSWER_BYTES = 256 * 1024 * 1024
PING_SECONDS, PONG_SECONDS = 10, 5
"""While something is awaited: a member that is frozen, or cut off, is noticed after both. etcd
hangs up on who pings more often than every 5 s (``--grpc-keepalive-min-time``)."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.keepalive_time_ms", PING_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", PONG_SECONDS * 1000),
    ("grpc.http2.ping_timeout_ms", PONG_SECONDS * 1000),  # without it, a minute
    ("grpc.http2.max_pings_without_data", 0),
    # The environment's proxies are meant for other things, and DNS is not to configure us.
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    # Sockets are not shared with channels of other credentials, or of one given up.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),  # when to try again is for the client to say
)


class Connection:
    """Sends requests to one member. Once it failed, or other credentials came, make another."""

    def __init__(self, endpoint: Endpoint, credentials: Credentials) -> None:
        """Connects to nobody yet."""
        self.endpoint = endpoint
        self.credentials = credentials
        self._channel = _open_channel(endpoint, credentials)
        self._stubs: dict[str, Any] = {}
        self._streams: set[Any] = set()
        self._users = 0
        self._is_retired = False
        self.is_closed = False
        self._closing: asyncio.Future[None] | None = None

    async def ask(self, ask: Ask, *, token: str, seconds: float) -> Any:
        """The answer. ``EtcdError`` if none comes in that time, and for a refusal."""
        target = self._aim(ask, token)
        deadline = _now() + seconds
        with self._use():
            await self._connect(target, seconds)
            left = max(deadline - _now(), 0.001)
            with translate(target, seconds=seconds):
                return await self._find(ask)(ask.message, metadata=_tell(token), timeout=left)

    async def open(self, ask: Ask, *, token: str, seconds: float) -> Stream:
        """The stream of answers to one request, once the first of them is there."""
        target = self._aim(ask, token)
        with self._use():
            await self._connect(target, seconds)
            with translate(target):
                call = self._find(ask)(metadata=(*_tell(token), ("hasleader", "true")))
            self._streams.add(call)
            stream = Stream(call, target)
            try:
                async with asyncio.timeout(seconds):
                    await stream.begin(ask.message)
            except TimeoutError as error:
                self.drop(stream)
                raise target.time_out(seconds) from error
            except BaseException:
                self.drop(stream)
                raise
        return stream

    async def follow(self, stream: Stream) -> AsyncGenerator[Any, None]:
        """The answers, the first included; ends when the server ends them."""
        try:
            while (answer := await stream.take()) is not None:
                yield answer
        finally:
            self.drop(stream)

    def drop(self, stream: Stream) -> None:
        """End the stream."""
        stream.call.cancel()
        self._streams.discard(stream.call)
        self._close_if_unused()

    def retire(self) -> None:
        """To be used no more: what is under way may end."""
        self._is_retired = True
        self._close_if_unused()

    def give_up(self) -> None:
        """The member does not do: streams are cut, so that they are opened elsewhere."""
        for call in tuple(self._streams):
            call.cancel()
        self.retire()

    async def close(self) -> None:
        """Close the socket now; requests under way fail. May be called twice."""
        self._is_retired = False
        await self._channel.close()
        self.is_closed = True

    # How it is done.

    def _aim(self, ask: Ask, token: str) -> Target:
        who = self.credentials
        return Target(
            endpoint=str(self.endpoint),
            about=ask.about,
            # By whom: a role may forbid it.
            user="" if ask.method == "Auth/Authenticate" else show_name(who.username),
            secrets=(who.password, token),
        )

    def _find(self, ask: Ask) -> Any:
        """The method of the generated stub."""
        service, _, method = ask.method.partition("/")
        if service not in self._stubs:
            self._stubs[service] = getattr(messages, f"{service}Stub")(self._channel)
        return getattr(self._stubs[service], method)

    async def _connect(self, target: Target, seconds: float) -> None:
        """Until there is a connection; gRPC has a socket, or makes one, by itself."""
        limit = min(seconds, CONNECT_SECONDS)
        try:
            with translate(target):
                async with asyncio.timeout(limit):
                    if await self._is_ready():
                        return
                    why = await self._diagnose(limit)
        except TimeoutError:
            why = f"no connection in {show_seconds(limit)}"
        raise target.fail(why)

    async def _is_ready(self) -> bool:
        """Whether there is a connection, once that is clear."""
        states = grpc.ChannelConnectivity
        while True:
            state = self._channel.get_state(try_to_connect=True)
            if state in (states.READY, states.TRANSIENT_FAILURE, states.SHUTDOWN):
                return bool(state is states.READY)
            await self._channel.wait_for_state_change(state)

    async def _diagnose(self, seconds: float) -> str:
        if self.is_closed:
            return CLOSED
        # In a daemon thread: name lookup, connect, TLS.
        return await run_in_daemon_thread(
            "etcd-diagnosis", lambda: find_fault(self.endpoint, self.credentials, seconds=seconds)
        )

    @contextmanager
    def _use(self) -> Iterator[None]:
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._is_retired and not self._users and not self._streams and self._closing is None:
            self._closing = asyncio.ensure_future(self.close())


class Stream:
    """A stream of answers, the first of which is taken when it is opened and kept."""

    def __init__(self, call: Any, target: Target) -> None:
        self.call = call
        self._target = target
        self._first: Any = None

    async def begin(self, message: Any) -> None:
        """Send the request, and wait for the first answer."""
        with translate(self._target):
            await self.call.write(message)
        self._first = await self._fetch()

    async def take(self) -> Any:
        """The next answer, however long that takes; None at the end."""
        first, self._first = self._first, None
        return await self._fetch() if first is None else first

    async def _fetch(self) -> Any:
        with translate(self._target):
            answer = await self.call.read()
            if answer is grpc.aio.EOF:
                code = await self.call.code()
                if code is grpc.StatusCode.OK:
                    return None
                raise self._target.refuse(code.name, await self.call.details() or "")
        # A watch that is behind a compaction is canceled too, but that is no failure.
        if getattr(answer, "canceled", False) and not answer.compact_revision:
            raise self._target.end_watch(answer.cancel_reason)
        return answer


def _open_channel(endpoint: Endpoint, credentials: Credentials) -> Any:
    target = f"dns:///{endpoint.authority}"
    if not endpoint.is_tls:
        return grpc.aio.insecure_channel(target, options=_OPTIONS)
    trusted = grpc.ssl_channel_credentials(
        root_certificates=credentials.authorities,
        private_key=credentials.key or None,
        certificate_chain=credentials.certificate or None,
    )
    return grpc.aio.secure_channel(target, trusted, options=_OPTIONS)


def _tell(token: str) -> tuple[tuple[str, str], ...]:
    return (("token", token),) if token else ()


def _now() -> float:
    return asyncio.get_running_loop().time()
