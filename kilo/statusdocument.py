"""``/status`` for those who ask for it every second: it is written anew only when the agent knows
something new, and bears a tag by which the same facts are recognised.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kilo.status import Status
from kilo.statuspage import describe_status

WATCHING_SECONDS = 5.0
"""Who has asked so lately may well ask again; the page does every second."""
FRESH_SECONDS = 1.0
"""How long who asks first waits for what the device has measured by now."""
REWRITE_SECONDS = 5.0
"""What is no older than this will do: time alone makes nodes silent, and clocks doubtful."""
IRRELEVANT = frozenset({"pass_began_at"})
"""Attributes of ``Status`` that the document says nothing of, though they change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The document as it was written."""

    text: bytes
    tag: str
    """An ``ETag``, the same for the same facts, whenever they are told."""
    facts: tuple[object, ...]
    """What it was written from."""
    at: float
    """Seconds on the monotonic clock."""


class StatusDocument:
    """The document of one agent; may be asked for from any thread."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._writing = threading.Lock()
        self._written: Written | None = None
        self._asked_at: float | None = None
        """When somebody last asked, on the monotonic clock; None: nobody has."""
        self.call: Callable[[], None] | None = None
        """Has the device measured for who asks when nobody has for a while; then ``measured``."""
        self.measured = threading.Event()

    @property
    def is_watched(self) -> bool:
        """Whether somebody asked lately."""
        return is_recent(self._asked_at, now=time.monotonic())

    def write(self) -> Written:
        """As it is now, or was a moment ago if nothing has changed since."""
        is_first, self._asked_at = not self.is_watched, time.monotonic()
        if is_first and self.call is not None:
            self.measured.clear()
            self.call()
            self.measured.wait(FRESH_SECONDS)
        with self._writing:
            # Before the document: what is replaced meanwhile is found to be new the next time.
            facts, now = _list_facts(self._status), time.monotonic()
            if self._written is None or _is_outdated(self._written, facts, now):
                self._written = _write(self._status, facts, now)
            return self._written


def is_recent(asked_at: float | None, *, now: float) -> bool:
    """Whether who asked last at ``asked_at`` may still be there; both in monotonic seconds."""
    return asked_at is not None and now - asked_at < WATCHING_SECONDS


def _list_facts(status: Status) -> tuple[object, ...]:
    """All that is known: values that are replaced whole, never changed."""
    return tuple(value for name, value in vars(status).items() if name not in IRRELEVANT)


def _is_outdated(written: Written, facts: tuple[object, ...], now: float) -> bool:
    """By identity: to compare two meshes takes as long as to write one."""
    changed = any(new is not old for new, old in zip(facts, written.facts, strict=True))
    return changed or now - written.at >= REWRITE_SECONDS


def _write(status: Status, facts: tuple[object, ...], now: float) -> Written:
    view = describe_status(status, wall=time.time())
    digest = hashlib.sha256(json.dumps({**view, "at": 0}).encode()).hexdigest()
    text = json.dumps(view, indent=2).encode() + b"\n"
    return Written(text=text, tag=f'"{digest[:32]}"', facts=facts, at=now)
