"""The host's name is looked up beside everything else, never in its way."""

from __future__ import annotations

import queue
import threading
from ipaddress import ip_address

from kilo.dataplane.hostfacts import HostnameLookup, resolve_hostname
from kilo.mesh.model import IPAddress

LIMIT_SECONDS = 30.0
ANSWER = (ip_address("192.168.0.1"), ip_address("fd00:192::1"))


class Resolver:
    """Answers when it is told to, and an exception by raising it."""

    def __init__(self) -> None:
        self.answers: queue.Queue[tuple[IPAddress, ...] | Exception] = queue.Queue()
        self.asked: queue.Queue[str] = queue.Queue()

    def resolve(self, hostname: str) -> tuple[IPAddress, ...]:
        self.asked.put(hostname)
        answer = self.answers.get(timeout=LIMIT_SECONDS)
        if isinstance(answer, Exception):
            raise answer
        return answer


def make_lookup(resolver: Resolver) -> tuple[HostnameLookup, threading.Semaphore]:
    changed = threading.Semaphore(0)
    lookup = HostnameLookup("host-1", on_change=changed.release, resolve=resolver.resolve)
    return lookup, changed


def test_a_resolver_that_is_silent_holds_nobody_up() -> None:
    resolver = Resolver()
    lookup, _ = make_lookup(resolver)

    assert lookup.get_addresses("basis") == ()
    assert resolver.asked.get(timeout=LIMIT_SECONDS) == "host-1"
    assert lookup.get_addresses("another basis") == ()
    assert resolver.asked.empty(), "one question at a time"
    resolver.answers.put(())


def test_an_answer_is_announced_and_then_used() -> None:
    resolver = Resolver()
    lookup, changed = make_lookup(resolver)
    lookup.get_addresses("basis")

    resolver.answers.put(ANSWER)

    assert changed.acquire(timeout=LIMIT_SECONDS)
    assert lookup.get_addresses("basis") == ANSWER
    assert resolver.asked.qsize() == 1, "a good answer is not asked for again at once"


def test_other_addresses_of_the_host_are_a_reason_to_ask_again() -> None:
    resolver = Resolver()
    lookup, changed = make_lookup(resolver)
    resolver.answers.put(ANSWER)
    lookup.get_addresses("basis")
    assert changed.acquire(timeout=LIMIT_SECONDS)

    resolver.answers.put(ANSWER[:1])
    while resolver.asked.qsize() < 2:  # the first thread may not quite have ended
        lookup.get_addresses("another basis")

    assert changed.acquire(timeout=LIMIT_SECONDS)
    assert lookup.get_addresses("another basis") == ANSWER[:1]


def test_a_failure_leaves_the_last_answer_in_force() -> None:
    resolver = Resolver()
    lookup, changed = make_lookup(resolver)
    resolver.answers.put(ANSWER)
    lookup.get_addresses("basis")
    assert changed.acquire(timeout=LIMIT_SECONDS)

    resolver.answers.put(OSError("no resolver"))
    while resolver.asked.qsize() < 2:
        lookup.get_addresses("another basis")

    assert lookup.get_addresses("another basis") == ANSWER


def test_a_name_is_resolved_to_each_of_its_addresses_once() -> None:
    assert ip_address("127.0.0.1") in resolve_hostname("localhost")
    assert len(set(resolve_hostname("localhost"))) == len(resolve_hostname("localhost"))
