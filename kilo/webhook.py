"""``kg webhook``: judges Peers over HTTPS for a cluster's API server (spec section 11).

A task follows the mesh; requests are answered in threads, from what it heard last.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from kilo import __version__
from kilo.admission import Known, Review, Verdict, judge, make_answer, read_review
from kilo.backends.base import Backend
from kilo.certificate import ServingCertificate
from kilo.errors import BackendError
from kilo.log import get_logger
from kilo.mesh.model import Snapshot
from kilo.metrics import CONTENT_TYPE, Counted
from kilo.notices import Notices
from kilo.serving import Answer, Limits, Page, Request, Server, answer_page, find_path, say
from kilo.webhookflags import WebhookConfig

VALIDATE = "/validate"
OTHER = "other"
"""In metrics, for every path that is none of ours: a label's values must be few."""
JSON = "application/json"
FOLLOW_AGAIN_SECONDS = 1.0
"""Between two watches, should one end."""
LIMITS = Limits(
    # The API server waits 30 s at most for a webhook.
    request_seconds=30.0,
    # etcd holds objects of up to 1.5 MB, and a review of an update has two of them.
    body_bytes=4 << 20,
    drain_seconds=5.0,
)


class Tally:
    """What was asked and answered, by the names that Kilo's dashboards use."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.admissions = Counter(
            "admission_requests",
            "Admission reviews, by what was asked and answered.",
            ["operation", "response"],
            registry=self.registry,
        )
        self.requests = Counter(
            "http_requests", "HTTP requests.", ["handler", "method"], registry=self.registry
        )
        self.errors = Counter(
            "errors", "HTTP requests that got no review for an answer.", registry=self.registry
        )
        self.store_up = Gauge(
            "kilo_store_up", "1 while the store can be heard.", registry=self.registry
        )
        info = Gauge("kilo_build_info", "Always 1.", ["version"], registry=self.registry)
        info.labels(__version__).set(1)

    def note(self, review: Review, verdict: Verdict) -> None:
        """One review was answered so."""
        response = "allowed" if verdict.reason is None else "denied"
        self.admissions.labels(review.operation.value, response).inc()


class Webhook:
    """The two servers, and what they answer from."""

    def __init__(self, config: WebhookConfig) -> None:
        """Raises ``ConfigError`` if the certificate cannot be used."""
        self._tally = Tally()
        self._log = get_logger("webhook")
        self._notices = Notices("webhook")
        # Replaced whole by the one task that follows; threads read it.
        self._known = Known(flags=config.settings)
        self._is_ready = False
        # A body of megabytes may be a hundred in memory, and anybody may send sixty at once. Python
        # would not judge two of them faster side by side.
        self._judging = threading.Lock()
        self._pages: Mapping[str, Page] = {
            "/health": lambda _query: say("ok"),
            "/ready": self._answer_ready,
            "/metrics": self._answer_metrics,
        }
        self.server = Server(
            config.listen,
            self._respond,
            security=ServingCertificate(config.cert_file, config.key_file),
            limits=LIMITS,
        )
        self.metrics_server = Server(
            config.listen_metrics, self._respond_about, flag="--listen-metrics"
        )

    def start(self) -> None:
        """Listen and serve; ``ConfigError`` names the address that cannot be had."""
        self.metrics_server.start()
        self.server.start()
        self._log.info("listening", port=self.server.port, metrics_port=self.metrics_server.port)

    def stop(self) -> None:
        """Answer what is being asked, then close; blocks for a few seconds at most."""
        self.server.stop()
        self.metrics_server.stop()

    # The mesh

    async def follow(self, backend: Backend) -> None:
        """Hear what the store says, until cancelled."""
        while True:
            try:
                async for heard in backend.watch():
                    self._hear(heard)
            except BackendError as error:
                self._hear(error)
            await asyncio.sleep(FOLLOW_AGAIN_SECONDS)

    def _hear(self, heard: Snapshot | BackendError) -> None:
        match heard:
            case Snapshot():
                self._known = replace(self._known, snapshot=heard, away="")
            case BackendError():
                self._known = replace(self._known, away=str(heard))
        away = self._known.away
        self._notices.tell("store", [away] if away else [])
        self._tally.store_up.set(not away)
        self._is_ready = True

    # Reviews

    def _respond(self, request: Request) -> Answer:
        """Any request to the HTTPS port."""
        answer = say("internal error", HTTPStatus.INTERNAL_SERVER_ERROR)
        try:
            answer = self._answer(request, find_path(request))
        finally:
            if answer.status is not HTTPStatus.OK:
                self._tally.errors.inc()
        return answer

    def _answer(self, request: Request, path: str) -> Answer:
        self._tally.requests.labels(path if path == VALIDATE else OTHER, request.method).inc()
        if path != VALIDATE:
            return say(f"no such page; there is {VALIDATE}", HTTPStatus.NOT_FOUND)
        if request.method != "POST":
            return say(f"{VALIDATE} takes POST", HTTPStatus.METHOD_NOT_ALLOWED)
        if request.content_type != JSON:
            return say(f"{VALIDATE} takes {JSON}", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        return self._validate(request.body)

    def _validate(self, body: bytes) -> Answer:
        with self._judging:
            try:
                review = parse_review(body)
            except ValueError as error:
                return say(str(error), HTTPStatus.BAD_REQUEST)
            verdict = judge(review, self._known)
        self._tally.note(review, verdict)
        if verdict.reason is not None:
            self._log.info("denied", operation=review.operation, detail=verdict.message)
        return Answer(body=json.dumps(make_answer(review, verdict)).encode(), content_type=JSON)

    # Health

    def _respond_about(self, request: Request) -> Answer:
        path = find_path(request)
        self._tally.requests.labels(path if path in self._pages else OTHER, request.method).inc()
        return answer_page(self._pages, request)

    def _answer_ready(self, _query: Mapping[str, str]) -> Answer:
        """Whether reviews are judged as well as they can be.

        A store that is away later makes nothing unready: taken out of its Service, this webhook
        would be no use to an API server that is back.
        """
        if not self._is_ready:
            return say("store: nothing heard yet", HTTPStatus.SERVICE_UNAVAILABLE)
        return say("ready")

    def _answer_metrics(self, _query: Mapping[str, str]) -> Answer:
        metrics = generate_latest(Counted(self._tally.registry))
        return Answer(body=metrics, content_type=CONTENT_TYPE)


def parse_review(body: bytes) -> Review:
    """The question in a request's body; ``ValueError`` says in one line why there is none."""
    try:
        document = json.loads(body)
    except ValueError:  # not JSON, not UTF-8, a number of ten thousand digits
        raise ValueError("the body: is not JSON") from None
    except RecursionError:
        raise ValueError("the body: is nested too deeply") from None
    return read_review(document)


async def serve_webhook(config: WebhookConfig, backend: Backend, stop: asyncio.Event) -> None:
    """Work until ``stop``; ``ConfigError`` if certificate or addresses cannot be used."""
    webhook = Webhook(config)
    try:
        webhook.start()
        async with asyncio.TaskGroup() as group:
            following = group.create_task(webhook.follow(backend))
            await stop.wait()
            following.cancel()
    finally:
        # Blocks for the requests that are being answered.
        await asyncio.to_thread(webhook.stop)
