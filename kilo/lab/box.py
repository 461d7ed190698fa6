"""One box: the namespaces of a host, a router or the fabric, and programs run inside.

A box is there while its first process (``boxinit``) is. It is found in ``/proc`` by that
process's arguments, never by something written down, so it can neither be lost nor mistaken.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import kilo
from kilo.errors import LabError
from kilo.lab import boxinit
from kilo.lab.processes import (
    end_processes,
    list_processes,
    read_arguments,
    read_inner_id,
    read_pid_namespace,
)

RUN_TIMEOUT_SECONDS = 120.0
OTHERS = ("KG_", "ETCD_", "ETCDCTL_")
"""Of the environment: what the agent and etcd's programs take for flags."""
PYTHON = (sys.executable, "-I", "-S")
"""Starts a program of the standard library only, fast and undisturbed by the environment."""


def find_inits(lab: Path, name: str | None = None) -> list[int]:
    """The first processes of a lab's boxes, or of one box; also those only just started."""
    wanted = {f"--lab={lab}"} | ({f"--box={name}"} if name else set())
    return [pid for pid in list_processes() if wanted <= set(read_arguments(pid))]


def make_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What programs in a box inherit: the caller's, without what it sets for agents and stores of
    its own.
    """
    inherited = {key: text for key, text in os.environ.items() if not key.startswith(OTHERS)}
    package = str(Path(kilo.__file__).parent.parent)
    path = inherited.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin"
    return inherited | {"PATH": path, "PYTHONPATH": package} | dict(extra or {})


class Box:
    """A box of one lab, whose directory is ``lab``; it need not exist yet."""

    def __init__(self, lab: Path, name: str) -> None:
        self.lab = lab
        self.name = name
        self._pid = 0

    @property
    def alive(self) -> bool:
        """Whether the box is there now."""
        return bool(self._find())

    @property
    def pid(self) -> int:
        """The id of its first process; raises ``LabError`` if the box is not there."""
        if not self._pid:
            self._pid = self._find()
        if not self._pid:
            raise LabError(f"host {self.name}: is not running")
        return self._pid

    def _find(self) -> int:
        found = [pid for pid in find_inits(self.lab, self.name) if read_inner_id(pid) == 1]
        return found[0] if found else 0

    def start(self) -> None:
        """Make the namespaces; raises ``LabError`` with the operation that failed."""
        (self.lab / "hosts" / self.name).mkdir(parents=True, exist_ok=True)
        command = [*PYTHON, boxinit.__file__]
        command += [f"--lab={self.lab}", f"--box={self.name}"]
        process = subprocess.Popen(  # noqa: S603 - our own file, arguments checked by ``spec``
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        # Two processes write, in any order: the id, and how it went.
        answer = process.communicate()[0].splitlines()
        words = [line for line in answer if not line.isdigit()]
        if words != ["ready"]:
            raise LabError(f"host {self.name}: cannot be made: {(words or ['no answer'])[-1]}")
        self._pid = int(next(line for line in answer if line.isdigit()))

    def kill(self) -> None:
        """End everything in the box at once; one that is not there is no error."""
        self._pid = 0
        end_processes(find_inits(self.lab, self.name))

    def processes(self) -> list[int]:
        """All its processes, as the machine sees them, the first one included."""
        namespace = read_pid_namespace(self.pid)
        return [pid for pid in list_processes() if read_pid_namespace(pid) == namespace]

    def find_processes(self, arguments: Iterable[str]) -> list[int]:
        """Those of its processes whose command line holds all these arguments."""
        wanted = set(arguments)
        return [pid for pid in self.processes() if wanted <= set(read_arguments(pid))]

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command that, run on the machine, runs ``command`` in the box."""
        # The root too: that of a mount namespace is not the box's where the machine is a chroot.
        spaces = ("--net", "--mount", "--root", "--uts", "--pid")
        return self._enter(*spaces, "--wdns=/", "--", *command)

    def wrap_network(self, command: Sequence[str]) -> list[str]:
        """Likewise, in the box's network only: with the machine's files and processes."""
        return self._enter("--net", "--", *command)

    def _enter(self, *rest: str) -> list[str]:
        return ["nsenter", f"--target={self.pid}", *rest]

    def call(
        self,
        command: Sequence[str],
        *,
        text: str = "",
        timeout: float = RUN_TIMEOUT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program with ``text`` as its input, and wait; whatever it returns is returned."""
        return self._complete(self.wrap(command), command, text=text, timeout=timeout)

    def call_in_network(
        self,
        command: Sequence[str],
        *,
        text: str = "",
        timeout: float = RUN_TIMEOUT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Likewise, in the box's network only: with the machine's files and processes."""
        return self._complete(self.wrap_network(command), command, text=text, timeout=timeout)

    def _complete(
        self, wrapped: Sequence[str], command: Sequence[str], *, text: str, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603 - running what it is told is what a box is for
                wrapped,
                input=text,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
                env=make_environment(),
            )
        except subprocess.TimeoutExpired:
            raise LabError(
                f"host {self.name}: {' '.join(command)}: not done after {timeout:g} s"
            ) from None

    def run(
        self, command: Sequence[str], *, text: str = "", timeout: float = RUN_TIMEOUT_SECONDS
    ) -> str:
        """The output of a program; raises ``LabError`` with its last words if it fails."""
        done = self.call(command, text=text, timeout=timeout)
        if done.returncode:
            words = " ".join(command)
            raise LabError(f"host {self.name}: {words}: {find_last_words(done)}")
        return done.stdout

    def configure(self, command: Sequence[str], lines: str) -> None:
        """Feed a batch to a network tool that sees the box's network, but the machine's processes.

        Raises ``LabError`` with the tool's reason and the line it did not take.
        """
        done = self.call_in_network(command, text=lines)
        if done.returncode:
            raise LabError(f"host {self.name}: {_explain_batch(done.stderr, lines)}")

    def popen(self, command: Sequence[str], *, stderr: IO[str] | None = None) -> Popen:
        """Start a program whose input and output are pipes of text, line by line."""
        return subprocess.Popen(  # noqa: S603 - as ``_complete``
            self.wrap(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            bufsize=1,
            env=make_environment(),
        )

    def spawn(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start a program that goes on without us, a child of the box's first process."""
        with log.open("a") as output:
            subprocess.run(  # noqa: S603 - as ``_complete``
                self.wrap(["setsid", "--fork", *command]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=True,
                env=make_environment(environment),
            )

    def signal(self, arguments: Iterable[str], number: signal.Signals, *, timeout: float) -> int:
        """Signal the processes with these arguments and wait for their end; how many there were."""
        found = self.find_processes(arguments)
        end_processes(found, number=number, timeout=timeout)
        return len(found)

    @contextmanager
    def network(self) -> Iterator[None]:
        """Sockets that this thread makes in the meantime are in the box's network, and stay so."""
        with _inside_network(self.pid):
            yield

    def connect(self, host: str, port: int, *, timeout: float) -> socket.socket:
        """A TCP connection made from inside the box; raises ``OSError``."""
        with self.network():
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect((host, port))
        except OSError:
            connection.close()
            raise
        return connection


Popen = subprocess.Popen[str]


def find_last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of what a program that failed has said."""
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return said[-1] if said else f"exit status {done.returncode}"


def _explain_batch(stderr: str, lines: str) -> str:
    """The first words of ``ip``, ``tc`` or ``nft``, and the line of the batch they are about."""
    number = re.search(r"Command failed -:(\d+)", stderr) or re.search(r"^[^:]*:(\d+):", stderr)
    line = lines.splitlines()[int(number.group(1)) - 1].strip() if number else ""
    return f"{line}: {next(iter(stderr.splitlines()), 'failed')}"


_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def _inside_network(process: int) -> Iterator[None]:
    """Put this thread, and only it, in the network namespace of a process; sockets stay there."""
    thread = threading.get_native_id()
    with (
        Path(f"/proc/self/task/{thread}/ns/net").open() as home,
        Path(f"/proc/{process}/ns/net").open() as away,
    ):
        _enter_network(away.fileno())
        try:
            yield
        finally:
            _enter_network(home.fileno())


def _enter_network(namespace: int) -> None:
    if _libc.setns(namespace, boxinit.CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
