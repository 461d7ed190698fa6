"""Asking an agent over HTTP what it knows."""

from __future__ import annotations

import http.client
import json
from typing import cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from kilo.errors import KiloError
from kilo.mesh.overview import Overview

DEFAULT_AGENT = "http://127.0.0.1:1107"
"""Where an agent listens on its own host unless told otherwise."""
PATIENCE_SECONDS = 5.0
MAX_BYTES = 64 * 2**20
"""Of an answer: a mesh of ten thousand nodes has less."""


class SilentAgentError(KiloError):
    """There is no agent at the address, or it does not tell; names the address and the reason."""


def parse_agent(text: str) -> str:
    """The address of an agent, ``http://host:port``; ``host:port`` will do."""
    address = text if "://" in text else f"http://{text}"
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise ValueError("is not the address of an agent, such as http://127.0.0.1:1107")
    if parts.port is None:
        raise ValueError("has no port")
    return f"http://{parts.netloc}"


def ask_agent(address: str) -> Overview:
    """What the agent answers at ``/status``; blocks, for some seconds at most."""
    # No proxies: an agent is on this host or near it.
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(f"{address}/status", timeout=PATIENCE_SECONDS) as answer:
            return _read(address, answer.read(MAX_BYTES))
    except HTTPError as error:
        error.close()
        hint = "; is it of an older release?" if error.code == 404 else ""
        raise SilentAgentError(f"agent {address}: answers {error.code}{hint}") from error
    except URLError as error:
        raise SilentAgentError(f"agent {address}: {_describe(error.reason)}") from error
    except (OSError, http.client.HTTPException) as error:
        raise SilentAgentError(f"agent {address}: {_describe(error)}") from error


def _read(address: str, body: bytes) -> Overview:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not Overview.__required_keys__ <= document.keys():
        raise SilentAgentError(f"agent {address}: answers with something else than its status")
    return cast("Overview", document)


def _describe(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return f"no answer in {PATIENCE_SECONDS:g} s"
    if isinstance(reason, OSError):
        return reason.strerror or str(reason)
    return str(reason) or type(reason).__name__
