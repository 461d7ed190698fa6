"""A program before a screen, as a person has it."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Self

LIMIT_SECONDS = 90.0
KGCTL = (sys.executable, "-m", "kilo.kgctl")
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x08|\r|\x07")
"""Colours, and what moves the cursor."""


class Terminal:
    """The terminal of a program that runs until this is left."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environ,
            start_new_session=True,
        )
        os.close(theirs)
        self._deadline = threading.Timer(LIMIT_SECONDS, self._process.kill)

    def __enter__(self) -> Self:
        self._deadline.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._deadline.cancel()
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def read_until(self, text: str) -> str:
        """What it shows until the text has come, in whatever colours; fails if it ends before."""
        found, shown = b"", ""
        while text not in shown and text not in _CONTROLS.sub("", shown):
            try:
                found += os.read(self._ours, 65536)
            except OSError as error:  # of a terminal whose program has ended
                raise AssertionError(f"ended without {text!r}: {shown!r}") from error
            shown = found.decode(errors="replace")
        return shown

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """Its exit status."""
        return self._process.wait(LIMIT_SECONDS)
