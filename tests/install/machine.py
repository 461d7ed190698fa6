"""A Debian with a real systemd, booted in a container of its own, and its administrator."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
BOOT_SECONDS, COMMAND_SECONDS, SHUTDOWN_SECONDS = 120.0, 180.0, 60.0
SYSTEMD = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def make_root(folder: Path) -> Path:
    """A file system to boot from, from the archive in the cache."""
    tool = subprocess.run(
        [ROOT / "tools/debian-root"], stdout=subprocess.PIPE, text=True, check=True
    )
    root = folder / "root"
    root.mkdir()
    subprocess.run(["tar", "-xf", tool.stdout.strip(), "-C", str(root)], check=True)
    return root


class Machine:
    """Boots on entry; its network is its own and leads nowhere."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root = root
        self._log = log
        self._init = 0

    def __enter__(self) -> Self:
        command = ["systemd-nspawn", "--register=no", "--keep-unit", "--quiet", "--boot"]
        command += ["--private-network", "--bind=/dev/net/tun", "--console=pipe"]
        command += ["--capability=CAP_NET_ADMIN,CAP_SYS_ADMIN", f"--directory={self.root}"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._init = wait_for(self._find_init, "an init", seconds=BOOT_SECONDS)
        wait_for(self._has_booted, "a booted system", seconds=BOOT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            os.kill(self._init, signal.SIGKILL)
            self._process.wait(SHUTDOWN_SECONDS)

    def _find_init(self) -> int:
        assert self._process.poll() is None, self._log.read_text(errors="replace")
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found = [int(one) for one in children if _command_of(one).endswith("/systemd")]
        return found[0] if found else 0

    def _has_booted(self) -> bool:
        done = self.call("systemctl", "is-system-running")
        return done.stdout.strip() in {"running", "degraded"}

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there as root, whatever comes of it."""
        return subprocess.run(
            ["nsenter", "--target", str(self._init), "--all", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            env=SYSTEMD,
            check=False,
        )

    def run(self, *command: str) -> str:
        """The same, with its output; it must succeed."""
        done = self.call(*command)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Begin a command there; the caller waits for it."""
        return subprocess.Popen(
            ["nsenter", "--target", str(self._init), "--all", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=SYSTEMD,
        )

    def write(self, path: str, text: str) -> None:
        """A file of that machine."""
        target = self.root / path.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def copy(self, file: Path, path: str) -> None:
        """Bring a file there."""
        shutil.copy(file, self.root / path.removeprefix("/"))

    def exists(self, path: str) -> bool:
        """Whether that machine has such a file."""
        return os.path.lexists(self.root / path.removeprefix("/"))

    def journal(self, unit: str) -> str:
        """All that the unit has said, up to now."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--unit", unit)


def wait_for(find: Callable[[], int | bool], what: str, *, seconds: float) -> int:
    """What it finds, as soon as there is something."""
    ends_at = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < ends_at, f"no {what} within {seconds:.0f} s"
        time.sleep(0.1)
    return int(found)


def _command_of(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
