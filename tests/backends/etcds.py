"""Real etcds for tests: one shared by all of a run, others to be broken."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from kilo.backends.etcd.asks import Ask, get
from kilo.backends.etcd.client import Client
from kilo.backends.etcd.config import EtcdConfig
from kilo.errors import BackendError, LabError
from kilo.lab.certificates import Authority
from kilo.lab.controlplane import find_free_ports
from kilo.lab.program import Program

START_SECONDS = 60.0
KEY = "/kilo/nodes/a1"


class Etcd:
    """One member on loopback, started and stopped at will; its data are in ``directory``."""

    def __init__(
        self,
        directory: Path,
        *,
        flags: Sequence[str] = (),
        is_tls: bool = False,
        ports: Sequence[int] = (),
    ) -> None:
        """``flags``: more of etcd's. ``is_tls``: only for clients of ``authority``."""
        self.directory = directory
        self.port, self._peer_port = ports or find_free_ports("127.0.0.1", "127.0.0.1")
        self.url = f"{'https' if is_tls else 'http'}://127.0.0.1:{self.port}"
        self._as_whom: list[str] = []
        self.authority = Authority.create()
        peer_url = f"http://127.0.0.1:{self._peer_port}"
        self._program = Program(
            [
                "etcd",
                f"--data-dir={directory / 'etcd'}",
                f"--listen-client-urls={self.url}",
                f"--advertise-client-urls={self.url}",
                f"--listen-peer-urls={peer_url}",
                f"--initial-advertise-peer-urls={peer_url}",
                f"--initial-cluster=default={peer_url}",
                *(self._write_certificates() if is_tls else ()),
                *flags,
            ],
            log=directory / "etcd.log",
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.begin()
        limit = time.monotonic() + START_SECONDS
        while self._run("get", "nothing").returncode:
            self._program.check()
            if time.monotonic() > limit:
                raise LabError(f"etcd: does not answer: {self._run('get', 'nothing').stderr}")

    def begin(self) -> None:
        """Start it; of several members none answers before the others have begun."""
        self._program.start()

    def stop(self) -> None:
        """Thaw it and end it at once."""
        self._program.kill()

    def freeze(self) -> None:
        """Its sockets stay open and say nothing."""
        self._program.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self._program.thaw()

    def ctl(self, *words: str, text: str = "") -> str:
        """The output of ``etcdctl``, fed with ``text``."""
        done = self._run(*words, text=text)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def compact(self) -> int:
        """Forget all history, and return the revision that is left."""
        status = json.loads(self.ctl("endpoint", "status", "--write-out=json"))
        revision = int(status[0]["Status"]["header"]["revision"])
        self.ctl("compact", str(revision))
        return revision

    def restore(self, backup: Path) -> None:
        """Have the state of that snapshot in the place of its own; to be called while stopped."""
        data = self.directory / "etcd"
        shutil.rmtree(data)
        peer_url = f"http://127.0.0.1:{self._peer_port}"
        self.ctl(
            "snapshot",
            "restore",
            str(backup),
            f"--data-dir={data}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
        )

    def enable_auth(self, *, password: str) -> None:
        """From now on everybody needs a user; ``ctl`` is root."""
        self.ctl("user", "add", f"root:{password}")
        self.ctl("user", "grant-role", "root", "root")
        self.ctl("auth", "enable")
        self._as_whom += [f"--user=root:{password}"]

    def make_certificate(self, user: str) -> tuple[Path, Path]:
        """A client's certificate and its key, by a trusted authority."""
        return self.authority.issue_client(user).write(self.directory, user)

    def _write_certificates(self) -> list[str]:
        self.authority.write(self.directory)
        certificate, key = self.authority.issue_server(["127.0.0.1", "localhost"]).write(
            self.directory, "server"
        )
        ca = self.directory / "ca.crt"
        own_certificate, own_key = self.make_certificate("root")
        self._as_whom += [f"--cacert={ca}", f"--cert={own_certificate}", f"--key={own_key}"]
        return [
            f"--cert-file={certificate}",
            f"--key-file={key}",
            "--client-cert-auth",
            f"--trusted-ca-file={ca}",
        ]

    def _run(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["etcdctl", f"--endpoints={self.url}", *self._as_whom, *words],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60.0,
            check=False,
            env=os.environ | {"ETCDCTL_API": "3"},
        )


@contextmanager
def running_cluster(directory: Path, count: int) -> Iterator[list[Etcd]]:
    """So many members of one etcd, running, and to be broken."""
    ports = find_free_ports(*["127.0.0.1"] * 2 * count)
    names = [f"m{number}" for number in range(count)]
    pairs = dict(zip(names, batched(ports), strict=True))
    cluster = ",".join(f"{name}=http://127.0.0.1:{pair[1]}" for name, pair in pairs.items())
    members = []
    for name, pair in pairs.items():
        (directory / name).mkdir()
        flags = [f"--name={name}", f"--initial-cluster={cluster}"]
        members.append(Etcd(directory / name, flags=flags, ports=pair))
    try:
        for member in members:
            member.begin()
        for member in members:
            member.start()
        yield members
    finally:
        for member in members:
            member.stop()


def batched(ports: Sequence[int]) -> list[Sequence[int]]:
    """Two by two."""
    return [ports[at : at + 2] for at in range(0, len(ports), 2)]


@functools.cache
def share_etcd() -> Etcd:
    """The etcd of this test run, which nobody may stop; each test has a prefix of its own."""
    # In memory if possible: etcd waits for its disk at every write.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="kilo-etcd-", dir=memory))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    etcd = Etcd(directory)
    atexit.register(etcd.stop)
    etcd.start()
    return etcd


def connect(*endpoints: str, **more: Any) -> Client:
    """A client of these members; ``more``: further fields of the configuration."""
    return Client(EtcdConfig(endpoints=endpoints, **more))


@asynccontextmanager
async def connected(*endpoints: str, **more: Any) -> AsyncIterator[Client]:
    client = connect(*endpoints, **more)
    yield client
    await client.close()


async def hear_failure(*endpoints: str, **more: Any) -> str:
    """The text of the error that a small read comes to."""
    return await hear_refusal(get(KEY), *endpoints, **more)


async def hear_refusal(ask: Ask, /, *endpoints: str, **more: Any) -> str:
    """The text of the error that the request comes to."""
    async with connected(*endpoints, **more) as client:
        with pytest.raises(BackendError) as caught:
            await client.call(ask)
    text = str(caught.value)
    assert "\n" not in text
    return text


async def succeeds(client: Client, ask: Ask) -> bool:
    """Whether the request is answered."""
    try:
        await client.call(ask)
    except BackendError:
        return False
    return True


def find_ways_in(etcd: Etcd, user: str = "a1") -> dict[str, Path]:
    """What a client of a secured etcd needs: a new certificate each time."""
    certificate, key = etcd.make_certificate(user)
    return {"cacert": etcd.directory / "ca.crt", "cert": certificate, "key": key}
