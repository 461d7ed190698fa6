"""One long-running program of this machine, a child of ours that dies with us."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kilo.errors import LabError

STOP_SECONDS = 10.0
"""How long a program may take to end by itself."""
QUOTED_LINES = 5

# What ends when its parent does means, to the kernel, when the thread that started it does: so one
# thread starts all programs, and lives as long as we do.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")


class Program:
    """A command that may be started, frozen, killed and started again; not for several threads."""

    def __init__(self, command: Sequence[str], *, log: Path) -> None:
        self.name = Path(command[0]).name
        # The kernel ends it when we end, however we end: a test run may be killed.
        self._command = ["setpriv", "--pdeathsig", "KILL", *command]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended; a frozen one runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, its output appended to the log; one that runs is left alone."""
        if self.running:
            return
        self._process = _STARTER.submit(self._spawn).result()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - running a command is what it is for
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for us: what happens to our programs is ours to say.
                start_new_session=True,
            )

    def stop(self) -> None:
        """Ask it to end, and kill it if it does not soon; one that does not run is no error."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        self.thaw()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once, unsaved work and all."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def freeze(self) -> None:
        """Stop it where it is: its sockets stay open and say nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        self._signal(signal.SIGCONT)

    def check(self) -> None:
        """``LabError`` with its last words if it does not run."""
        if not self.running:
            raise self.explain("has ended")

    def explain(self, what: str) -> LabError:
        """An error about it that quotes the end of its log."""
        try:
            lines = self._log.read_text(errors="replace").splitlines()[-QUOTED_LINES:]
        except FileNotFoundError:
            lines = []
        return LabError(f"{self.name}: {what}: {' | '.join(lines) or 'it said nothing'}")

    def _signal(self, number: signal.Signals) -> None:
        # Not ours any more once waited for: the number may be another program's.
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)
