"""One long-running program in a box of a lab, and what may befall it.

Nothing is remembered: it is found by its arguments, so that every command of ``kgctl lab`` finds
the same one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from kilo.errors import LabError
from kilo.lab.box import Box
from kilo.lab.processes import end_processes, is_stopped

POLL_SECONDS = 0.1
QUOTED_LINES = 3


class BoxedProgram:
    """A program of ``box``; nobody else's command line holds the ``arguments`` there."""

    def __init__(self, box: Box, arguments: Sequence[str], *, name: str, log: Path) -> None:
        """``name`` is what errors call it."""
        self._box = box
        self._arguments = arguments
        self._name = name
        self._log = log

    def spawn(self, command: Sequence[str]) -> None:
        """Start it; the ``command`` must hold the arguments it is known by."""
        self._box.spawn(command, log=self._log)

    def find(self) -> list[int]:
        """Its processes, frozen ones too: none or one."""
        return self._box.find_processes(self._arguments) if self._box.alive else []

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended; a frozen one runs."""
        return bool(self.find())

    @property
    def frozen(self) -> bool:
        """Whether it was stopped where it is and has not been let go on."""
        return any(map(is_stopped, self.find()))

    def kill(self) -> None:
        """End it at once, as a power cut does; ``LabError`` if it is not running."""
        end_processes(self._require())

    def freeze(self) -> None:
        """Stop it where it is: its connections stay open and say nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._require():
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _require(self) -> list[int]:
        processes = self.find()
        if not processes:
            raise LabError(f"{self._name}: is not running")
        return processes

    def quote(self) -> str:
        """The end of its log."""
        lines = self._log.read_text(errors="replace").splitlines()
        return " | ".join(lines[-QUOTED_LINES:])


def wait_until_all_serve(
    programs: Iterable[BoxedProgram], serve: Callable[[], bool], *, name: str, seconds: float
) -> None:
    """Wait until ``serve`` holds; ``LabError`` after ``seconds``, or when a program has ended."""
    known = list(programs)
    deadline = time.monotonic() + seconds
    while not serve():
        ended = [program for program in known if not program.running]
        if ended or time.monotonic() > deadline:
            raise LabError(f"{name}: does not serve: {(ended or known)[0].quote()}")
        time.sleep(POLL_SECONDS)  # their readiness announces itself nowhere else
