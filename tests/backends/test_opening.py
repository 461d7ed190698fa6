"""Choosing a backend: the one that is asked for, nothing more, or one line that says why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kilo.backends.file.backend import FileBackend
from kilo.backends.kubernetes.backend import KubernetesBackend
from kilo.backends.opening import BackendConfig, open_backend
from kilo.errors import BackendError, ConfigError


async def test_the_file_backend_is_opened_on_its_directory(tmp_path: Path) -> None:
    backend = await open_backend(BackendConfig(kind="file", directory=tmp_path))
    assert isinstance(backend, FileBackend)
    assert backend.directory == tmp_path
    await backend.close()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "etcd",
            (
                "--backend=etcd comes with a later release;"
                " --backend=kubernetes and --backend=file work"
            ),
        ),
        ("files", "--backend=files: is not one of kubernetes, etcd, file"),
    ],
)
async def test_what_cannot_be_opened_is_refused_in_one_line(kind: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await open_backend(BackendConfig(kind=kind))
    assert str(caught.value) == message


async def test_the_kubernetes_backend_is_opened_though_nobody_answers() -> None:
    backend = await open_backend(BackendConfig(kind="kubernetes", master="http://127.0.0.1:9"))
    assert isinstance(backend, KubernetesBackend)
    with pytest.raises(BackendError, match="connection refused"):
        await backend.snapshot()
    await backend.close()


async def test_a_kubeconfig_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    with pytest.raises(ConfigError, match=f"{path}: "):
        await open_backend(BackendConfig(kind="kubernetes", kubeconfig=str(path)))


def test_choosing_is_what_imports_a_backend_and_no_other_is_imported() -> None:
    program = (
        "import asyncio, pathlib, sys\n"
        "from kilo.backends.opening import BackendConfig, open_backend\n"
        "assert 'watchdog' not in sys.modules\n"
        "config = BackendConfig(kind='file', directory=pathlib.Path('/nowhere'))\n"
        "asyncio.run(open_backend(config))\n"
        "assert 'watchdog' in sys.modules\n"
        "assert not {'kubernetes', 'aiohttp', 'etcd3', 'grpc'} & set(sys.modules)\n"
        "config = BackendConfig(kind='kubernetes', master='http://127.0.0.1:9')\n"
        "asyncio.run(open_backend(config))\n"
        "assert 'aiohttp' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
