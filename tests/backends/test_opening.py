"""Choosing a backend: the one that is asked for, nothing more, or one line that says why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kilo.backends.etcd.config import EtcdConfig
from kilo.backends.etcd.endpoints import read_endpoints, read_prefix
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


async def test_the_etcd_backend_is_opened_though_nobody_answers() -> None:
    config = EtcdConfig(endpoints=("http://127.0.0.1:9",))
    backend = await open_backend(BackendConfig(kind="etcd", etcd=config))
    with pytest.raises(BackendError, match=r"etcd http://127.0.0.1:9: .*: connection refused"):
        await backend.snapshot()
    await backend.close()


FILE = Path("/run/secret")


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (EtcdConfig(endpoints=()), "--etcd-endpoints: names no member"),
        (
            EtcdConfig(endpoints=("ftp://h:1",)),
            "--etcd-endpoints 'ftp://h:1': is not http://host:port, https://host:port or host:port",
        ),
        (
            EtcdConfig(endpoints=("http://root:hush@h:1",)),
            "--etcd-endpoints 'h:1': is not http://host:port, https://host:port or host:port",
        ),
        (
            EtcdConfig(endpoints=("http://h:1",), cacert=FILE),
            "--etcd-endpoints 'http://h:1': is without TLS, and --etcd-cacert is for TLS",
        ),
        (EtcdConfig(cert=FILE), "--etcd-cert '/run/secret': is nothing without --etcd-key"),
        (EtcdConfig(key=FILE), "--etcd-key '/run/secret': is nothing without --etcd-cert"),
        (EtcdConfig(username="a"), "--etcd-username 'a': is nothing without --etcd-password-file"),
        (
            EtcdConfig(password_file=FILE),
            "--etcd-password-file '/run/secret': is nothing without --etcd-username",
        ),
        (EtcdConfig(prefix=""), "--etcd-prefix '': is empty, and so every key of the store's"),
        (EtcdConfig(prefix="//"), "--etcd-prefix '//': is empty, and so every key of the store's"),
        (
            EtcdConfig(prefix="/a\n"),
            "--etcd-prefix '/a\ufffd': has spaces at an end, or what cannot be printed",
        ),
    ],
)
async def test_flags_of_etcd_that_make_no_sense_are_refused_in_one_line(
    config: EtcdConfig, complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        await open_backend(BackendConfig(kind="etcd", etcd=config))
    assert str(caught.value) == complaint


@pytest.mark.parametrize("prefix", ["/kilo", "/kilo/", "/kilo//"])
def test_a_slash_at_the_end_of_the_prefix_is_no_difference(prefix: str) -> None:
    assert read_prefix(prefix) == "/kilo/"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://127.0.0.1:2379", "http://127.0.0.1:2379"),
        ("HTTPS://Etcd.example.com/", "https://etcd.example.com:2379"),
        ("10.0.0.1:4001", "http://10.0.0.1:4001"),
        ("http://[fd00::1]:2379", "http://[fd00::1]:2379"),
        ("[::1]", "http://[::1]:2379"),
        ("localhost", "http://localhost:2379"),
    ],
)
def test_an_endpoint_may_be_written_in_many_ways(text: str, shown: str) -> None:
    (endpoint,) = read_endpoints(EtcdConfig(endpoints=(text, text)))
    assert str(endpoint) == shown


def test_an_endpoint_without_a_scheme_is_spoken_to_with_tls_where_certificates_are_given() -> None:
    (endpoint,) = read_endpoints(EtcdConfig(endpoints=("etcd:2379",), cacert=FILE))
    assert str(endpoint) == "https://etcd:2379"


@pytest.mark.parametrize("text", ["", "::1", "a b", "h:x", "h:70000", "http://", "h/path", "h?q"])
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--etcd-endpoints"):
        read_endpoints(EtcdConfig(endpoints=(text,)))


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
        "assert not {'etcd3', 'grpc', 'google.protobuf'} & set(sys.modules)\n"
        "config = BackendConfig(kind='etcd')\n"
        "asyncio.run(open_backend(config))\n"
        "assert {'etcd3', 'grpc'} <= set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
