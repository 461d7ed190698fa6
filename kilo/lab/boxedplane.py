"""A control plane in a box of a lab: its processes, what may befall them, ways to speak to it.

Nothing is remembered, so that every command of ``kgctl lab`` finds the same ones.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from kilo.errors import LabError
from kilo.lab.apicalls import ApiCaller
from kilo.lab.box import Box, find_last_words
from kilo.lab.boxedprogram import BoxedProgram, wait_until_all_serve
from kilo.lab.planefiles import (
    ADMIN,
    PlaneFiles,
    find_programs,
    make_apiserver_command,
    make_etcd_command,
    make_restore_command,
)
from kilo.lab.processes import end_processes

START_SECONDS = 120.0
"""An API server is ready after 4 s on an idle machine."""
ANSWER_SECONDS = 5.0
RUN_SECONDS = 60.0
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
        self._etcd = self._make_program("etcd", f"--data-dir={files.directory / 'etcd'}")
        self._apiserver = self._make_program("apiserver", f"--audit-log-path={files.audit_log}")

    def _make_program(self, program: str, argument: str) -> BoxedProgram:
        log = self.files.directory / f"{program}.log"
        return BoxedProgram(self.box, [argument], name=self._name, log=log)

    @property
    def _name(self) -> str:
        """What errors call it."""
        return f"store {self.files.server}"

    # --- its life ---

    def start(self) -> None:
        """Start both and wait until they serve; ``LabError`` quotes the log if they do not."""
        if self._find():
            raise self._error("is running")
        self.files.write()
        self._etcd.spawn(make_etcd_command(self.files, self._programs))
        apiserver = make_apiserver_command(self.files, self._programs)
        self._apiserver.spawn([*apiserver, *self._choose_gates()])
        wait_until_all_serve([self._apiserver], self.serves, name=self._name, seconds=START_SECONDS)

    def _choose_gates(self) -> list[str]:
        command = [str(self._programs.apiserver), "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the control plane's own program
        needed = f"{DUAL_STACK}|false (ALPHA" in shown.stdout
        return [f"--feature-gates={DUAL_STACK}"] if needed else []

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
        self._apiserver.freeze()

    def thaw(self) -> None:
        """Let a frozen one go on."""
        self._apiserver.thaw()

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
        return [*self._apiserver.find(), *self._etcd.find()]

    def describe(self) -> str:
        """How it does, in a word or two."""
        if not self._apiserver.running:
            return "off"
        if self._apiserver.frozen:
            return "frozen"
        return "ready" if self.serves() else "does not answer"

    def _error(self, what: str) -> LabError:
        return LabError(f"{self._name}: {what}")

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
        return self.box.wrap_network(self._make_kubectl(words))

    def _make_kubectl(self, words: Sequence[str]) -> list[str]:
        kubectl = [str(self._programs.kubectl), f"--kubeconfig={self.files.kubeconfig}"]
        # Its cache would otherwise be in somebody's home, and outlive the lab.
        cache = f"--cache-dir={self.files.directory / 'kubectl'}"
        return [*kubectl, cache, *words]

    def kubectl(self, *words: str, text: str = "") -> str:
        """The output of ``kubectl``, fed with ``text``; ``LabError`` with its last words."""
        command = self._make_kubectl(words)
        done = self.box.call_in_network(command, text=text, timeout=RUN_SECONDS)
        if done.returncode:
            raise self._error(f"kubectl {' '.join(words)}: {find_last_words(done)}")
        return done.stdout
