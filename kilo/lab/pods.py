"""Pods of a lab's hosts: network namespaces, joined to their host by its own CNI configuration.

A runtime's part is played here, with the real plugins. What runs and what was answered is noted
in a file a pod, so that whoever opens the lab later finds it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kilo.errors import LabError
from kilo.lab import cni
from kilo.lab.box import RUN_TIMEOUT_SECONDS, Box, Popen
from kilo.mesh.model import IPInterface, is_dns_name

CONFIGURATIONS = "/etc/cni/net.d"
READ_FIRST = f"cat $(ls {CONFIGURATIONS}/*.conf {CONFIGURATIONS}/*.conflist | sort | head -n 1)"
"""A runtime goes by the first file of the directory."""


class Pod:
    """One pod, in which programs can be run."""

    def __init__(self, box: Box, name: str, answered: cni.Result) -> None:
        """The pod of that name on the host whose box it is; ``answered`` by the plugins."""
        self.name = f"{box.name}/{name}"
        self.addresses: tuple[IPInterface, ...] = cni.read_addresses(answered)
        self._box = box
        self._short = name

    def find_address(self, version: int) -> str:
        """Its address of a family, 4 or 6, as text; raises ``LabError`` if it has none."""
        for interface in self.addresses:
            if interface.version == version:
                return str(interface.ip)
        raise LabError(f"pod {self.name}: has no IPv{version} address")

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command that, run on the host, runs ``command`` in the pod."""
        return ["nsenter", f"--net={find_namespace(self._short)}", "--", *command]

    def call(
        self, command: Sequence[str], *, timeout: float = RUN_TIMEOUT_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run a program and wait; whatever it returns is returned."""
        return self._box.call(self.wrap(command), timeout=timeout)

    def run(self, command: Sequence[str], *, timeout: float = RUN_TIMEOUT_SECONDS) -> str:
        """The output of a program; raises ``LabError`` with its last words if it fails."""
        return self._box.run(self.wrap(command), timeout=timeout)

    def succeeds(self, command: Sequence[str], *, timeout: float = RUN_TIMEOUT_SECONDS) -> bool:
        """Whether a program ends with 0."""
        return self.call(command, timeout=timeout).returncode == 0

    def popen(self, command: Sequence[str]) -> Popen:
        """Start a program whose input and output are pipes of text, line by line."""
        return self._box.popen(self.wrap(command))


def find_namespace(pod: str) -> str:
    """Where a host has the network namespace of a pod."""
    return f"/run/netns/{pod}"


class Pods:
    """The pods of one host."""

    def __init__(self, box: Box, notes: Path) -> None:
        """Those of the host whose box it is; ``notes`` is the directory of a file a pod."""
        self._box = box
        self._notes = notes

    def _call(self, command: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
        return self._box.call(command, text=text)

    def add(self, name: str, capabilities: Mapping[str, Any] | None = None) -> Pod:
        """Make a pod; raises ``LabError`` if there is one of that name, or no configuration.

        ``capabilities`` are what a runtime tells the plugins that declare them, such as
        ``portMappings``.
        """
        note = self._note(name)
        if note.exists():
            raise LabError(f"pod {self._box.name}/{name}: is there already")
        config = self._read_configuration()
        self._box.run(["ip", "netns", "add", name])
        container = self._make_container(name, capabilities)
        try:
            cni.add(self._call, cni.LOOPBACK, self._on_loopback(container))
            result = cni.add(self._call, config, container)
        except LabError:
            self._part(config, container, {})
            raise
        note.parent.mkdir(exist_ok=True)
        note.write_text(
            json.dumps(
                {"config": config, "result": result, "capabilities": dict(capabilities or {})}
            )
        )
        return Pod(self._box, name, result)

    def delete(self, name: str) -> None:
        """Take a pod away, as the configuration of its day has it; absent is not an error."""
        note = self._note(name)
        if not note.exists():
            return
        noted = json.loads(note.read_text())
        container = self._make_container(name, noted["capabilities"])
        self._part(noted["config"], container, noted["result"])
        note.unlink()

    def list(self) -> list[Pod]:
        """The pods that there are, by name."""
        return [
            Pod(self._box, note.stem, json.loads(note.read_text())["result"])
            for note in sorted(self._notes.glob("*.json"))
        ]

    def forget(self) -> None:
        """Of the host that was switched off, and all its pods with it."""
        for note in self._notes.glob("*.json"):
            note.unlink()

    def _note(self, name: str) -> Path:
        if not is_dns_name(name):
            raise LabError(f"pod {self._box.name}/{name}: is no name: letters, digits and '-'")
        return self._notes / f"{name}.json"

    def _read_configuration(self) -> cni.Config:
        text = self._box.call(["sh", "-c", READ_FIRST]).stdout
        if not text:
            raise LabError(f"host {self._box.name}: has no CNI configuration in {CONFIGURATIONS}")
        config: cni.Config = json.loads(text)
        return config

    def _make_container(self, name: str, capabilities: Mapping[str, Any] | None) -> cni.Container:
        return cni.Container(
            name=f"{self._box.name}-{name}",
            namespace=find_namespace(name),
            capabilities=capabilities or {},
        )

    @staticmethod
    def _on_loopback(container: cni.Container) -> cni.Container:
        return cni.Container(name=container.name, namespace=container.namespace, interface="lo")

    def _part(self, config: cni.Config, container: cni.Container, result: cni.Result) -> None:
        try:
            cni.delete(self._call, config, container, result)
            cni.delete(self._call, cni.LOOPBACK, self._on_loopback(container), {})
        finally:
            self._box.run(["ip", "netns", "delete", Path(container.namespace).name])
