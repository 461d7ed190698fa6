"""What can go wrong between us and an etcd, each in one line: gRPC's and etcd's words -> ours."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kilo.backends.etcd.library import grpc
from kilo.errors import BackendError

MAX_MESSAGE = 300
"""Characters of what a server says that are passed on."""
MIN_SECRET = 4
"""Characters. To replace a shorter one would spoil the text and protect nothing."""
CLOSED = "the connection was closed"

_ELSEWHERE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL")
"""Codes of failures of one member, or of the way to it: another may be well."""
_OUTDATED = (
    "invalid auth token",
    "user name is empty",
    "revision of auth store is old",
    "auth revision in the token is old",
)
_CANCELED = re.compile(r"rpc error: code = (\w+) desc = (.*)", re.DOTALL)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


class EtcdError(BackendError):
    """A request to an etcd failed; names endpoint, request and what was said."""

    def __init__(self, text: str, *, code: str = "", message: str = "") -> None:
        super().__init__(text)
        self.code = code
        """Of gRPC: ``PERMISSION_DENIED``; ``UNAVAILABLE`` where there was no connection."""
        self.message = message
        """What the server said, or why there is no connection."""

    @property
    def is_of_member(self) -> bool:
        """Whether another member may well answer."""
        return self.code in _ELSEWHERE

    @property
    def is_of_token(self) -> bool:
        """Whether a new token may help."""
        return any(text in self.message for text in _OUTDATED)

    @property
    def is_compacted(self) -> bool:
        """Whether the store has forgotten the revision that was asked for."""
        return "has been compacted" in self.message


_OURS = {
    "Received message larger": "the answer is too large",
    "Socket closed": "the connection was lost",
    "GOAWAY received": "the connection was lost",
    "Connection reset by peer": "the connection was lost",
    "keepalive": "the member does not answer any more",
    "ping timeout": "the member does not answer any more",
}
"""Parts of gRPC's own words, and what they mean to an operator."""
_HINTS = {
    "user name is empty": " (it wants a user: --etcd-username and --etcd-password-file)",
    "mvcc: database space exceeded": " (its disk quota is used up, and it takes no writes until an"
    " operator makes room: etcdctl compact, defrag, alarm disarm)",
    "no leader": " (its cluster has no majority, or elects)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One request, for messages: what is asked of which member, and as whom."""

    endpoint: str
    about: str
    user: str = ""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """That a server might echo."""

    def __str__(self) -> str:
        return f"etcd {self.endpoint}: {self.about}{f' as {self.user}' if self.user else ''}"

    def fail(self, why: str, *, code: str = "UNAVAILABLE") -> EtcdError:
        """The error for an answer that does not come."""
        return EtcdError(f"{self}: {why}", code=code, message=why)

    def time_out(self, seconds: float) -> EtcdError:
        """The error for an answer that does not come in time."""
        return self.fail(f"no answer in {show_seconds(seconds)}", code="DEADLINE_EXCEEDED")

    def refuse(self, code: str, said: str) -> EtcdError:
        """The error for what a server, or gRPC, says."""
        message = _shorten(self._redact(said).removeprefix("etcdserver: ")) or code
        message = next((ours for theirs, ours in _OURS.items() if theirs in message), message)
        return EtcdError(f"{self}: {message}{_HINTS.get(message, '')}", code=code, message=message)

    def end_watch(self, reason: str) -> EtcdError:
        """The error for a watch that the server ends, which says so in Go's words."""
        match = _CANCELED.fullmatch(reason)
        code, said = match.groups() if match else ("Unknown", reason or "the server ended it")
        return self.refuse(_CAMEL.sub("_", code).upper(), said)

    def _redact(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "(redacted)") if len(secret) >= MIN_SECRET else text
        return text


@contextmanager
def translate(target: Target, *, seconds: float = 0.0) -> Iterator[None]:
    """Whatever gRPC raises inside becomes an ``EtcdError``.

    ``seconds`` is the limit that a timeout inside would be of.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        code, said = error.code().name, error.details() or ""
        if code == grpc.StatusCode.DEADLINE_EXCEEDED.name and "Deadline" in said:
            raise target.time_out(seconds) from error
        raise target.refuse(code, said) from error
    except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
        raise target.fail(CLOSED) from error
    except asyncio.CancelledError as error:
        # gRPC's word for a call that we cut ourselves as well: then nobody cancelled the task.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise target.fail(CLOSED) from error


def show_seconds(seconds: float) -> str:
    """Rounded, so that the same failure has the same text every time."""
    return f"{max(seconds, 1):.0f} s"


def _shorten(text: str) -> str:
    """One line, no control characters, ``MAX_MESSAGE`` long at most."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 1]}…"
