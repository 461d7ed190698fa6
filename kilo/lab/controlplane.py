"""A real etcd and a real API server on this machine, to be broken at will.

There are no controllers and no kubelets: what Nodes there are somebody writes by hand, nobody
makes ServiceAccounts, nobody collects garbage. Times are seconds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from kilo.errors import LabError
from kilo.lab.apicalls import ApiCaller, RefusedError
from kilo.lab.planefiles import (
    ADMIN,
    PlaneFiles,
    Programs,
    find_programs,
    make_apiserver_command,
    make_etcd_command,
    make_restore_command,
)
from kilo.lab.program import Program

START_SECONDS = 120.0
"""An API server is ready after 4 s on an idle machine."""
RUN_SECONDS = 120.0
POLL_SECONDS = 0.05
CONFLICT = 409
"""Of HTTP: it exists already."""
PORTS = range(20_000, 32_000)
"""Below those that the kernel gives to clients: one that calls a dead server on such a port may
be given that very port, and so reach itself."""


class ControlPlane:
    """Its files are in ``directory``, which it makes and does not remove."""

    def __init__(
        self, directory: Path, *, address: str = "127.0.0.1", flags: Sequence[str] = ()
    ) -> None:
        """``flags``: more of the API server's, ``--watch-cache=false`` say."""
        port, etcd_port, etcd_peer_port = find_free_ports(address, "127.0.0.1", "127.0.0.1")
        self.files = PlaneFiles(
            directory=directory,
            address=address,
            port=port,
            etcd_port=etcd_port,
            etcd_peer_port=etcd_peer_port,
        )
        self._programs: Programs = find_programs()
        self._etcd = Program(
            make_etcd_command(self.files, self._programs), log=directory / "etcd.log"
        )
        self._apiserver = Program(
            [*make_apiserver_command(self.files, self._programs), *flags],
            log=directory / "apiserver.log",
        )

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return self.files.server

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.files.kubeconfig

    # --- its life ---

    def start(self, *, tell: Callable[[str], None] = lambda _: None) -> None:
        """Start both and wait until they are ready; ``LabError`` quotes the log of one that ends.

        ``tell`` hears what is being waited for.
        """
        self.files.write()
        tell("starting etcd")
        self.start_etcd()
        tell("starting the API server")
        self.start_apiserver()

    def stop(self) -> None:
        """End both; may be called twice."""
        self._apiserver.stop()
        self._etcd.stop()

    def start_apiserver(self) -> None:
        """Start it and wait until it is ready to serve."""
        self._apiserver.start()
        _wait_until(self._serves, self._apiserver)

    def kill_apiserver(self) -> None:
        """End it at once; connections are reset."""
        self._apiserver.kill()

    def freeze_apiserver(self) -> None:
        """It answers nothing, but its connections stay and new ones are accepted."""
        self._apiserver.freeze()

    def thaw_apiserver(self) -> None:
        """Let it go on."""
        self._apiserver.thaw()

    def start_etcd(self) -> None:
        """Start it and wait until it answers."""
        self._etcd.start()
        _wait_until(self._stores, self._etcd)

    def kill_etcd(self) -> None:
        """End it at once, behind an API server that lives."""
        self._etcd.kill()

    def freeze_etcd(self) -> None:
        """It answers nothing."""
        self._etcd.freeze()

    def thaw_etcd(self) -> None:
        """Let it go on."""
        self._etcd.thaw()

    def _serves(self) -> bool:
        try:
            self.call("GET", "/readyz", timeout=5.0)
            # Made by the server itself, a moment after it is ready.
            self.call("GET", "/api/v1/namespaces/kube-system", timeout=5.0)
        except LabError:
            return False
        return True

    def _stores(self) -> bool:
        return self._run_etcdctl("endpoint", "health").returncode == 0

    # --- its store ---

    def backup(self) -> Path:
        """Save all that etcd holds to a new file, and return its path."""
        taken = len(list(self.files.directory.glob("backup-*.db")))
        path = self.files.directory / f"backup-{taken + 1}.db"
        self.etcdctl("snapshot", "save", str(path))
        return path

    def restore(self, backup: Path) -> None:
        """Put that state back, and start both again. Revisions go on from the older number."""
        self._apiserver.kill()
        self._etcd.kill()
        shutil.rmtree(self.files.directory / "etcd")
        _run(make_restore_command(self.files, self._programs, backup))
        self.start()

    def compact(self) -> int:
        """Forget all history of etcd, and return the revision that is left."""
        status = json.loads(self.etcdctl("endpoint", "status", "--write-out=json"))
        revision = int(status[0]["Status"]["header"]["revision"])
        self.etcdctl("compact", str(revision))
        return revision

    def etcdctl(self, *words: str, text: str = "") -> str:
        """The output of ``etcdctl``, fed with ``text``; ``LabError`` if it fails."""
        return _check(self._run_etcdctl(*words, text=text), words)

    def _run_etcdctl(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(self._programs.etcdctl), f"--endpoints={self.files.etcd_url}", *words]
        return _call(command, text=text, environment=os.environ | {"ETCDCTL_API": "3"})

    # --- its API ---

    def call(self, method: str, path: str, document: object = None, **how: Any) -> dict[str, Any]:
        """One request as the administrator; ``how`` as ``ApiCaller.call`` takes it."""
        directory = self.files.directory
        caller = ApiCaller(
            self.server,
            authority=directory / "ca.crt",
            certificate=directory / f"{ADMIN}.crt",
            key=directory / f"{ADMIN}.key",
        )
        return caller.call(method, path, document, **how)

    def kubectl(self, *words: str, text: str = "") -> str:
        """The output of ``kubectl`` as the administrator, fed with ``text``."""
        cache = self.files.directory / "kubectl"
        command = [str(self._programs.kubectl), f"--kubeconfig={self.kubeconfig}"]
        done = _call([*command, f"--cache-dir={cache}", *words], text=text)
        return _check(done, ("kubectl", *words))

    def apply(self, document: object) -> str:
        """Create or change what a document, or text of several YAML documents, describes."""
        text = document if isinstance(document, str) else json.dumps(document)
        return self.kubectl("apply", "--filename=-", text=text)

    def make_kubeconfig(
        self,
        name: str,
        *,
        server: str = "",
        token: str = "",
        groups: Sequence[str] = (),
    ) -> Path:
        """A way in for the token, else for a user of that name in those groups, by certificate."""
        authority = self.files.authority
        credential = None if token else authority.issue_client(name, groups=groups)
        return self.files.make_kubeconfig(name, server=server, token=token, credential=credential)

    def make_service_account_token(self, namespace: str, name: str, *, seconds: int = 3600) -> str:
        """A token of that ServiceAccount, which is made if it is missing; at least 600 seconds."""
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        try:
            self.call("POST", accounts, {"metadata": {"name": name}})
        except RefusedError as error:
            if error.status != CONFLICT:
                raise
        answer = self.call(
            "POST",
            f"{accounts}/{name}/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": seconds},
            },
        )
        return str(answer["status"]["token"])

    def read_audit(self) -> Iterator[dict[str, Any]]:
        """What the API server noted of each request so far, oldest first."""
        with self.files.audit_log.open() as log:
            for line in log:
                # The last one may still be being written.
                if line.endswith("\n"):
                    yield json.loads(line)


def find_free_ports(*addresses: str) -> list[int]:
    """For each address a TCP port that nobody listens on now, all different."""
    ports: list[int] = []
    for address in addresses:
        candidates = random.sample(PORTS, 100)
        ports.append(next(p for p in candidates if p not in ports and _is_free(address, p)))
    return ports


def _is_free(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _wait_until(ready: Callable[[], bool], program: Program) -> None:
    limit = time.monotonic() + START_SECONDS
    while not ready():
        program.check()
        if time.monotonic() > limit:
            raise program.explain(f"is not ready after {START_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def _run(command: Sequence[str]) -> str:
    return _check(_call(command), command)


def _call(
    command: Sequence[str], *, text: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - the control plane's own programs
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(command)}: not done after {RUN_SECONDS:g} s") from None


def _check(done: subprocess.CompletedProcess[str], words: Sequence[str]) -> str:
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise LabError(f"{' '.join(words)}: {said[-1] if said else 'failed'}")
    return done.stdout
