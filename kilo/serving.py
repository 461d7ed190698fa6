"""HTTP, served from threads beside the event loop, so that a busy loop still answers.

The standard library's server: a few dozen lines of ours instead of a further dependency. It is
bounded in what strangers may cost it: connections, seconds and bytes.
"""

from __future__ import annotations

import http.server
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Protocol, Self
from urllib.parse import parse_qs, urlsplit

from kilo.listening import open_listener
from kilo.log import get_logger

IDLE_SECONDS = 10.0
"""How long a client may say nothing, or read nothing."""
POLL_SECONDS = 0.25

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What all clients together, or one connection, may take."""

    connections: int = 64
    """Each costs a thread: one more, and the one that has dawdled longest is hung up on."""
    request_seconds: float = 45.0
    """From the connection until the last byte of the answer."""
    body_bytes: int = 0
    """0: no request has a body, and nothing is ever posted."""
    drain_seconds: float = 0.0
    """How long a stop waits for the requests that are being answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asks."""

    method: str
    """GET, HEAD or POST."""
    target: str
    """Path and query."""
    content_type: str = ""
    """The media type alone, in lower case."""
    body: bytes = b""
    known_tag: str = ""
    """``If-None-Match``: the tag of what the client has already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response but for its connection."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = TEXT
    tag: str = ""
    """``ETag``, with its quotes: who has what bears this tag is sent nothing."""
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Those that no other answer has."""


Respond = Callable[[Request], Answer]
"""Answers a request; is called in threads."""
Page = Callable[[Mapping[str, str]], Answer]
"""Answers a GET, given the query."""


class Security(Protocol):
    """What makes a server speak TLS; is called in threads."""

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """TLS around a connection that was accepted, the handshake yet to be made."""
        ...

    def note_failure(self, error: ssl.SSLError) -> None:
        """A handshake came to nothing."""
        ...


def say(text: str, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """One line of plain text."""
    return Answer(body=f"{text}\n".encode(), status=status)


def find_path(request: Request) -> str:
    """The path that is asked for; empty for what is no URL."""
    try:
        return urlsplit(request.target).path
    except ValueError:  # of urllib: brackets that do not match
        return ""


def answer_page(pages: Mapping[str, Page], request: Request) -> Answer:
    """The page of that path, or one line that names those there are."""
    try:
        url = urlsplit(request.target)
        query = parse_qs(url.query, keep_blank_values=True, max_num_fields=20)
    except ValueError:  # of urllib: brackets that do not match, a hundred fields
        return say("not a URL with a path and a query", HTTPStatus.BAD_REQUEST)
    page = pages.get(url.path)
    if page is None:
        return say(f"no such page; there are {', '.join(pages)}", HTTPStatus.NOT_FOUND)
    return page({name: values[-1] for name, values in query.items()})


class Server:
    """Answers on an address, from ``start`` until ``stop``."""

    def __init__(
        self,
        listen: str,
        respond: Respond,
        *,
        flag: str = "--listen",
        security: Security | None = None,
        limits: Limits | None = None,
    ) -> None:
        """``flag`` is what the messages call ``listen``; without ``security`` there is no TLS."""
        self._listen = listen
        self._flag = flag
        self._respond = respond
        self._security = security
        self._limits = limits or Limits()
        self._server: _ThreadingServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; 0 while none is."""
        return int(self._server.server_address[1]) if self._server is not None else 0

    def start(self) -> None:
        """Listen and serve; raises ``ConfigError`` if the address cannot be had."""
        listener = open_listener(self._listen, flag=self._flag)
        self._server = _ThreadingServer(listener, self._respond, self._security, self._limits)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name="http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the port; blocks for a quarter of a second and ``drain_seconds`` at most. May be
        called twice.
        """
        server, self._server = self._server, None
        if server is not None and self._thread is not None:
            server.shutdown()
            self._thread.join()
            server.server_close()
            server.drain()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


class _ThreadingServer(socketserver.ThreadingTCPServer):
    """A thread a connection.

    Not the library's ``HTTPServer``, which asks a resolver for the host's full name before it
    serves.
    """

    daemon_threads = True

    def __init__(
        self,
        listener: socket.socket,
        respond: Respond,
        security: Security | None,
        limits: Limits,
    ) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_address = listener.getsockname()
        self.respond = respond
        self.limits = limits
        self._security = security
        # What follows is changed and copied in several threads, by who holds ``_done``.
        self._done = threading.Condition()
        self._deadlines: dict[socket.socket, float] = {}
        """The oldest connection first."""
        self._heard: set[socket.socket] = set()
        """Those of them that have sent a whole request."""
        self._leaving: set[socket.socket] = set()
        """Hung up on to make room, while their threads have yet to notice."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread."""
        if not self._make_room():
            self.shutdown_request(request)
            return
        with self._done:
            self._deadlines[request] = time.monotonic() + self.limits.request_seconds
        super().process_request(request, client_address)

    def _make_room(self) -> bool:
        """Hang up on the oldest, not the newest: that may be the probe which decides on restarts.

        False only while as many threads as there may be connections are ending.
        """
        with self._done:
            if len(self._deadlines) < self.limits.connections:
                return True
            if len(self._leaving) >= self.limits.connections:
                return False
            silent = (one for one in self._deadlines if one not in self._heard)
            oldest = next(silent, next(iter(self._deadlines)))
            self._forget(oldest)
            self._leaving.add(oldest)
            _hang_up(oldest)
            return True

    def _forget(self, connection: socket.socket) -> None:
        """Called by who holds ``_done``."""
        self._deadlines.pop(connection, None)
        self._heard.discard(connection)
        self._leaving.discard(connection)

    def note_request(self, connection: socket.socket) -> None:
        """It has sent all that it wants to know: who has not makes room first."""
        with self._done:
            if connection in self._deadlines:
                self._heard.add(connection)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread, so that no handshake holds up another client."""
        if self._security is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(IDLE_SECONDS)
        secured = self._security.wrap(request)
        try:
            if self._replace(request, secured):
                self._shake_hands(secured, self._security)
                super().finish_request(secured, client_address)
        finally:
            self.shutdown_request(secured)

    def _replace(self, plain: socket.socket, secured: socket.socket) -> bool:
        """False where the plain one has been hung up on meanwhile."""
        with self._done:
            deadline = self._deadlines.pop(plain, None)
            if deadline is not None:
                self._deadlines[secured] = deadline
            return deadline is not None

    def _shake_hands(self, connection: ssl.SSLSocket, security: Security) -> None:
        try:
            connection.do_handshake()
        except ssl.SSLError as error:
            security.note_failure(error)
            raise

    def shutdown_request(self, request: Any) -> None:
        """The connection is done with."""
        super().shutdown_request(request)
        with self._done:
            self._forget(request)
            self._done.notify_all()

    def service_actions(self) -> None:
        """Called at every poll: cut off who trickles in a byte now and then to hold a thread."""
        now = time.monotonic()
        with self._done:
            overdue = [one for one, deadline in self._deadlines.items() if deadline < now]
        for connection in overdue:
            _hang_up(connection)

    def drain(self) -> None:
        """Wait for the connections that are left, as long as they may take."""
        with self._done:
            self._done.wait_for(lambda: not self._deadlines, self.limits.drain_seconds)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - its base's
        """A client that went away is no news; anything else is a defect of ours."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            get_logger("http").error("request failed", exc_info=error)


def _list_headers(found: Answer) -> Iterator[tuple[str, str]]:
    if found.status is not HTTPStatus.NOT_MODIFIED:
        yield "Content-Type", found.content_type
        yield "Content-Length", str(len(found.body))
    if found.tag:
        yield "ETag", found.tag
    yield "Cache-Control", "no-store"
    yield "X-Content-Type-Options", "nosniff"
    yield from found.headers.items()


def _hang_up(connection: socket.socket) -> None:
    """Wakes the thread that reads from it, or writes to it; that one closes it."""
    try:
        # The plain socket's: TLS would take the session away under the thread that uses it.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError:
        return  # the other side was quicker


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection. The base class bounds the request line (64 KiB) and the headers (100)."""

    server: _ThreadingServer
    timeout = IDLE_SECONDS
    server_version = "kilo"
    sys_version = ""
    error_message_format = "%(message)s\n"
    error_content_type = TEXT

    def do_GET(self) -> None:
        """Also HEAD: the same without the body. The base class refuses whatever else there is."""
        self._answer(b"")

    do_HEAD = do_GET  # noqa: N815 - the base class looks for it under this name

    def do_POST(self) -> None:
        """With a body whose length is told, and within bounds."""
        limit = self.server.limits.body_bytes
        length = self.headers.get("Content-Length", "")
        if limit == 0:
            self.send_error(HTTPStatus.NOT_IMPLEMENTED, "Unsupported method ('POST')")
        elif not (length.isascii() and length.isdigit()):
            self._send(say("the length of the body is not told", HTTPStatus.LENGTH_REQUIRED))
        elif len(length) > 18 or int(length) > limit:
            text = f"the body is longer than {limit} bytes"
            self._send(say(text, HTTPStatus.REQUEST_ENTITY_TOO_LARGE))
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):  # else the client went away
                self._answer(body)

    def _answer(self, body: bytes) -> None:
        self.server.note_request(self.connection)
        request = Request(
            method=self.command,
            target=self.path,
            content_type=self.headers.get_content_type() if "Content-Type" in self.headers else "",
            body=body,
            known_tag=self.headers.get("If-None-Match", ""),
        )
        try:
            found = self.server.respond(request)
        except Exception as error:  # noqa: BLE001 - a defect of ours: an answer and a line, no silence
            get_logger("http").error("request failed", exc_info=error)
            found = say("internal error", HTTPStatus.INTERNAL_SERVER_ERROR)
        if found.tag and found.tag == request.known_tag:
            found = Answer(body=b"", status=HTTPStatus.NOT_MODIFIED, tag=found.tag)
        self._send(found)

    def _send(self, found: Answer) -> None:
        self.send_response(found.status)
        for name, value in _list_headers(found):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(found.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Requests are worth a line only to somebody who debugs them."""
        get_logger("http").debug("request", detail=format % args)
