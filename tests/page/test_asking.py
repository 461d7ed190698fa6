"""What it costs an agent to be looked at: the page and ``/status``, asked as a browser asks."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kilo.http import StatusServer
from kilo.page.document import compose_document
from kilo.status import Status
from kilo.statusdocument import StatusDocument
from tests.page.meshes import make_full, make_three, shake_hands

ANSWER_SECONDS = 60.0


@pytest.fixture
def status() -> Status:
    return make_three()


@pytest.fixture
def server(status: Status) -> Iterator[StatusServer]:
    with StatusServer("127.0.0.1:0", status) as running:
        yield running


def ask(
    server: StatusServer, path: str, *, tag: str = ""
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"If-None-Match": tag} if tag else {})
        response = connection.getresponse()
        return response, response.read()


def find_tag(response: http.client.HTTPResponse) -> str:
    return response.headers["ETag"]


def test_who_knows_it_already_is_sent_nothing(server: StatusServer) -> None:
    first, document = ask(server, "/status")
    assert first.status == 200
    assert json.loads(document)["agent"]["node"] == "berlin-1"
    again, nothing = ask(server, "/status", tag=find_tag(first))
    assert (again.status, nothing) == (304, b"")
    assert find_tag(again) == find_tag(first)


def test_who_knows_something_else_is_sent_all(server: StatusServer) -> None:
    response, document = ask(server, "/status", tag='"of another agent"')
    assert response.status == 200
    assert document


@pytest.mark.parametrize("change", ["handshake", "node", "failure", "warning", "store"])
def test_every_change_is_told(server: StatusServer, status: Status, change: str) -> None:
    tag = find_tag(ask(server, "/status")[0])
    assert status.topology is not None
    if change == "handshake":
        shake_hands(status, {"paris-1": 1.0})
    elif change == "node":
        status.topology = replace(status.topology, segments=status.topology.segments[:2])
    elif change == "failure":
        status.not_ready = "+ route refused"
    elif change == "warning":
        status.warnings = ("mtu 9000",)
    else:
        status.store_error = "no answer"
    response, _ = ask(server, "/status", tag=tag)
    assert response.status == 200
    assert find_tag(response) != tag


def test_a_pass_that_found_the_same_is_no_news(server: StatusServer, status: Status) -> None:
    tag = find_tag(ask(server, "/status")[0])
    status.stats = dict(status.stats)
    status.topology = replace(status.topology) if status.topology else None
    assert ask(server, "/status", tag=tag)[0].status == 304


def test_without_news_nothing_is_written_anew(status: Status) -> None:
    document = StatusDocument(status)
    # One pair of several: time alone is news after a while, and this machine has other work.
    assert any(document.write() is document.write() for _ in range(10))
    before = document.write()
    status.warnings = ("mtu 9000",)
    assert document.write() is not before


def test_the_page_allows_itself_only_what_it_needs(server: StatusServer) -> None:
    response, html = ask(server, "/")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(
        rule.split(" ", 1) for rule in response.headers["Content-Security-Policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    for kind in ("script-src", "style-src"):
        assert policy[kind].startswith("'sha256-")
        assert "unsafe" not in policy[kind]
    assert b"://" not in html.replace(b"http://www.w3.org/2000/svg", b"")


def test_nothing_is_left_to_be_filled_in() -> None:
    html = compose_document().html.decode()
    assert not [word for word in ("@STYLE@", "@SCRIPT@", "@SESSION_SECONDS@") if word in html]
    assert html.count("</script>") == html.count("</style>") == 1


# /graph, whatever the size


def test_a_picture_of_a_thousand_segments_is_refused_at_once(status: Status) -> None:
    with StatusServer("127.0.0.1:0", make_full(1000)) as server:
        response, text = ask(server, "/graph")
        assert response.status == 503
        assert text == (
            b"/graph: 499500 lines are too many for a picture;"
            b" ?format=dot has them, and the page at / shows the mesh\n"
        )
        response, text = ask(server, "/graph?format=dot")
        assert response.status == 200
        assert text.count(b" -> ") == 499500
