"""A webhook at work over HTTPS, with certificates on disk, and hands to ask it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from kilo.backends.memory import MemoryBackend
from kilo.backends.opening import BackendConfig
from kilo.lab.certificates import Authority
from kilo.mesh.model import PartialSettings
from kilo.webhook import Webhook
from kilo.webhookflags import WebhookConfig
from tests.builders import networks
from tests.webhook.reviews import UID

ANSWER_SECONDS = 60.0
HOST = "127.0.0.1"
AUTHORITY = Authority.create("tests")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A webhook that works, and the store that it follows."""

    webhook: Webhook
    backend: MemoryBackend
    config: WebhookConfig

    async def post(self, review: object, **how: Any) -> Reply:
        body = review if isinstance(review, bytes) else json.dumps(review).encode()
        return await asyncio.to_thread(self.ask, "/validate", body=body, **how)

    def ask(
        self,
        path: str,
        *,
        method: str = "POST",
        body: bytes = b"",
        content_type: str = "application/json",
    ) -> Reply:
        connection = http.client.HTTPSConnection(
            HOST, self.webhook.server.port, timeout=ANSWER_SECONDS, context=trust(AUTHORITY)
        )
        headers = {"Content-Type": content_type} if content_type else {}
        with contextlib.closing(connection):
            connection.request(method, path, body=body or None, headers=headers)
            return Reply(connection.getresponse())

    async def look(self, path: str) -> Reply:
        return await asyncio.to_thread(self.ask_metrics, path)

    def ask_metrics(self, path: str) -> Reply:
        connection = http.client.HTTPConnection(
            HOST, self.webhook.metrics_server.port, timeout=ANSWER_SECONDS
        )
        with contextlib.closing(connection):
            connection.request("GET", path)
            return Reply(connection.getresponse())

    async def is_ready(self) -> bool:
        return (await self.look("/ready")).status == 200

    async def scrape(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        text = (await self.look("/metrics")).text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


class Reply:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()

    @property
    def response(self) -> dict[str, Any]:
        """What an AdmissionReview answers."""
        assert self.status == 200, self.text
        document = json.loads(self.text)
        assert document["kind"] == "AdmissionReview"
        found: dict[str, Any] = document["response"]
        assert found["uid"] == UID
        return found


def trust(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate)


def make_config(directory: Path, **changes: Any) -> WebhookConfig:
    cert_file, key_file = AUTHORITY.issue_server([HOST]).write(directory, "webhook")
    config = WebhookConfig(
        cert_file=cert_file,
        key_file=key_file,
        listen=f"{HOST}:0",
        listen_metrics=f"{HOST}:0",
        log_level="info",
        backend=BackendConfig(kind="kubernetes"),
        settings=PartialSettings(service_cidrs=networks("10.96.0.0/12")),
    )
    return replace(config, **changes)


@contextlib.asynccontextmanager
async def working(config: WebhookConfig, backend: MemoryBackend) -> AsyncIterator[Site]:
    webhook = Webhook(config)
    webhook.start()
    following = asyncio.create_task(webhook.follow(backend))
    try:
        yield Site(webhook=webhook, backend=backend, config=config)
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await asyncio.to_thread(webhook.stop)


async def eventually(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(ANSWER_SECONDS):
        while not await holds():  # noqa: ASYNC110 - what is asked has no event to wait for
            await asyncio.sleep(0.02)


def converse(port: int, request: bytes, context: ssl.SSLContext | None) -> bytes:
    """Send this, and read what comes until the other side hangs up."""
    with socket.create_connection((HOST, port), timeout=ANSWER_SECONDS) as plain:
        client = context.wrap_socket(plain, server_hostname=HOST) if context else plain
        client.sendall(request)
        received = b""
        while block := client.recv(4096):
            received += block
        return received
