"""An agent that dies in the middle of its first pass leaves nothing that the next one minds.

This is the whole program, killed at some moments; ``tests/kernel/test_crashes.py`` kills what it
does to the network at each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from kilo.lab.host import Host
from kilo.lab.lab import Lab
from tests.lab.conftest import write_directory
from tests.lab.meshes import LAB, MESH, wait_ready, wait_until

SIGHTS = (
    "ip -br address show dev kilo0 scope global",
    "ip route show table all proto 107",
    "ip -6 route show table all proto 107",
    "ip rule",
    "nft list ruleset",
    "wg show kilo0 allowed-ips | tr ' ' '\\n' | sort",
    "wg show kilo0 endpoints | sort",
    "wg show kilo0 public-key",
    "ls /run/wireguard",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = write_directory(tmp_path_factory.mktemp("crash") / "lab", LAB, MESH)
    with Lab.up(directory, name=f"test-{os.getpid()}-crash", agents=False) as lab:
        for name in ("a1", "a2", "b1"):
            lab.host(name).start_agent("--clean-up=false")
        yield lab


def look_at(host: Host) -> dict[str, str]:
    return {sight: host.run(["/bin/sh", "-c", sight]) for sight in SIGHTS}


def start_and_wait(host: Host) -> None:
    host.start_agent("--clean-up=false")
    wait_ready(host)


def clear(host: Host) -> None:
    host.kill_agent()
    host.run(host.agent_command("uninstall"))


def test_killed_at_any_point_of_its_first_pass_it_ends_in_the_same_state(lab: Lab) -> None:
    host = lab.host("b1")
    for name in ("a1", "a2", "b1"):
        wait_ready(lab.host(name))
    wait_until(lambda: host.metrics()["kilo_nodes"] == 3, "b1 knows the others")
    clear(host)
    start_and_wait(host)
    undisturbed = look_at(host)
    clear(host)

    died_unfinished = 0
    for milliseconds in range(200, 800, 120):
        host.start_agent("--clean-up=false")
        time.sleep(milliseconds / 1000)  # a different point each time
        host.kill_agent()
        died_unfinished += look_at_once(host) != undisturbed
        start_and_wait(host)
        assert look_at(host) == undisturbed, f"killed after {milliseconds} ms"
        clear(host)
    assert died_unfinished, "no agent was killed before it was done"


def look_at_once(host: Host) -> dict[str, str]:
    """Where something is missing, a program may fail."""
    return {sight: host.box.call(["/bin/sh", "-c", sight]).stdout for sight in SIGHTS}
