"""Agents that take their time, send one elsewhere, or tell without end."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus

import pytest

from kilo.kgctl.asking import MAX_BYTES, SilentAgentError, ask_agent
from kilo.serving import Answer, Request, Server

LIMIT_SECONDS = 60.0
TRICKLE_SECONDS = 0.05


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of an agent of which one connection is answered so, and then closed."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(LIMIT_SECONDS)


@pytest.mark.parametrize(
    "beginning",
    [b"HTTP/1.0 200 OK\r\nX-Much: ", b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n"],
    ids=["in its headers", "in its body"],
)
def test_an_agent_that_trickles_its_answer_is_given_up(beginning: bytes) -> None:
    pace = threading.Event()

    def trickle(connection: socket.socket) -> None:
        connection.sendall(beginning)
        for _ in range(int(LIMIT_SECONDS / TRICKLE_SECONDS)):
            connection.sendall(b"x")
            pace.wait(TRICKLE_SECONDS)

    with serving(trickle) as address, pytest.raises(SilentAgentError) as silence:
        ask_agent(address, limit_seconds=0.5)
    assert str(silence.value) == f"agent {address}: no whole answer in 0.5 s"


def test_an_agent_that_sends_one_elsewhere_is_not_followed() -> None:
    asked = []

    def respond(request: Request) -> Answer:
        asked.append(request.target)
        return Answer(body=b"", status=HTTPStatus.FOUND, headers={"Location": "/elsewhere"})

    with Server("127.0.0.1:0", respond) as server:
        address = f"http://127.0.0.1:{server.port}"
        with pytest.raises(SilentAgentError) as silence:
            ask_agent(address)
    assert str(silence.value) == f"agent {address}: answers 302"
    assert asked == ["/status"]


def test_an_agent_that_tells_too_much_is_not_heard_out() -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        for _ in range(MAX_BYTES // 65536 + 1):
            connection.sendall(bytes(65536))

    with serving(flood) as address, pytest.raises(SilentAgentError) as silence:
        ask_agent(address, limit_seconds=LIMIT_SECONDS)
    assert str(silence.value) == f"agent {address}: answers with more than 67108864 bytes"


def test_an_agent_of_another_release_is_told_by_its_answer() -> None:
    with Server("127.0.0.1:0", lambda _: Answer(body=b"", status=HTTPStatus.NOT_FOUND)) as server:
        address = f"http://127.0.0.1:{server.port}"
        with pytest.raises(SilentAgentError) as silence:
            ask_agent(address)
    assert str(silence.value) == f"agent {address}: answers 404; is it of an older release?"
