"""``kg webhook`` as an API server sees it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
from pathlib import Path

import pytest

from kilo.backends.memory import MemoryBackend
from kilo.errors import ConfigError
from kilo.serving import Server, say
from kilo.webhook import LIMITS, Webhook, serve_webhook
from tests.webhook.reviews import LAPTOP, UID, make_document, make_review
from tests.webhook.site import (
    ANSWER_SECONDS,
    AUTHORITY,
    HOST,
    Reply,
    Site,
    converse,
    eventually,
    make_config,
    trust,
    working,
)

GOOD = make_review(make_document(LAPTOP))
BAD = make_review(make_document(LAPTOP, publicKey="c2hvcnQ="))
CLAIMED = make_review(make_document(LAPTOP, allowedIPs=["10.2.1.0/24"]))


# Reviews


async def test_a_good_peer_is_allowed(site: Site) -> None:
    assert (await site.post(GOOD)).response == {"uid": UID, "allowed": True}


@pytest.mark.parametrize(
    ("review", "reason", "text"),
    [
        (BAD, "BadRequest", "Peer laptop: spec.publicKey: 'c2hvcnQ=' is 5 bytes long"),
        (CLAIMED, "Forbidden", "it lies inside 10.2.1.0/24 of Node berlin"),
        (
            make_review(make_document(LAPTOP, allowedIPs=["10.96.1.0/24"])),
            "Forbidden",
            "of the service CIDRs",
        ),
    ],
)
async def test_a_bad_peer_is_not_and_the_reason_is_told(
    site: Site, review: object, reason: str, text: str
) -> None:
    response = (await site.post(review)).response
    assert response["allowed"] is False
    assert response["status"]["reason"] == reason
    assert text in response["status"]["message"]


async def test_a_parameter_that_the_api_server_adds_changes_nothing(site: Site) -> None:
    body = json.dumps(GOOD).encode()
    reply = await asyncio.to_thread(
        site.ask,
        "/validate?timeout=10s",
        body=body,
        content_type="Application/JSON; charset=utf-8",
    )
    assert reply.response["allowed"] is True
    assert reply.headers["Content-Type"] == "application/json"


async def test_what_is_stored_meanwhile_counts(site: Site) -> None:
    await site.backend.delete_peer("zoe")
    taken = make_review(make_document(LAPTOP, allowedIPs=["10.5.0.26/32"]))

    async def is_allowed() -> bool:
        return bool((await site.post(taken)).response["allowed"])

    await eventually(is_allowed)


async def test_while_the_store_is_away_only_the_peer_itself_is_judged(site: Site) -> None:
    site.backend.go_away("no route to host")

    async def is_said() -> bool:
        response = (await site.post(CLAIMED)).response
        return bool(response.get("warnings"))

    await eventually(is_said)
    response = (await site.post(CLAIMED)).response
    assert response["allowed"] is True
    (warning,) = response["warnings"]
    assert warning.endswith("looked for: the mesh cannot be heard: memory: no route to host")
    assert (await site.post(BAD)).response["allowed"] is False
    site.backend.come_back()

    async def is_denied() -> bool:
        return not (await site.post(CLAIMED)).response["allowed"]

    await eventually(is_denied)


async def test_a_peer_of_a_megabyte_is_judged_old_and_new(site: Site) -> None:
    old = make_document(LAPTOP)
    old["metadata"]["annotations"] = {"blob": "x" * (1 << 20)}
    new = old | {"spec": make_document(LAPTOP, publicKey="short")["spec"]}
    response = (await site.post(make_review(new, operation="UPDATE", old=old))).response
    assert response["allowed"] is False


# What is no review


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "the body: is not JSON\n"),
        (b"{", "the body: is not JSON\n"),
        (b"\xff\xfe\xff", "the body: is not JSON\n"),
        (b"1" * 5000, "the body: is not JSON\n"),
        (b"[" * 100_000, "the body: is nested too deeply\n"),
        (b"[]", "the body: is not an object\n"),
    ],
)
async def test_a_body_that_is_no_review_is_refused_in_one_line(
    site: Site, body: bytes, text: str
) -> None:
    reply = await asyncio.to_thread(ask_with_length, site, body)
    assert (reply.status, reply.text) == (400, text)
    assert (await site.post(GOOD)).status == 200


def ask_with_length(site: Site, body: bytes) -> Reply:
    """As ``ask``, telling a length even of an empty body."""
    connection = http.client.HTTPSConnection(
        HOST, site.webhook.server.port, timeout=ANSWER_SECONDS, context=trust(AUTHORITY)
    )
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    with contextlib.closing(connection):
        connection.request("POST", "/validate", body=body, headers=headers)
        return Reply(connection.getresponse())


async def test_objects_nested_as_deep_as_json_may_be_are_refused_or_judged(site: Site) -> None:
    update = make_review(
        make_document(LAPTOP, more="HERE"),
        operation="UPDATE",
        old=make_document(LAPTOP, more="HERE"),
    )
    for depth in (100, 500, *range(880, 1000, 10)):
        nested = "[" * depth + "]" * depth
        body = json.dumps(update).replace('"HERE"', nested).encode()
        assert (await site.post(body)).status in (200, 400)


@pytest.mark.parametrize(
    ("path", "how", "status", "text"),
    [
        ("/", {}, 404, "no such page; there is /validate\n"),
        ("/metrics", {"method": "GET"}, 404, "no such page; there is /validate\n"),
        ("//[", {}, 404, "no such page; there is /validate\n"),
        ("/validate", {"method": "GET"}, 405, "/validate takes POST\n"),
        ("/validate", {"method": "PUT"}, 501, "Unsupported method ('PUT')\n"),
        ("/validate", {"content_type": "text/plain"}, 415, "/validate takes application/json\n"),
        ("/validate", {"content_type": ""}, 415, "/validate takes application/json\n"),
    ],
)
async def test_what_is_not_asked_of_a_webhook_is_refused_in_one_line(
    site: Site, path: str, how: dict[str, str], status: int, text: str
) -> None:
    reply = await asyncio.to_thread(site.ask, path, body=b"{}", **how)
    assert (reply.status, reply.text) == (status, text)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", b" 411 "),
        (b"Content-Length: ten\r\n", b" 411 "),
        (b"Content-Length: -1\r\n", b" 411 "),
        (b"Content-Length: " + str(LIMITS.body_bytes + 1).encode() + b"\r\n", b" 413 "),
        (b"Content-Length: " + b"9" * 5000 + b"\r\n", b" 413 "),
    ],
)
async def test_a_body_without_a_length_or_too_long_is_not_read(
    site: Site, headers: bytes, status: bytes
) -> None:
    request = b"POST /validate HTTP/1.1\r\nContent-Type: application/json\r\n" + headers + b"\r\n"
    port = site.webhook.server.port
    received = await asyncio.to_thread(converse, port, request, trust(AUTHORITY))
    assert status in received.splitlines()[0]
    assert received.count(b"\r\n\r\n") == 1


# Health and metrics


async def test_it_is_ready_once_the_store_said_something(tmp_path: Path) -> None:
    webhook = Webhook(make_config(tmp_path))
    webhook.start()
    try:
        site = Site(webhook=webhook, backend=MemoryBackend(), config=make_config(tmp_path))
        reply = await site.look("/ready")
        assert (reply.status, reply.text) == (503, "store: nothing heard yet\n")
        assert (await site.look("/health")).status == 200
    finally:
        await asyncio.to_thread(webhook.stop)


async def test_a_store_that_is_away_makes_it_no_less_ready(tmp_path: Path) -> None:
    backend = MemoryBackend()
    backend.go_away("refused")
    async with working(make_config(tmp_path), backend) as site:
        await eventually(site.is_ready)
        found = await site.scrape()
        assert found["kilo_store_up", frozenset()] == 0.0


async def test_what_was_asked_and_answered_is_counted(site: Site) -> None:
    for review in (GOOD, GOOD, BAD, {}):
        await site.post(review)
    await asyncio.to_thread(site.ask, "/elsewhere", method="GET")
    found = await site.scrape()
    create = ("operation", "CREATE")
    counted = {
        ("admission_requests_total", frozenset({create, ("response", "allowed")})): 2.0,
        ("admission_requests_total", frozenset({create, ("response", "denied")})): 1.0,
        ("http_requests_total", frozenset({("handler", "/validate"), ("method", "POST")})): 4.0,
        ("http_requests_total", frozenset({("handler", "other"), ("method", "GET")})): 1.0,
        ("errors_total", frozenset()): 2.0,
        ("kilo_store_up", frozenset()): 1.0,
    }
    assert counted.items() <= found.items()
    assert not [name for name, _ in found if name.endswith("_created")]


async def test_a_refusal_is_a_line_in_the_log(site: Site, log: io.StringIO) -> None:
    await site.post(CLAIMED)
    (line,) = [line for line in log.getvalue().splitlines() if '"denied"' in line]
    assert "Peer laptop: spec.allowedIPs 10.2.1.0/24 refused" in json.loads(line)["detail"]


async def test_it_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    stop = asyncio.Event()
    serving = asyncio.create_task(serve_webhook(make_config(tmp_path), MemoryBackend(), stop))
    stop.set()
    async with asyncio.timeout(ANSWER_SECONDS):
        await serving


async def test_two_ports_that_are_one_are_told_by_the_flags_name(tmp_path: Path) -> None:
    with Server(f"{HOST}:0", lambda _: say("ok")) as server:
        listen = f"{HOST}:{server.port}"
        config = make_config(tmp_path, listen_metrics=listen)
        with pytest.raises(ConfigError, match=rf"^--listen-metrics '{listen}': port .* in use"):
            await serve_webhook(config, MemoryBackend(), asyncio.Event())
