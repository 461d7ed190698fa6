from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kilo.backends.file.backend import FileBackend
from kilo.backends.kubernetes.client import Client
from kilo.lab.certificates import Authority
from tests.backends.directories import MeshDirectory
from tests.backends.fakeapi import FakeApi, connect
from tests.backends.stores import NOW, STORES, Store


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with STORES[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory if possible: a disk busy with other tests stalls writers for seconds at a time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="kilo-test-") as directory:
        yield Path(directory)


@pytest.fixture
def mesh(tmp_path: Path) -> MeshDirectory:
    (tmp_path / "mesh").mkdir()
    return MeshDirectory(tmp_path / "mesh")


@pytest.fixture
async def backend(mesh: MeshDirectory) -> AsyncIterator[FileBackend]:
    opened = FileBackend(mesh.path, wall_clock=lambda: NOW)
    yield opened
    await opened.close()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[FakeApi]:
    async with FakeApi(Authority.create(), tmp_path).serve() as served:
        yield served


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[Client]:
    made = connect(api, token="one")
    yield made
    await made.close()
