"""``kgctl apply``, ``get`` and ``delete`` on a real API server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kilo.backends.documents import (
    make_node_document,
    make_peer_document,
    make_settings_document,
)
from kilo.kgctl import main
from kilo.mesh.model import NodeSpec, PartialSettings
from tests.builders import make_key, make_peer, networks
from tests.cluster.planes import CONFIG_MAPS, PEERS, PREFIX, Cluster

OREGON = NodeSpec(location="oregon", leader=True)
SQUAT = make_peer("squat", preshared=True)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "given.yaml"
    settings = make_settings_document(PartialSettings(port=51821))
    documents = [make_node_document("a1", OREGON), make_peer_document(SQUAT), settings]
    path.write_text(yaml.safe_dump_all(documents))
    return path


@pytest.fixture
def kubeconfig(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An operator's, which is where ``KUBECONFIG`` says."""
    path = cluster.plane.make_kubeconfig("operator", groups=["system:masters"])
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


@pytest.mark.usefixtures("kubeconfig")
def test_what_is_applied_stands_where_kubernetes_has_room_for_it(
    cluster: Cluster, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put_node("a1", pod_cidrs=())
    assert main(["apply", "-f", str(given)]) == 0
    out = capsys.readouterr().out
    assert out == "node/a1 configured\npeer/squat created\nsettings created\n"
    annotations = {f"{PREFIX}location": "oregon", f"{PREFIX}leader": "true"}
    assert cluster.read_annotations("a1") == annotations
    spec = cluster.plane.call("GET", f"{PEERS}/squat")["spec"]
    assert spec == make_peer_document(SQUAT)["spec"]
    assert main(["apply", "-f", str(given)]) == 0
    assert capsys.readouterr().out == (
        "node/a1 unchanged\npeer/squat unchanged\nsettings unchanged\n"
    )


@pytest.mark.usefixtures("kubeconfig")
def test_what_get_prints_can_be_applied_again_as_it_is(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put_node("a1", {"location": "oregon"}, pod_cidrs=("10.2.1.0/24",))
    cluster.put_peer("squat", publicKey=str(make_key("squat")), allowedIPs=["10.5.0.1/32"])
    assert main(["get", "nodes,peers", "-o", "yaml"]) == 0
    path = tmp_path / "dump.yaml"
    path.write_text(capsys.readouterr().out)
    items: list[Any] = yaml.safe_load(path.read_text())["items"]
    assert items[0] == make_node_document(
        "a1", NodeSpec(location="oregon", pod_subnets=networks("10.2.1.0/24"))
    )
    assert main(["apply", "-f", str(path)]) == 0
    assert capsys.readouterr().out == "node/a1 unchanged\npeer/squat unchanged\n"


@pytest.mark.usefixtures("kubeconfig")
def test_a_node_that_no_kubelet_registered_is_an_error_of_its_own(
    given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["apply", "-f", str(given)]) == 1
    said = capsys.readouterr()
    assert said.out == "peer/squat created\nsettings created\n"
    assert said.err.startswith("kgctl: node/a1: kubernetes: Node a1 is not registered in the clus")


@pytest.mark.usefixtures("kubeconfig")
def test_of_several_stores_the_table_says_which(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put_node("a1", pod_cidrs=())
    (tmp_path / "b1.yaml").write_text(yaml.safe_dump(make_node_document("b1", OREGON)))
    main(["get", "nodes", "--backend=kubernetes,file", f"--directory={tmp_path}"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[-1]) for row in rows] == [
        ("NAME", "STORE"), ("a1", "kubernetes"), ("b1", "file"),
    ]  # fmt: skip


@pytest.mark.usefixtures("kubeconfig")
def test_what_is_deleted_goes_and_the_clusters_own_node_stays(
    cluster: Cluster, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put_node("a1", {"mine": "stays"})
    main(["apply", "-f", str(given)])
    capsys.readouterr()
    assert main(["delete", "-f", str(given)]) == 0
    assert capsys.readouterr().out == (
        'node "a1" deleted\npeer "squat" deleted\nsettings deleted\n'
    )
    assert cluster.read_annotations("a1") == {f"{PREFIX}mine": "stays"}
    assert cluster.plane.call("GET", PEERS)["items"] == []
    names = [one["metadata"]["name"] for one in cluster.plane.call("GET", CONFIG_MAPS)["items"]]
    assert "kilo-settings" not in names


def test_without_the_right_to_write_it_is_one_line_that_names_it(
    cluster: Cluster, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given.write_text(yaml.safe_dump(make_peer_document(SQUAT)))
    config = cluster.make_agent_kubeconfig()
    assert main(["apply", "-f", str(given), f"--kubeconfig={config}"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert f"POST {PEERS}: 403 Forbidden" in said.err


def run_program(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH",)}
    return subprocess.run(
        [sys.executable, "-m", "kilo.kgctl", *words],
        env=kept | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_kubeconfig_is_looked_for_where_kubectl_looks(
    cluster: Cluster, kubeconfig: Path, tmp_path: Path
) -> None:
    cluster.put_node("a1")
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube/config").write_text(kubeconfig.read_text())
    at_home = run_program({"HOME": str(tmp_path)}, "get", "nodes", "-o", "name")
    assert (at_home.stdout, at_home.stderr) == ("node/a1\n", "")
    several = run_program({"KUBECONFIG": f"{kubeconfig}:/b"}, "get", "nodes")
    assert several.returncode == 2
    assert several.stderr.endswith("names several files; choose one by --kubeconfig\n")
