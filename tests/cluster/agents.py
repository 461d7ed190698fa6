"""The backend as an agent opens it, and what the API server noted of its requests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from kilo.backends.kubernetes.backend import KubernetesBackend
from kilo.backends.kubernetes.client import Access, Client
from kilo.lab.controlplane import ControlPlane
from kilo.mesh.model import Snapshot

ERROR_SECONDS = 60.0
"""The longest that an agent may take to notice that the store is away."""
RETURN_SECONDS = 10.0
"""The longest that it may take to have everything again once the store is back."""

T = TypeVar("T")


@contextlib.asynccontextmanager
async def open_agent(
    kubeconfig: Path, *, wall_clock: Callable[[], float] = time.time
) -> AsyncIterator[KubernetesBackend]:
    """A backend with these credentials."""
    backend = KubernetesBackend(Client(Access(kubeconfig=str(kubeconfig))), wall_clock=wall_clock)
    try:
        yield backend
    finally:
        await backend.close()


async def within(seconds: float, what: Awaitable[T]) -> T:
    """What it gives; ``TimeoutError`` if not within so many seconds."""
    async with asyncio.timeout(seconds):
        return await what


def places(snapshot: Snapshot) -> dict[str, str]:
    """The location of each node."""
    return {node.name: node.spec.location for node in snapshot.nodes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the API server's audit log has it."""

    verb: str
    group: str
    resource: str
    """With a subresource, ``peers/status``."""
    name: str
    code: int
    path: str
    """With its query."""
    at: datetime
    """When it came."""


class Requests:
    """What a user asked of the API server from now on."""

    def __init__(self, plane: ControlPlane, user: str) -> None:
        self._plane = plane
        self._user = user
        self._skip = sum(1 for _ in plane.read_audit())

    def read(self) -> list[Request]:
        """One for each request that has ended; a watch ends with its connection."""
        records = list(self._plane.read_audit())[self._skip :]
        return [_read_request(one) for one in records if one["user"]["username"] == self._user]


def _read_request(record: dict[str, Any]) -> Request:
    target = record.get("objectRef", {})
    parts = (target.get("resource", record["requestURI"]), target.get("subresource", ""))
    return Request(
        verb=record["verb"],
        group=target.get("apiGroup", ""),
        resource="/".join(filter(None, parts)),
        name=target.get("name", ""),
        code=record.get("responseStatus", {}).get("code", 0),
        path=record["requestURI"],
        at=datetime.fromisoformat(record["requestReceivedTimestamp"]),
    )
