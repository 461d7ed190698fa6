"""The guides, done as they are written: by the same commands on machines of those names.

A key that a guide's reader copies from one step to the next is copied here too. Of the package the
programs are there, and what `systemctl` does of the unit: its command, with its flags.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import kilo
from kilo.lab.host import Host
from kilo.lab.lab import Lab
from tests.lab.conftest import write_directory
from tests.lab.meshes import wait_until

ROOT = Path(__file__).parents[2]
SOURCE = Path(kilo.__file__).parents[1]
GUIDES = ROOT / "docs/guides"
LAB = """
networks:
  internet: {public: true, subnets: [198.51.100.0/24, 203.0.113.0/24]}
  home: {subnets: [192.168.50.0/24], nat: {behind: internet, address: 203.0.113.9}}
hosts:
  vps-1: {agent: false, networks: {internet: 198.51.100.11}}
  vps-2: {agent: false, networks: {internet: 203.0.113.12}}
  vps-3: {agent: false, networks: {internet: 198.51.100.13}}
  laptop: {agent: false, networks: {home: 192.168.50.20}}
"""
STEP = re.compile(r"^```sh\n# on (.*)\n((?:.*\n)*?)```$", re.MULTILINE)
PROGRAMS = {
    "kg": 'exec {python} -m kilo.kg "$@"',
    "kgctl": 'exec {python} -m kilo.kgctl "$@"',
    "systemctl": """
test "$*" = "restart kg" || exit 1
set -a
KG_CLEAN_UP=false
. {root}/examples/systemd/kg.default
exec setsid {python} -m kilo.kg > /var/lib/kilo/log 2>&1 &
""",
}


class Reader:
    """Somebody who does what a guide says, and copies what is printed to where it is asked for."""

    def __init__(self, lab: Lab, programs: Path) -> None:
        self.lab = lab
        self._programs = programs
        self._clipboard: dict[str, str] = {}

    def follow(self, guide: str) -> Iterator[tuple[str, str, str]]:
        """Machine, commands and what they printed, step by step."""
        for places, commands in STEP.findall((GUIDES / guide).read_text()):
            for name in re.split(r", | and ", places):
                printed = self._run(name, commands)
                self._clipboard[f"PRINTED-BY-{name.upper()}"] = printed.rstrip("\n")
                if "public-key" in commands or "pubkey" in commands:
                    self._clipboard[f"KEY-OF-{name.upper()}"] = printed.strip()
                yield name, commands, printed

    def _run(self, name: str, commands: str) -> str:
        for place, text in self._clipboard.items():
            commands = commands.replace(place, text)
        exports = f"export PATH={self._programs}:$PATH PYTHONPATH={SOURCE}"
        return self.lab.host(name).run(
            ["bash", "-c", f"set -e\n{exports}\ncd /var/lib/kilo\n{commands}"]
        )


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    home = tmp_path_factory.mktemp("guides")
    programs = home / "bin"
    programs.mkdir()
    for name, line in PROGRAMS.items():
        text = line.format(python=shlex.quote(sys.executable), root=ROOT)
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    directory = write_directory(home / "lab", LAB, "")
    with Lab.up(directory, name=f"test-{os.getpid()}-guides", agents=False) as lab:
        yield Reader(lab, programs)


def test_three_servers_become_one_network_and_a_laptop_joins_it(reader: Reader) -> None:
    """Each command of the guides ends well, among them a ping over each tunnel."""
    steps = list(reader.follow("three-servers.md"))
    (status,) = [said for _, commands, said in steps if "kgctl --backend=file status" in commands]
    assert "vps-3" in status
    joined = left = 0
    for name, commands, said in reader.follow("laptop.md"):
        if "wg-quick up" in commands:
            assert said.count(" 0% packet loss") == 2
            joined += 1
        elif joined:
            wait_until(partial(has_left, reader.lab.host(name)), f"{name} knows the laptop no more")
            left += 1
    assert (joined, left) == (1, 3)


def has_left(host: Host) -> bool:
    """Whether the two other servers are all that its device knows."""
    return len(host.run(["wg", "show", "kilo0", "peers"]).split()) == 2
