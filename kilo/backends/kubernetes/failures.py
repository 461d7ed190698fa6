"""What can go wrong between us and an API server, each in one line: library's words -> ours."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp

from kilo.backends.kubernetes.credentials import Credentials
from kilo.errors import BackendError

CONNECT_SECONDS = 5.0
"""For a TCP connection and its TLS handshake."""
MAX_MESSAGE = 300
"""Characters of what a server says that are passed on."""


class ApiError(BackendError):
    """A request to the API server failed; names server, method, path and what it said."""

    def __init__(
        self,
        text: str,
        *,
        status: int = 0,
        reason: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        """Of HTTP; 0 where there was no answer: refused, timed out, TLS, DNS, cut."""
        self.reason = reason
        """Of the Status object: ``Expired``, ``NotFound``, ``AlreadyExists``; empty if none."""
        self.retry_after_seconds = retry_after_seconds
        """How long the server asks to be left alone, if it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One request, for messages: which method on which path of which server, and as whom."""

    credentials: Credentials
    method: str
    path: str

    def __str__(self) -> str:
        return f"kubernetes {self.credentials.server}: {self.method} {self.path}"

    def fail(self, what: str) -> ApiError:
        """The error to raise where there was no whole answer."""
        return ApiError(f"{self}: {self.credentials.redact(what)}")

    def refuse(self, status: int, body: bytes, retry_after: str | None) -> ApiError:
        """The error to raise for an answer that is no success."""
        reason, message = _read_status(body)
        message = self.credentials.redact(message)[:MAX_MESSAGE]
        outcome = f"{status} {_name_status(status)}".rstrip()
        return ApiError(
            f"{self}: {outcome}: {message}" if message else f"{self}: {outcome}",
            status=status,
            reason=reason,
            retry_after_seconds=_read_seconds(retry_after),
        )


@contextmanager
def translate(target: Target, *, seconds: float) -> Iterator[None]:
    """Whatever aiohttp, TLS or the socket raises inside becomes an ``ApiError``.

    ``seconds`` is the limit that a timeout inside would be of.
    """
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise target.fail(f"no connection in {CONNECT_SECONDS:g} s") from error
    except TimeoutError as error:
        # ETIMEDOUT is one too: the kernel gave up, say after the keepalive probes.
        what = _describe_os_error(error) if error.errno else f"no answer in {seconds:g} s"
        raise target.fail(what) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise target.fail(_describe(error, target.credentials)) from error


def _describe(error: Exception, credentials: Credentials) -> str:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            what = _describe_certificate(error.certificate_error, credentials)
        case aiohttp.ClientConnectorDNSError():
            what = f"cannot resolve {error.host}: {error.os_error.strerror}"
        case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
            what = _describe_proxy(error, credentials)
        case aiohttp.ClientConnectorError():
            what = _describe_os_error(error.os_error)
        case aiohttp.ServerDisconnectedError():
            what = "the server closed the connection without an answer"
        case aiohttp.ClientPayloadError():
            what = "the answer was cut"
        case OSError():
            what = _describe_os_error(error)
        case _:
            what = f"{type(error).__name__}: {_shorten(str(error))}"
    return what


def _describe_proxy(
    error: aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError,
    credentials: Credentials,
) -> str:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        reason = f"{error.status} {_shorten(error.message)}".rstrip()
    else:
        reason = _describe_os_error(error.os_error)
    # Not the whole URL: a password may be in it.
    return f"proxy {urlsplit(credentials.proxy).hostname}: {reason}"


def _describe_certificate(error: Exception, credentials: Credentials) -> str:
    reason = getattr(error, "verify_message", "") or str(error)
    return f"the server's certificate is refused: {reason}; checked with {credentials.trust}"


def _describe_os_error(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        # "TLSV13_ALERT_CERTIFICATE_REQUIRED", "WRONG_VERSION_NUMBER"
        reason = (error.reason or "").replace("_", " ").lower()
        return f"TLS failed: {reason or _shorten(str(error))}"
    if error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()
    return _shorten(error.strerror or str(error)) or type(error).__name__


def _read_status(body: bytes) -> tuple[str, str]:
    """Reason and message of a Status object, or the first of whatever else was answered."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return "", _shorten(body[: 4 * MAX_MESSAGE].decode(errors="replace"))
    if not isinstance(document, dict):
        return "", ""
    reason, message = document.get("reason"), document.get("message")
    return (
        reason if isinstance(reason, str) else "",
        _shorten(message) if isinstance(message, str) else "",
    )


def _name_status(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _read_seconds(text: str | None) -> float | None:
    """Of a Retry-After header; Kubernetes sends whole seconds, never a date."""
    return float(text) if text and text.isascii() and text.isdigit() else None


def _shorten(text: str) -> str:
    """One line, no control characters, ``MAX_MESSAGE`` long at most."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 1]}…"
