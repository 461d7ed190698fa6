"""A webhook at work, and what it logs."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilo.backends.memory import MemoryBackend
from kilo.log import configure
from tests.webhook.reviews import MESH
from tests.webhook.site import Site, eventually, make_config, working


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    backend = MemoryBackend(nodes=MESH.nodes, peers=MESH.peers)
    async with working(make_config(tmp_path), backend) as one:
        await eventually(one.is_ready)
        yield one


@pytest.fixture
def log() -> io.StringIO:
    stream = io.StringIO()
    configure("info", stream)
    return stream
