"""A control plane in a box of a lab: its processes, what may befall them, ways to speak to it.

Nothing is remembered: processes are found by their arguments, so that every command of ``kgctl
lab`` finds the same ones.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kilo.errors import LabError
from kilo.lab.apicalls import ApiCaller
from kilo.lab.box import Box, make_environment
from kilo.lab.planefiles import (
    ADMIN,
    PlaneFiles,
    find_programs,
    make_apiserver_command,
    make_etcd_command,
    make_restore_command,
)
from kilo.lab.processes import end_processes, is_stopped

START_SECONDS = 120.0
"""An API server is ready after 4 s on an idle machine."""
ANSWER_SECONDS = 5.0
RUN_SECONDS = 60.0
POLL_SECONDS = 0.1
QUOTED_LINES = 3
DUAL_STACK = "IPv6DualStack=true"
"""The gate that API servers before 1.21 need to keep pod subnets of both families."""


class BoxedPlane:
    """etcd and an API server; ``files`` says where, ``box`` is the machine they run on."""

    def __init__(self, box: Box, files: PlaneFiles) -> None:
        self.box = box
        self.files = files
        self._programs = find_programs()
        self._backup = files.directory / "saved.db"
        # By these, unlike by their programs' paths, they are nobody else's.
        self._etcd = [f"--data-dir={files.directory / 'etcd'}"]
        self._apiserver = [f"--audit-log-path={files.audit_log}"]

    # --- its life ---

    def start(self) -> None:
        """Start both and wait until they serve; ``LabError`` quotes the log if they do not."""
        if self._find():
            raise self._error("is running")
        self.files.write()
        etcd = make_etcd_command(self.files, self._programs)
        apiserver = make_apiserver_command(self.files, self._programs)
        self.box.spawn(etcd, log=self._log("etcd"))
        self.box.spawn([*apiserver, *self._choose_gates()], log=self._log("apiserver"))
        self._wait_until_it_serves()

    def _log(self, program: str) -> Path:
        return self.files.directory / f"{program}.log"

    def _choose_gates(self) -> list[str]:
        command = [str(self._programs.apiserver), "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the control plane's own program
        needed = f"{DUAL_STACK}|false (ALPHA" in shown.stdout
        return [f"--feature-gates={DUAL_STACK}"] if needed else []

    def _wait_until_it_serves(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.serves():
            if time.monotonic() > deadline or not self.box.find_processes(self._apiserver):
                lines = self._log("apiserver").read_text(errors="replace").splitlines()
                raise self._error(f"does not serve: {' | '.join(lines[-QUOTED_LINES:])}")
            time.sleep(POLL_SECONDS)  # its readiness announces itself nowhere else

    def serves(self) -> bool:
        """Whether it answers and is ready to be used."""
        try:
            self.call("GET", "/readyz", timeout=ANSWER_SECONDS)
            # Made by the server itself, a moment after it is ready.
            self.call("GET", "/api/v1/namespaces/kube-system", timeout=ANSWER_SECONDS)
        except LabError:
            return False
        return True

    def kill(self) -> None:
        """End both at once, as a power cut does; what was written stays."""
        processes = self._find()
        if not processes:
            raise self._error("is not running")
        end_processes(processes)

    def freeze(self) -> None:
        """Stop the API server where it is: its connections stay open and say nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        processes = self.box.find_processes(self._apiserver)
        if not processes:
            raise self._error("is not running")
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def save(self) -> None:
        """Keep a copy of all that etcd holds now, for ``restore``; replaces the last one."""
        command = [str(self._programs.etcdctl), f"--endpoints={self.files.etcd_url}"]
        self.box.run([*command, "snapshot", "save", str(self._backup)], timeout=RUN_SECONDS)

    def restore(self) -> None:
        """Put the saved state back and start both; revisions go on from the older number."""
        if not self._backup.exists():
            raise self._error("nothing was saved")
        end_processes(self._find())
        shutil.rmtree(self.files.directory / "etcd")
        command = make_restore_command(self.files, self._programs, self._backup)
        self.box.run(command, timeout=RUN_SECONDS)
        self.start()

    def _find(self) -> list[int]:
        """The processes there are, the API server first."""
        return [
            process
            for arguments in (self._apiserver, self._etcd)
            for process in self.box.find_processes(arguments)
        ]

    def describe(self) -> str:
        """How it does, in a word or two."""
        servers = self.box.find_processes(self._apiserver)
        if not servers:
            return "off"
        if any(map(is_stopped, servers)):
            return "frozen"
        return "ready" if self.serves() else "does not answer"

    def _error(self, what: str) -> LabError:
        return LabError(f"store {self.files.server}: {what}")

    # --- its API ---

    def call(self, method: str, path: str, document: object = None, **how: Any) -> dict[str, Any]:
        """One request as the administrator; ``how`` as ``ApiCaller.call`` takes it."""
        directory = self.files.directory
        caller = ApiCaller(
            self.files.server,
            authority=directory / "ca.crt",
            certificate=directory / f"{ADMIN}.crt",
            key=directory / f"{ADMIN}.key",
        )
        with self.box.network():
            return caller.call(method, path, document, **how)

    def wrap_kubectl(self, words: Sequence[str]) -> list[str]:
        """The command that runs ``kubectl`` as the administrator, with this machine's files."""
        kubectl = [str(self._programs.kubectl), f"--kubeconfig={self.files.kubeconfig}"]
        # Its cache would otherwise be in somebody's home, and outlive the lab.
        cache = f"--cache-dir={self.files.directory / 'kubectl'}"
        return self.box.wrap_network([*kubectl, cache, *words])

    def kubectl(self, *words: str, text: str = "") -> str:
        """The output of ``kubectl``, fed with ``text``; ``LabError`` with its last words."""
        done = subprocess.run(  # noqa: S603 - running what it is told is what it is for
            self.wrap_kubectl(words),
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_SECONDS,
            env=make_environment(),
        )
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise self._error(f"kubectl {' '.join(words)}: {said[-1] if said else 'failed'}")
        return done.stdout
