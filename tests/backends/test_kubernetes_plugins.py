"""Credential plugins in the life of the HTTP client: when they are run, and run again."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kilo.backends.kubernetes.client import Access, Client
from tests.backends.fakeapi import (
    NODES,
    FakeApi,
    make_kubeconfig,
    until,
)


def make_plugin(directory: Path, script: str) -> dict[str, Any]:
    """A plugin that notes each time it runs, and the ``exec`` section that names it."""
    path = directory / "plugin"
    path.write_text(f"#!/bin/sh\necho ran >> {directory}/runs\n{script}\n")
    path.chmod(0o755)
    return {"apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin"}


def count_runs(directory: Path) -> int:
    return len((directory / "runs").read_text().splitlines())


def connect_by_plugin(api: FakeApi, script: str) -> Client:
    cluster = {"server": api.url, "certificate-authority": "ca.crt"}
    user = {"exec": make_plugin(api.directory, script)}
    path = make_kubeconfig(api.directory / "kubeconfig", cluster=cluster, user=user)
    return Client(Access(kubeconfig=path))


def print_token(token: str, expires: str = "2999-01-01T00:00:00Z") -> str:
    status = {"token": token, "expirationTimestamp": expires}
    return f"echo '{json.dumps({'kind': 'ExecCredential', 'status': status})}'"


async def test_a_plugin_is_run_once_until_its_token_is_refused(api: FakeApi) -> None:
    client = connect_by_plugin(api, print_token("one"))
    await client.call("GET", NODES)
    await client.call("GET", NODES)
    assert count_runs(api.directory) == 1
    make_plugin(api.directory, print_token("two"))
    api.tokens = {"two"}
    await client.call("GET", NODES)
    assert [asked.token for asked in api.asked] == ["one", "one", "one", "two"]
    assert count_runs(api.directory) == 2
    await client.close()


async def test_a_plugin_is_run_again_when_its_token_has_expired(api: FakeApi) -> None:
    expires = datetime.now(UTC) + timedelta(seconds=1)
    client = connect_by_plugin(api, print_token("one", expires.isoformat()))
    await client.call("GET", NODES)
    make_plugin(api.directory, print_token("two"))

    async def is_renewed() -> bool:
        await client.call("GET", NODES)
        return api.asked[-1].token == "two"

    await until(is_renewed)
    await client.close()


async def test_a_plugin_that_prints_old_times_is_not_run_at_each_request(api: FakeApi) -> None:
    client = connect_by_plugin(api, print_token("one", "2001-01-01T00:00:00Z"))
    for _ in range(50):
        await client.call("GET", NODES)
    assert count_runs(api.directory) < 25, "once a second at most"
    await client.close()


async def test_a_slow_plugin_does_not_stop_the_program(api: FakeApi) -> None:
    fifo = api.directory / "fifo"
    os.mkfifo(fifo)
    client = connect_by_plugin(api, f"cat {fifo} > /dev/null; {print_token('one')}")
    calling = asyncio.create_task(client.call("GET", NODES))

    async def has_started() -> bool:
        return (api.directory / "runs").exists()

    await until(has_started)  # this task runs on while the plugin waits
    assert not calling.done()
    # O_RDWR never blocks; the plugin reads to the end once this is closed.
    os.close(os.open(fifo, os.O_RDWR))
    with fifo.open("w"):
        pass
    await calling
    await client.close()
