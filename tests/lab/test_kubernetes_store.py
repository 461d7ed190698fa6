"""The store of a lab on Kubernetes: made, worked by hand, broken, taken down. No agents."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from kilo.errors import ConfigError, LabError
from kilo.lab.box import find_inits
from kilo.lab.lab import Lab
from kilo.lab.machine import describe_machine, list_namespaces
from kilo.lab.storage import ROOT
from tests.lab.conftest import NODES, SITES, write_directory
from tests.lab.test_cli import kgctl
from tests.lab.test_lifecycle import assert_nothing_left

KUBECONFIG = "--kubeconfig=/var/lib/kilo/kubeconfig"


def test_a_lab_on_kubernetes_is_worked_by_commands_and_leaves_nothing(
    directory: Path, tmp_path: Path, name: str
) -> None:
    def lab(command: str, *words: str) -> subprocess.CompletedProcess[str]:
        return kgctl("lab", command, f"--name={name}", *words)

    before = describe_machine()
    assert lab("up", str(directory), "--backend=kubernetes", "--agents=false").returncode == 0
    namespaces = list_namespaces(find_inits(ROOT / name))
    assert not (ROOT / name / "mesh").exists()
    assert "store: Kubernetes API server https://198.51.100.254:6443" in lab("status").stdout
    assert lab("status").stdout.endswith(": ready\n")
    assert lab("kubectl", "get", "nodes", "--output=name").stdout == "node/oregon-1\n"
    assert lab("kubectl", "--", "get", "node", "nobody").returncode == 1

    assert lab("store", "freeze").returncode == 0
    assert lab("status").stdout.endswith(": frozen\n")
    assert lab("store", "thaw").returncode == 0
    assert lab("store", "save").returncode == 0
    assert lab("kubectl", "delete", "node", "oregon-1").returncode == 0
    assert lab("store", "kill").returncode == 0
    assert lab("status").stdout.endswith(": off\n")
    assert "is not running" in lab("store", "kill").stderr
    assert lab("store", "start").returncode == 0
    assert "is running" in lab("store", "start").stderr
    assert lab("kubectl", "get", "nodes", "--output=name").stdout == ""
    assert lab("store", "restore").returncode == 0
    assert lab("kubectl", "get", "nodes", "--output=name").stdout == "node/oregon-1\n"
    assert "is not one of kill, start" in lab("store", "nonsense").stderr

    assert describe_machine() == before, "nothing is made outside, even while it is up"
    assert lab("down").returncode == 0
    assert_nothing_left(name, namespaces, before)


def test_hosts_are_let_in_through_nats_and_may_do_what_the_manifest_allows(
    directory: Path, name: str
) -> None:
    with Lab.up(directory, name=name, backend="kubernetes", agents=False) as lab:
        host = lab.host("home-1")
        (oregon,) = json.loads(host.run(["kubectl", KUBECONFIG, "get", "nodes", "-o=json"]))[
            "items"
        ]
        assert oregon["spec"]["podCIDRs"] == ["10.2.11.0/24", "fd00:a:0:11::/64"]
        allowed = host.run(["kubectl", KUBECONFIG, "auth", "can-i", "patch", "nodes"])
        assert allowed == "yes\n"
        for verb, what in (("delete", "nodes"), ("create", "peers.kilo.squat.ai"), ("get", "pods")):
            asked = host.box.call(["kubectl", KUBECONFIG, "auth", "can-i", verb, what])
            assert asked.stdout == "no\n", (verb, what)
        mode = host.run(["stat", "-c", "%a", "/var/lib/kilo/kubeconfig"])
        assert mode == "600\n"

        ask = ["kubectl", KUBECONFIG, "get", "nodes"]
        lab.cut("@store", "home-1")
        assert not host.succeeds([*ask, "--request-timeout=2s"])
        assert host.succeeds(["fping", "203.0.113.50"]), "it is cut off from nothing else"
        lab.heal("@store", "home-1")
        assert host.succeeds(ask)
        lab.cut("home-1")
        assert not host.succeeds([*ask, "--request-timeout=2s"])


def test_settings_and_peers_are_changed_in_the_cluster(directory: Path, name: str) -> None:
    with Lab.up(
        directory, name=name, backend="kubernetes", granularity="full", agents=False
    ) as lab:
        lab.store.set_settings(port=51821)
        settings = lab.store.read_snapshot().settings
        assert settings == {"granularity": "full", "port": 51821}
        with pytest.raises(ConfigError, match="granularity: 'tiny'"):
            lab.store.set_settings(granularity="tiny")
        lab.plane.kill()
        assert lab.store.read_snapshot().settings == settings, "as it was last read"
        lab.plane.start()


@pytest.mark.parametrize(
    ("mesh", "reason"),
    [
        (NODES.replace("10.2.11.0/24", "10.2.11.0/99"), "podSubnets.*a cluster holds only what"),
        (
            NODES.replace(
                "location: oregon", "publicKey: OU9/xEWEsS+A8KH880l3X2wc/4BxZ1H7bQU8FJbq7F8="
            ),
            r"Node oregon-1: spec\.publicKey: '.*' declares a node",
        ),
    ],
)
def test_a_mesh_that_a_cluster_cannot_hold_is_refused(
    tmp_path: Path, name: str, mesh: str, reason: str
) -> None:
    before = describe_machine()
    with pytest.raises(ConfigError, match=reason):
        Lab.up(write_directory(tmp_path / "lab", SITES, mesh), name=name, backend="kubernetes")
    assert_nothing_left(name, set(), before)


def test_a_lab_in_a_directory_has_no_api_server(sites: Lab) -> None:
    with pytest.raises(LabError, match=r"its store is the directory .*/mesh; no API server"):
        sites.plane.kubectl("get", "nodes")
    with pytest.raises(LabError, match=r"host @store: lab '.*' has only oregon-1"):
        sites.cut("@store")
