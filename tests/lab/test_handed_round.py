"""Directories that agents do not share: read-only ones, and copies by git or Ansible."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kilo.lab.host import Host
from kilo.lab.lab import Lab, take_down
from tests.lab.conftest import write_directory
from tests.lab.meshes import wait_each, wait_ready

LAB = """
networks:
  internet: {public: true, subnets: [198.51.100.0/24]}
  east: {subnets: [192.168.1.0/24]}
hosts:
  a1: {networks: {east: 192.168.1.11, internet: 198.51.100.11}}
  a2: {networks: {east: 192.168.1.12, internet: 198.51.100.12}}
  b1: {networks: {internet: 198.51.100.21}}
"""

NODE = """
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {{name: {name}}}
spec:
  location: {location}
  endpoint: 198.51.100.{number}:51820
  internalIP: "{internal}"
  podSubnets: [10.2.{number}.0/24]
  publicKey: GY5aT1N9dTR/nJnT1N2f4ClZWVj0jOAld0r8ysWLyjg=
"""
"""The lab puts keys of its own in place of the one shown."""

MESH = "---".join(
    NODE.format(name=name, location=name[0], number=number, internal=internal)
    for name, number, internal in (
        ("a1", 11, "192.168.1.11/24"),
        ("a2", 12, "192.168.1.12/24"),
        ("b1", 21, "-"),
    )
)


def make_read_only(host: Host, mesh: Path) -> None:
    host.run(["mount", "--bind", str(mesh), str(mesh)])
    host.run(["mount", "-o", "remount,ro,bind", str(mesh)])


def make_copy(host: Host, mesh: Path) -> None:
    host.run(["cp", "-a", str(mesh), "/run/wireguard/copy"])
    host.run(["mount", "--bind", "/run/wireguard/copy", str(mesh)])


@pytest.mark.parametrize("hand_round", [make_read_only, make_copy])
def test_nodes_with_declared_keys_meet_without_hearing_each_other_s_reports(
    tmp_path: Path, hand_round: object
) -> None:
    assert callable(hand_round)
    name = f"test-{os.getpid()}-round"
    try:
        lab = Lab.up(write_directory(tmp_path / "lab", LAB, MESH), name=name, agents=False)
        for host in lab.agent_hosts:
            hand_round(host, lab.mesh)
            host.start_agent("--resync-period=1s")
        for host in lab.agent_hosts:
            wait_ready(host)
        result = lab.wait_reachable()
        assert set(result.sources) == {"a1", "a2", "b1"}
        assert not list((lab.mesh / "reports").glob("*"))
        expected = int(hand_round is make_read_only)
        wait_each(lab.agent_hosts, lambda host: count_warnings(host) >= expected, "has warned")
        for host in lab.agent_hosts:
            assert count_warnings(host) == expected
    finally:
        take_down(name)


def count_warnings(host: Host) -> int:
    return sum(line["msg"] == "report not published" for line in host.log_lines())
