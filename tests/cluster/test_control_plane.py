"""The control plane itself: what the other tests of this layer rely on."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kilo.errors import LabError
from kilo.lab.controlplane import ControlPlane
from kilo.lab.planefiles import find_programs
from kilo.lab.processes import list_processes, read_arguments
from tests.cluster.planes import NODES, Cluster


def find_programs_in(directory: Path) -> list[int]:
    """The processes of a control plane, by its directory in their command lines."""
    found = {pid: read_arguments(pid) for pid in list_processes()}
    own = ("etcd", "kube-apiserver")
    return [
        pid
        for pid, words in found.items()
        if words and Path(words[0]).name in own and any(str(directory) in word for word in words)
    ]


def test_an_account_may_do_what_its_roles_say_and_nothing_else(cluster: Cluster) -> None:
    cluster.put_node("a1")
    config = cluster.make_agent_kubeconfig()
    assert "node/a1" in cluster.plane.kubectl(f"--kubeconfig={config}", "get", "nodes", "-oname")
    with pytest.raises(LabError, match=r"(?i)forbidden"):
        cluster.plane.kubectl(f"--kubeconfig={config}", "get", "secrets", "-A")


def test_what_the_api_server_refuses_to_let_in_can_be_put_there(cluster: Cluster) -> None:
    huge = "x" * 1_000_000
    document = {"metadata": {"name": "a1", "annotations": {"kilo.squat.ai/endpoint": huge}}}
    with pytest.raises(LabError, match="262144"):
        cluster.plane.call("POST", NODES, document)
    cluster.write_past_server("a1", document)
    assert cluster.read_annotations("a1")["kilo.squat.ai/endpoint"] == huge


def test_its_programs_end_with_whoever_started_them(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from kilo.lab.controlplane import ControlPlane;"
        "plane = ControlPlane(Path(sys.argv[1])); plane.start();"
        "print(plane.server, flush=True); sys.stdin.read()"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with starter:
        assert starter.stdout
        assert starter.stdout.readline()
        found = find_programs_in(tmp_path)
        assert len(found) == 2
        handles = [os.pidfd_open(process) for process in found]
        starter.send_signal(signal.SIGKILL)
    for handle in handles:
        # Readable once the process has ended, whoever its parent is now.
        assert select.select([handle], [], [], 30.0)[0]
        os.close(handle)


def test_a_program_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, flags=["--no-such-flag"])
    with pytest.raises(LabError, match=r"kube-apiserver: has ended: .*no-such-flag"), plane:
        pass
    assert find_programs_in(tmp_path) == []


def test_without_an_api_server_it_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("etcd", "etcdctl", "kubectl"):
        (tmp_path / program).touch(mode=0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LabError, match="tools/kube-apiserver"):
        find_programs()
