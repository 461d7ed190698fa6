"""Who makes room where more connect than there are threads for."""

import contextlib
import socket
import threading

from kilo.serving import Answer, Limits, Request, Server, say

ANSWER_SECONDS = 60.0


def begin(stack: contextlib.ExitStack, server: Server, sent: bytes = b"") -> socket.socket:
    """A connection that has sent so much."""
    address = ("127.0.0.1", server.port)
    client = stack.enter_context(socket.create_connection(address, timeout=ANSWER_SECONDS))
    client.sendall(sent)
    return client


class Dawdler:
    """Answers whoever asks for ``/later`` only when it is let go on."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()

    def respond(self, request: Request) -> Answer:
        if request.target == "/later":
            self.begun.release()
            assert self.go_on.wait(ANSWER_SECONDS)
        return say("done")


LATER = b"GET /later HTTP/1.0\r\n\r\n"
AT_ONCE = b"GET /now HTTP/1.0\r\n\r\n"


def test_who_has_asked_is_not_hung_up_on_while_another_has_not() -> None:
    dawdler = Dawdler()
    limits = Limits(connections=2)
    with (
        Server("127.0.0.1:0", dawdler.respond, limits=limits) as server,
        contextlib.ExitStack() as stack,
    ):
        asking = begin(stack, server, LATER)
        assert dawdler.begun.acquire(timeout=ANSWER_SECONDS)
        silent = [begin(stack, server, b"GET /half HT") for _ in range(3)]
        for hung_up in silent[:-1]:
            assert hung_up.recv(1) == b""
        dawdler.go_on.set()
        with asking.makefile("rb") as answer:
            assert answer.read().endswith(b"done\n")


def test_where_all_have_asked_the_oldest_makes_room_and_threads_stay_bounded() -> None:
    dawdler = Dawdler()
    with (
        Server("127.0.0.1:0", dawdler.respond, limits=Limits(connections=1)) as server,
        contextlib.ExitStack() as stack,
    ):
        oldest = begin(stack, server, LATER)
        assert dawdler.begun.acquire(timeout=ANSWER_SECONDS)
        second = begin(stack, server, LATER)
        assert dawdler.begun.acquire(timeout=ANSWER_SECONDS)
        assert oldest.recv(1) == b""
        # The thread of the oldest is still at work: no third one.
        third = begin(stack, server)
        with contextlib.suppress(ConnectionResetError):
            assert third.recv(1) == b""
        dawdler.go_on.set()
        with second.makefile("rb") as answer:
            assert answer.read().endswith(b"done\n")


class Moment(float):
    """A deadline that takes its time the first time it is looked at."""

    looked_at = threading.Event()

    def __radd__(self, now: float) -> "Moment":
        return Moment(now + float(self))

    def __lt__(self, now: float) -> bool:
        if not self.looked_at.is_set():
            self.looked_at.set()
            threading.Event().wait(0.5)  # for what must not happen meanwhile
        return float(self) < now


def test_a_connection_that_ends_while_deadlines_are_looked_at_ends_no_server() -> None:
    limits = Limits(request_seconds=Moment(ANSWER_SECONDS))
    with (
        Server("127.0.0.1:0", lambda _: say("done"), limits=limits) as server,
        contextlib.ExitStack() as stack,
    ):
        clients = [begin(stack, server) for _ in range(4)]
        assert Moment.looked_at.wait(ANSWER_SECONDS)
        for client in clients:
            client.close()
        with begin(stack, server, AT_ONCE).makefile("rb") as answer:
            assert answer.read().endswith(b"done\n")
