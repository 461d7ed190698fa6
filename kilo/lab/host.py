"""A host of the lab as its operator sees it: programs, the agent, its answers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kilo.errors import LabError
from kilo.lab.box import Box, Popen
from kilo.lab.pods import Pod, Pods
from kilo.lab.spec import HostSpec
from kilo.mesh.keys import PrivateKey
from kilo.mesh.model import IPInterface

AGENT_PORT = 1107
AGENT_INTERFACE = "kilo0"
POD_BRIDGE = "kube-bridge"
STOP_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of the agent's HTTP server."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")


class Host:
    """One host; its box may be off."""

    def __init__(self, lab: Path, spec: HostSpec, flags: tuple[str, ...]) -> None:
        """The host of a lab; ``flags`` are those of every agent and of its store."""
        self.name = spec.name
        self.spec = spec
        self.box = Box(lab, spec.name)
        self.log = lab / "logs" / f"{spec.name}.log"
        self.disk = lab / "hosts" / spec.name / "disk"
        self.pods = Pods(self.box, lab / "hosts" / spec.name / "pods")
        self.applied_conf = ""
        """What ``guests`` last configured here, its private key left out."""
        self._stopped = lab / "hosts" / spec.name / "stopped"
        self._flags = (*flags, *spec.flags)

    def run(self, command: Sequence[str], *, text: str = "", timeout: float = 120.0) -> str:
        """The output of a program run on the host; raises ``LabError`` if it fails."""
        return self.box.run(command, text=text, timeout=timeout)

    def succeeds(self, command: Sequence[str], *, timeout: float = 120.0) -> bool:
        """Whether a program run on the host ends with 0."""
        return self.box.call(command, timeout=timeout).returncode == 0

    def call(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a program on the host and wait; whatever it returns is returned."""
        return self.box.call(command)

    def popen(self, command: Sequence[str]) -> Popen:
        """Start a program on the host whose input and output are pipes of text, line by line."""
        return self.box.popen(command)

    def store_key(self, key: PrivateKey) -> None:
        """Put the private key where an agent keeps it; the host must not have one yet."""
        self.disk.mkdir(mode=0o700, parents=True)
        path = self.disk / "key"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 - born 0600
            file.write(key.reveal() + "\n")

    @property
    def stopped(self) -> bool:
        """Whether the host, or its agent, was stopped on purpose; one that crashed was not."""
        return self._stopped.exists()

    def note_stopped(self) -> None:
        """Note that it is stopped on purpose."""
        self._stopped.touch()

    def note_started(self) -> None:
        """Note that it is to run."""
        self._stopped.unlink(missing_ok=True)

    @property
    def has_cni(self) -> bool:
        """Whether its agent keeps a CNI configuration, by which its pods are joined to it."""
        given = [flag for flag in self._flags if flag.partition("=")[0] == "--cni"]
        return given[-1:] in (["--cni"], ["--cni=true"])

    def add_pod(self, name: str) -> Pod:
        """Make a pod; raises ``LabError`` while there is no CNI configuration to join it by."""
        return self.pods.add(name)

    def add_pod_bridge(self, addresses: Sequence[IPInterface]) -> None:
        """What a CNI plugin would have made: a bridge that bears the pods' gateway addresses."""
        if not addresses:
            return
        lines = [f"link add {POD_BRIDGE} type bridge", f"link set {POD_BRIDGE} up"]
        lines += [
            f"address add {i} dev {POD_BRIDGE}{' nodad' if i.version == 6 else ''}"
            for i in addresses
        ]
        self.box.configure(["ip", "-batch", "-"], "\n".join(lines) + "\n")

    @property
    def agent_arguments(self) -> list[str]:
        """What every agent's command line holds, by which it is found again."""
        return ["-m", "kilo.kg", f"--hostname={self.name}"]

    def agent_command(self, *words: str) -> list[str]:
        """How the agent is called on this host, with more flags, or a command of its own."""
        return [
            sys.executable,
            *self.agent_arguments,
            f"--listen=127.0.0.1:{AGENT_PORT}",
            f"--interface={AGENT_INTERFACE}",
            *self._flags,
            *words,
        ]

    def start_agent(self, *flags: str) -> None:
        """Start the agent, with more flags if wanted; raises ``LabError`` if one is running."""
        if self.agents():
            raise LabError(f"host {self.name}: its agent is running")
        self.box.spawn(self.agent_command(*flags), log=self.log)
        self.note_started()

    def agents(self) -> list[int]:
        """The process ids of its running agents, as the machine sees them: none or one."""
        return self.box.find_processes(self.agent_arguments)

    def kill_agent(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the agent a signal and wait for its end; raises ``LabError`` if none is running."""
        self.note_stopped()
        if not self.box.signal(self.agent_arguments, number, timeout=STOP_TIMEOUT_SECONDS):
            raise LabError(f"host {self.name}: no agent is running")

    def restart_agent(self, *flags: str) -> None:
        """Stop the agent as systemd would, and start it."""
        self.kill_agent(signal.SIGTERM)
        self.start_agent(*flags)

    def http(self, path: str, *, timeout: float = 30.0) -> Answer:
        """Ask the agent's HTTP server from the host itself; raises ``LabError`` if it cannot be."""
        request = f"GET {path} HTTP/1.0\r\nHost: {self.name}\r\n\r\n"
        try:
            with self.box.connect("127.0.0.1", AGENT_PORT, timeout=timeout) as connection:
                connection.sendall(request.encode())
                response = http.client.HTTPResponse(connection)
                response.begin()
                return Answer(status=response.status, body=response.read())
        except (OSError, http.client.HTTPException) as error:
            raise LabError(f"host {self.name}: GET {path}: {error}") from error

    def metrics(self) -> dict[str, float]:
        """The agent's metrics, ``name{labels}`` as printed -> value."""
        lines = self.http("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def log_lines(self) -> list[dict[str, Any]]:
        """What its agents have logged so far; lines that are no JSON come as ``{"msg": line}``."""
        if not self.log.exists():
            return []
        return [_parse_line(line) for line in self.log.read_text(errors="replace").splitlines()]


def _parse_line(line: str) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError:
        return {"msg": line}
    return parsed if isinstance(parsed, dict) else {"msg": line}
