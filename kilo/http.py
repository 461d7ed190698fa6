"""What an agent tells over HTTP: ``/health``, ``/ready``, ``/metrics`` and ``/graph``.

Served from threads beside the event loop, so that an agent whose loop is busy still answers.
Everything comes from ``Status``, which holds no secret.
"""

from __future__ import annotations

import http.server
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from kilo.graphviz import (
    FORMATS,
    LAYOUTS,
    GraphvizError,
    GraphvizMissingError,
    choose_layout,
    render_graph,
)
from kilo.listening import open_listener
from kilo.log import get_logger
from kilo.mesh.graph import draw_graph
from kilo.metrics import CONTENT_TYPE, write_metrics
from kilo.status import Status

IDLE_SECONDS = 10.0
"""How long a client may say nothing, or read nothing."""
REQUEST_SECONDS = 45.0
"""How long a request may take in all; a picture has its own, shorter, limits."""
MAX_CONNECTIONS = 64
"""More at once are closed unheard: each costs a thread."""
POLL_SECONDS = 0.25

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response but for its connection."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = TEXT


def say(text: str, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """One line of plain text."""
    return Answer(body=f"{text}\n".encode(), status=status)


# What is answered


def answer(status: Status, target: str) -> Answer:
    """The answer to a GET of a path with its query."""
    url = urlsplit(target)
    page = PAGES.get(url.path)
    if page is None:
        return say(f"no such page; there are {', '.join(PAGES)}", HTTPStatus.NOT_FOUND)
    query = parse_qs(url.query, keep_blank_values=True, max_num_fields=20)
    return page(status, {name: values[-1] for name, values in query.items()})


def answer_health(_status: Status, _query: Mapping[str, str]) -> Answer:
    """The process lives: that is all this says, for it decides on restarts."""
    return say("ok")


def answer_ready(status: Status, _query: Mapping[str, str]) -> Answer:
    """Whether the last pass succeeded and the store can be heard, or why not."""
    store = status.store_error and f"store: {status.store_error}"
    reasons = [reason for reason in (status.not_ready, store) if reason]
    if reasons:
        return say("\n".join(reasons), HTTPStatus.SERVICE_UNAVAILABLE)
    return say("ready")


def answer_metrics(status: Status, _query: Mapping[str, str]) -> Answer:
    """Prometheus' text format."""
    return Answer(body=write_metrics(status), content_type=CONTENT_TYPE)


def answer_graph(status: Status, query: Mapping[str, str]) -> Answer:
    """The mesh as a picture, ``?format=svg&layout=circo`` unless asked otherwise; a mesh that is
    too large for ``circo`` by ``twopi``.
    """
    topology = status.topology
    image_format = query.get("format", "svg")
    size = (len(topology.segments), len(topology.peers)) if topology else (0, 0)
    layout = query.get("layout", choose_layout(*size))
    for name, value, known in (("format", image_format, FORMATS), ("layout", layout, LAYOUTS)):
        if value not in known:
            text = f"{name} {value!r}: possible values are {', '.join(known)}"
            return say(text, HTTPStatus.BAD_REQUEST)
    if topology is None:
        return say("the mesh is not known yet", HTTPStatus.SERVICE_UNAVAILABLE)
    try:
        image = render_graph(draw_graph(topology), image_format=image_format, layout=layout)
    except GraphvizMissingError as error:
        return say(f"/graph: {error}", HTTPStatus.NOT_IMPLEMENTED)
    except GraphvizError as error:
        return say(f"/graph: {error}", HTTPStatus.SERVICE_UNAVAILABLE)
    return Answer(body=image, content_type=FORMATS[image_format])


PAGES: Mapping[str, Callable[[Status, Mapping[str, str]], Answer]] = MappingProxyType(
    {
        "/health": answer_health,
        "/ready": answer_ready,
        "/metrics": answer_metrics,
        "/graph": answer_graph,
    }
)


# How it is served


class StatusServer:
    """Serves one agent's ``Status`` on ``--listen``, from ``start`` until ``stop``."""

    def __init__(
        self, listen: str, status: Status, *, request_seconds: float = REQUEST_SECONDS
    ) -> None:
        self._listen = listen
        self._status = status
        self._request_seconds = request_seconds
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; 0 while none is."""
        return int(self._server.server_address[1]) if self._server is not None else 0

    def start(self) -> None:
        """Listen and serve; raises ``ConfigError`` if the address cannot be had."""
        listener = open_listener(self._listen)
        self._server = _Server(listener, self._status, self._request_seconds)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name="http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the port; blocks for a quarter of a second at most. May be called twice."""
        server, self._server = self._server, None
        if server is not None and self._thread is not None:
            server.shutdown()
            self._thread.join()
            server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


class _Server(socketserver.ThreadingTCPServer):
    """The standard library's server: two dozen lines of ours instead of a further dependency.

    Not its ``HTTPServer``, which asks a resolver for the host's full name before it serves.
    """

    daemon_threads = True

    def __init__(self, listener: socket.socket, status: Status, request_seconds: float) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_address = listener.getsockname()
        self.status = status
        self._request_seconds = request_seconds
        self._deadlines: dict[socket.socket, float] = {}

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, if there is one left."""
        if len(self._deadlines) >= MAX_CONNECTIONS:
            self.shutdown_request(request)
            return
        self._deadlines[request] = time.monotonic() + self._request_seconds
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The connection is done with."""
        self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called at every poll: cut off who trickles in a byte now and then to hold a thread."""
        now = time.monotonic()
        for request, deadline in tuple(self._deadlines.items()):
            if deadline < now:
                _hang_up(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - its base's
        """A client that went away is no news; anything else is a defect of ours."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            get_logger("http").error("request failed", exc_info=error)


def _hang_up(connection: socket.socket) -> None:
    """Wakes the thread that reads from it, or writes to it; that one closes it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other side was quicker


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection. The base class bounds the request line (64 KiB) and the headers (100)."""

    server: _Server
    timeout = IDLE_SECONDS
    server_version = "kilo"
    sys_version = ""
    error_message_format = "%(message)s\n"
    error_content_type = TEXT

    def do_GET(self) -> None:
        """Also HEAD: the same without the body. The base class refuses whatever else there is."""
        try:
            found = answer(self.server.status, self.path)
        except ValueError:  # of urllib: brackets that do not match, a hundred fields
            found = say("not a URL with a path and a query", HTTPStatus.BAD_REQUEST)
        self._send(found)

    do_HEAD = do_GET  # noqa: N815 - the base class looks for it under this name

    def _send(self, found: Answer) -> None:
        self.send_response(found.status)
        self.send_header("Content-Type", found.content_type)
        self.send_header("Content-Length", str(len(found.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(found.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Requests are worth a line only to somebody who debugs them."""
        get_logger("http").debug("request", detail=format % args)
