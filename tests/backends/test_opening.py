"""Choosing a backend: the one that is asked for, nothing more, or one line that says why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kilo.backends.file.backend import FileBackend
from kilo.backends.opening import BackendConfig, open_backend
from kilo.errors import ConfigError


async def test_the_file_backend_is_opened_on_its_directory(tmp_path: Path) -> None:
    backend = await open_backend(BackendConfig(kind="file", directory=tmp_path))
    assert isinstance(backend, FileBackend)
    assert backend.directory == tmp_path
    await backend.close()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("etcd", "--backend=etcd comes with a later release; --backend=file works"),
        ("kubernetes", "--backend=kubernetes comes with a later release; --backend=file works"),
        ("files", "--backend=files: is not one of kubernetes, etcd, file"),
    ],
)
async def test_what_cannot_be_opened_is_refused_in_one_line(kind: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await open_backend(BackendConfig(kind=kind))
    assert str(caught.value) == message


def test_choosing_is_what_imports_a_backend_and_no_other_is_imported() -> None:
    program = (
        "import asyncio, pathlib, sys\n"
        "from kilo.backends.opening import BackendConfig, open_backend\n"
        "assert 'watchdog' not in sys.modules\n"
        "config = BackendConfig(kind='file', directory=pathlib.Path('/nowhere'))\n"
        "asyncio.run(open_backend(config))\n"
        "assert 'watchdog' in sys.modules\n"
        "assert not {'kubernetes', 'etcd3', 'grpc'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
