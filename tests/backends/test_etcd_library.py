"""The package etcd3: that it works unaided, and what keeps us from its client (docs/adr/0017)."""

from __future__ import annotations

import importlib
import os
import queue
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kilo.backends.etcd.library import grpc, messages
from tests.backends.etcds import Etcd

etcd3 = importlib.import_module("etcd3")  # after the line above, which imports it as it must be

LIMIT_SECONDS = 60.0
VARIABLE = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("set_by_user", ["", "upb", "python"])
def test_nothing_in_the_environment_has_to_be_set_and_what_is_set_stays(set_by_user: str) -> None:
    more = {VARIABLE: set_by_user} if set_by_user else {}
    done = run(
        "import os\n"
        "from kilo.backends.etcd.library import messages\n"
        "assert messages.PutRequest(key=b'a').SerializeToString()\n"
        f"print(os.environ.get({VARIABLE!r}, ''), os.environ.get('GRPC_VERBOSITY', ''))",
        **more,
    )
    assert (done.stdout.strip(), done.stderr) == (set_by_user, "")


def test_protobuf_that_is_there_already_in_its_other_form_is_one_line() -> None:
    done = run(
        "import google.protobuf.descriptor\n"
        "from kilo.errors import ConfigError\n"
        "try:\n"
        "    import kilo.backends.etcd.library\n"
        "except ConfigError as error:\n"
        "    print(error)",
        **{VARIABLE: "upb"},
    )
    assert done.stdout == (
        "--backend=etcd: the package etcd3 is not usable: protobuf is loaded in this process"
        " already, and not in its implementation in Python\n"
    )


def test_grpc_writes_no_lines_of_its_own_about_a_handshake_that_fails(tmp_path: Path) -> None:
    with Etcd(tmp_path, is_tls=True) as etcd:
        done = run(
            "import asyncio\n"
            "from kilo.backends.etcd.asks import get\n"
            "from kilo.backends.etcd.client import Client\n"
            "from kilo.backends.etcd.config import EtcdConfig\n"
            "from kilo.errors import BackendError\n"
            "async def main():\n"
            f"    client = Client(EtcdConfig(endpoints=({etcd.url!r},)))\n"
            "    try:\n"
            "        await client.call(get('/kilo/a'))\n"
            "    except BackendError as error:\n"
            "        print(error)\n"
            "    await client.close()\n"
            "asyncio.run(main())",
        )
    assert "the server's certificate is refused" in done.stdout
    assert done.stderr == ""


# What its own client does. These fail on the day that it does better: then ADR 17 is due again.


def wait_for_answer(client: Any) -> None:
    """Until calls work again, which after a restart they do."""
    limit = time.monotonic() + LIMIT_SECONDS
    while True:
        try:
            client.get("/kilo/a")
        except etcd3.Etcd3Exception:
            assert time.monotonic() < limit
        else:
            return


# Its thread dies when the client is closed, with a traceback.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_watch_of_its_client_never_speaks_again_after_a_restart(tmp_path: Path) -> None:
    with Etcd(tmp_path) as etcd:
        client = etcd3.client(host="127.0.0.1", port=etcd.port, timeout=10)
        heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        client.add_watch_prefix_callback("/kilo/", heard.put)
        client.put("/kilo/a", "1")
        assert [event.value for event in heard.get(timeout=LIMIT_SECONDS).events] == [b"1"]
        etcd.stop()
        assert isinstance(heard.get(timeout=LIMIT_SECONDS), grpc.RpcError)
        etcd.start()
        wait_for_answer(client)
        anew: queue.SimpleQueue[Any] = queue.SimpleQueue()
        other = etcd3.client(host="127.0.0.1", port=etcd.port, timeout=10)
        other.add_watch_prefix_callback("/kilo/", anew.put)
        client.put("/kilo/a", "2")
        assert [event.value for event in anew.get(timeout=LIMIT_SECONDS).events] == [b"2"]
        assert heard.empty()
        other.close()
        client.close()


def connect_as_root(etcd: Etcd) -> Any:
    certificate, key = etcd.make_certificate("a1")
    return etcd3.client(
        host="127.0.0.1",
        port=etcd.port,
        ca_cert=str(etcd.directory / "ca.crt"),
        cert_cert=str(certificate),
        cert_key=str(key),
        user="root",
        password="correct-horse",
        timeout=10,
    )


def wait_for_refusal(client: Any) -> str:
    """What is said once a call is refused."""
    limit = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < limit:
        try:
            client.get("/kilo/a")
        except grpc.RpcError as error:
            return str(error.details())
        time.sleep(2.0)  # a token lives for its time after it was last used
    return ""


def test_a_token_that_has_expired_its_client_never_renews(tmp_path: Path) -> None:
    with Etcd(tmp_path, flags=["--auth-token-ttl=1"], is_tls=True) as etcd:
        etcd.enable_auth(password="correct-horse")
        client = connect_as_root(etcd)
        assert wait_for_refusal(client) == "etcdserver: invalid auth token"
        for _ in range(3):
            with pytest.raises(grpc.RpcError, match="invalid auth token"):
                client.get("/kilo/a")
        client.close()


def test_with_a_password_and_without_tls_its_client_does_not_work(tmp_path: Path) -> None:
    with Etcd(tmp_path) as etcd:
        etcd.enable_auth(password="correct-horse")
        client = etcd3.client(
            host="127.0.0.1", port=etcd.port, user="root", password="correct-horse", timeout=10
        )
        with pytest.raises(grpc.RpcError, match="sufficient security level"):
            client.get("/kilo/a")
        client.close()


def test_its_client_has_no_second_endpoint() -> None:
    with pytest.raises(TypeError):
        etcd3.client(endpoints=["http://127.0.0.1:2379", "http://127.0.0.1:2380"])


def test_its_messages_cannot_ask_for_progress() -> None:
    """So it is a small read that finds a silent stream: see ``kilo/backends/listwatch.py``."""
    assert not hasattr(messages, "WatchProgressRequest")
