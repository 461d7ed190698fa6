"""Single requests to an API server, for what is done to it from outside: no retries, no watch."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kilo.errors import LabError

TIMEOUT_SECONDS = 30.0
MERGE_PATCH = "application/merge-patch+json"


class RefusedError(LabError):
    """The API server answered with an error."""

    def __init__(self, text: str, *, status: int) -> None:
        super().__init__(text)
        self.status = status
        """Of HTTP."""


class ApiCaller:
    """Speaks to one server by a client certificate; each request has a connection of its own."""

    def __init__(self, server: str, *, authority: Path, certificate: Path, key: Path) -> None:
        self._server = server
        self._tls = ssl.create_default_context(cafile=authority)
        self._tls.load_cert_chain(certificate, key)

    def call(
        self,
        method: str,
        path: str,
        document: object = None,
        *,
        content_type: str = "application/json",
        timeout: float = TIMEOUT_SECONDS,
    ) -> dict[str, Any]:
        """The answer, decoded. ``RefusedError`` for an error, ``LabError`` for none within
        ``timeout`` seconds.
        """
        body = None if document is None else json.dumps(document)
        try:
            status, text = self._exchange(
                method, path, body, {"Content-Type": content_type}, timeout
            )
        except (OSError, http.client.HTTPException) as error:
            raise LabError(f"{self._server}: {method} {path}: {error!r}") from error
        if status >= 400:
            raise RefusedError(
                f"{self._server}: {method} {path}: {status} {_read_reason(text)}", status=status
            )
        return dict(json.loads(text)) if text.startswith("{") else {"text": text}

    def _exchange(
        self, method: str, path: str, body: str | None, headers: Mapping[str, str], timeout: float
    ) -> tuple[int, str]:
        address = urlsplit(self._server)
        connection = http.client.HTTPSConnection(
            str(address.hostname), address.port, timeout=timeout, context=self._tls
        )
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()


def _read_reason(text: str) -> str:
    """The message of a Status, else the first line of whatever was said."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return next(iter(text.splitlines()), "")
