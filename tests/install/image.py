"""A container of the image, run without a daemon, in a network namespace of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

from kilo.lab.processes import read_arguments
from tests.install.machine import ROOT

BUILDAH = f'eval "$({ROOT}/tools/image --storage)"; buildah "$@"'
COMMAND_SECONDS, END_SECONDS = 300.0, 60.0
RIGHTS = ("--cap-add=CAP_NET_ADMIN", "--cap-add=CAP_NET_RAW")
ONLY_THOSE = ("setpriv", "--bounding-set=-all,+net_admin,+net_raw")
"""What buildah would leave beside them: to drop all and add some leaves none."""
FETCH = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=60).read().decode())"


def build_image() -> str:
    """The image of the files as they are, from the cache where it is there."""
    built = subprocess.run([ROOT / "tools/image"], stdout=subprocess.PIPE, text=True, check=True)
    return built.stdout.strip()


class Container:
    """There from entry to exit, with whatever was started in it."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._namespace = f"kilo-image-{os.getpid()}"
        self._name = ""

    def __enter__(self) -> Self:
        _run("ip", "netns", "add", self._namespace)
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
        self.ip("link", "set", "peer0", "up")
        self.ip("link", "set", "eth0", "up")
        self.ip("address", "add", "192.168.1.11/24", "dev", "eth0")
        self.ip("route", "add", "default", "via", "192.168.1.1")
        self._name = _run(*_buildah("from", "--pull=never", self._image)).strip()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._list_processes():
            os.kill(process, signal.SIGKILL)
        _run("ip", "netns", "delete", self._namespace)
        _run(*_buildah("rm", self._name))

    def ip(self, *words: str) -> str:
        """`ip` in its network."""
        return _run("ip", "-n", self._namespace, *words)

    def run(self, *command: str, user: str = "root") -> str:
        """The output of a command in the container; it must succeed."""
        return _run(*_buildah("run", f"--user={user}", self._name, "--", *command))

    def manage(self, *command: str) -> str:
        """The same in its network, with the agent's rights."""
        words = _buildah("run", *RIGHTS, self._name, "--", *command)
        return _run("ip", "netns", "exec", self._namespace, *words)

    def run_agent(self, mesh: Path, log: Path, *flags: str) -> subprocess.Popen[bytes]:
        """The agent, with the rights that it needs and no others."""
        volume = f"--volume={mesh}:/etc/kilo/mesh:ro"
        command = _buildah(
            "run", *RIGHTS, volume, self._name, "--", *ONLY_THOSE, "/opt/bin/kg", *flags
        )
        with log.open("wb") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self._namespace, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def fetch(self, path: str) -> str:
        """What the agent answers; empty while it does not, or not with 200."""
        url = f"http://127.0.0.1:1107{path}"
        command = ["ip", "netns", "exec", self._namespace, sys.executable, "-c", FETCH, url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    def end_agent(self, running: subprocess.Popen[bytes]) -> None:
        """As a cluster ends it: SIGTERM, and time to clean up."""
        for process in self._list_processes():
            program, *rest = read_arguments(process) or [""]
            if "python" in program and rest[:1] == ["/opt/bin/kg"]:
                os.kill(process, signal.SIGTERM)
        running.wait(END_SECONDS)

    def _list_processes(self) -> list[int]:
        return [int(word) for word in _run("ip", "netns", "pids", self._namespace).split()]


def _buildah(*words: str) -> list[str]:
    return ["sh", "-c", BUILDAH, "sh", *words]


def _run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout
