"""Agents in the lab: started, stopped, killed, looked at; and what a check makes of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.errors import LabError
from kilo.lab import meshdir
from kilo.lab.lab import Lab
from kilo.lab.processes import end_processes
from tests.lab.conftest import write_directory
from tests.lab.meshes import count_unfetched

LAB = """
networks: {internet: {public: true, subnets: [198.51.100.0/24, 203.0.113.0/24]}}
hosts:
  one: {networks: {internet: 198.51.100.11}}
  two: {networks: {internet: 198.51.100.12}}
  laptop: {peer: lap, networks: {internet: 203.0.113.50}}
"""
MESH = """
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: one}
spec: {location: here, podSubnets: [10.2.11.0/24]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: two}
spec: {location: there, podSubnets: [10.2.12.0/24]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Peer
metadata: {name: lap}
spec:
  publicKey: OU9/xEWEsS+A8KH880l3X2wc/4BxZ1H7bQU8FJbq7F8=
  allowedIPs: [10.5.0.1/32]
  endpoint: {dnsOrIP: {ip: 203.0.113.50}, port: 51820}
"""


@pytest.fixture
def lab(tmp_path: Path, name: str) -> Iterator[Lab]:
    with Lab.up(write_directory(tmp_path / "lab", LAB, MESH), name=name) as lab:
        lab.wait_reachable()
        yield lab


def test_an_agent_answers_over_http_and_logs_json(lab: Lab) -> None:
    host = lab.host("one")
    assert host.http("/ready").status == 200
    assert host.metrics()["kilo_leader"] == 1.0
    assert all("level" in line for line in host.log_lines())
    assert host.log_lines()
    with pytest.raises(LabError, match=r"host laptop: GET /ready: .*refused"):
        lab.host("laptop").http("/ready")


def test_an_agent_is_not_started_twice(lab: Lab) -> None:
    with pytest.raises(LabError, match="host one: its agent is running"):
        lab.host("one").start_agent()


def test_an_agent_that_was_killed_on_purpose_is_left_out_of_a_check(lab: Lab) -> None:
    lab.host("one").kill_agent()
    result = lab.check()
    assert result.complete
    assert (result.outside, result.crashed) == (("one",), ())
    with pytest.raises(LabError, match="host one: no agent is running"):
        lab.host("one").kill_agent()
    lab.host("one").start_agent()
    lab.wait_reachable()
    assert lab.check().outside == ()


def test_an_agent_that_ends_by_itself_fails_a_check(lab: Lab) -> None:
    end_processes(lab.host("one").agents())
    result = lab.check()
    assert not result.complete
    assert result.crashed == ("one",)
    with pytest.raises(LabError, match="one is not running, though nobody stopped it"):
        lab.wait_reachable(timeout=0)


def test_a_restarted_agent_gets_more_flags_and_a_new_process(lab: Lab) -> None:
    before = lab.host("one").agents()
    lab.host("one").restart_agent("--log-level=debug")
    after = lab.host("one").agents()
    assert len(after) == 1
    assert after != before
    assert "--log-level=debug" in Path(f"/proc/{after[0]}/cmdline").read_text().split("\0")
    lab.wait_reachable()


def test_an_agent_stops_on_sigterm_and_everything_of_its_host_can_go(lab: Lab) -> None:
    lab.host("one").kill_agent(signal.SIGTERM)
    assert lab.host("one").agents() == []
    assert os.getpid() not in lab.host("one").box.processes()


def test_a_mesh_is_whole_again_after_a_host_and_a_peer_were_switched_off_and_on(lab: Lab) -> None:
    for name in ("one", "laptop"):
        lab.kill(name)
        assert lab.check().outside == (name,)
        lab.start(name)
        assert lab.wait_reachable().outside == ()


def test_a_change_of_the_labs_mesh_reaches_its_agents(lab: Lab) -> None:
    meshdir.set_settings(lab.mesh, subnets=["10.4.128.0/17"])
    lab.wait_reachable()
    assert "10.4.128.1" in lab.host("two").run(["ip", "route"])


def test_nothing_is_lost_between_agents_that_are_left_alone(lab: Lab) -> None:
    unfetched = count_unfetched(lab)
    with lab.probe() as probe:
        for _ in range(3):
            lab.wait_reachable()
        losses = probe.stop()
    assert len(losses.pairs) == 6
    assert losses.lost <= count_unfetched(lab) - unfetched, losses
