"""Asking an agent over HTTP what it knows."""

from __future__ import annotations

import http.client
import json
import socket
import time
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import urlsplit

from kilo.errors import KiloError
from kilo.mesh.overview import Overview

DEFAULT_AGENT = "http://127.0.0.1:1107"
"""Where an agent listens on its own host unless told otherwise."""
PATIENCE_SECONDS = 5.0
"""How long an agent may say nothing."""
LIMIT_SECONDS = 20.0
"""How long it may take in all: who trickles in a byte now and then holds nobody up."""
MAX_BYTES = 64 * 2**20
"""Of an answer: a mesh of ten thousand nodes has less."""


class SilentAgentError(KiloError):
    """There is no agent at the address, or it does not tell; names the address and the reason."""


class _Line(socket.socket):
    """A connection that waits until a moment, whatever comes in before."""

    end = 0.0
    """On the monotonic clock."""

    def connect(self, address: Any) -> None:
        self._limit()
        super().connect(address)

    def recv_into(self, *arguments: Any) -> int:
        """All that an answer is read by."""
        self._limit()
        return super().recv_into(*arguments)

    def _limit(self) -> None:
        remaining = self.end - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self.settimeout(min(PATIENCE_SECONDS, remaining))


def parse_agent(text: str) -> str:
    """The address of an agent, ``http://host:port``; ``host:port`` will do."""
    address = text if "://" in text else f"http://{text}"
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise ValueError("is not the address of an agent, such as http://127.0.0.1:1107")
    if parts.port is None:
        raise ValueError("has no port")
    return f"http://{parts.netloc}"


def ask_agent(address: str, *, limit_seconds: float = LIMIT_SECONDS) -> Overview:
    """What the agent answers at ``/status``; blocks, for ``limit_seconds`` at most, and as long as
    a resolver may take where the address has a name.
    """
    end = time.monotonic() + limit_seconds
    try:
        return _read(address, _fetch(address, end))
    except TimeoutError as error:
        is_late = time.monotonic() >= end
        waited = (
            f"whole answer in {limit_seconds:g}" if is_late else f"answer in {PATIENCE_SECONDS:g}"
        )
        raise SilentAgentError(f"agent {address}: no {waited} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise SilentAgentError(f"agent {address}: {_describe(error)}") from error


def _fetch(address: str, end: float) -> bytes:
    """The answer's body. By no proxy, and no redirection: an agent is on this host or near it."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    with _call(connection.host, connection.port, end) as connection.sock:
        connection.request("GET", "/status")
        with connection.getresponse() as answer:
            if answer.status != HTTPStatus.OK:
                hint = "; is it of an older release?" if answer.status == 404 else ""
                raise SilentAgentError(f"agent {address}: answers {answer.status}{hint}")
            body = answer.read(MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        raise SilentAgentError(f"agent {address}: answers with more than {MAX_BYTES} bytes")
    return body


def _call(host: str, port: int, end: float) -> _Line:
    """As ``socket.create_connection``, whose limit is for each of a name's addresses."""
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        line = _Line(family, kind, protocol)
        line.end = end
        try:
            line.connect(where)
        except OSError as error:
            line.close()
            failure = error
        else:
            return line
    raise failure


def _read(address: str, body: bytes) -> Overview:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not Overview.__required_keys__ <= document.keys():
        raise SilentAgentError(f"agent {address}: answers with something else than its status")
    return cast("Overview", document)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__
