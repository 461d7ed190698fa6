"""The container image: built from the Dockerfile, and everything that it promises is in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo import __version__
from tests.install.image import Container, build_image
from tests.install.machine import wait_for
from tests.install.promtool import lint_metrics

LIMIT_SECONDS = 120.0
MESH = """
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: berlin}
spec: {location: berlin, podSubnets: [10.2.1.0/24]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Peer
metadata: {name: laptop}
spec: {publicKey: 0/+EZ00+RLeAKp7m1cn9aNPzSKXoJ8d52jH0M2C5OD4=, allowedIPs: [10.5.0.1/32]}
"""
# What the host's own firewall is, and where the agent's rules then stand.
FIREWALLS = {
    "nft": "nft list ruleset",
    "iptables-nft": "iptables-nft-save",
    "iptables-legacy": "iptables-legacy-save",
}
# Of each program something that it can only say if nothing that it needs is missing.
PROGRAMS = (
    "nft --version",
    "iptables-nft --version",
    "iptables-legacy --version",
    "ip6tables-nft-restore --version",
    "ip6tables-legacy-save --version",
    "ipset help",
    "ip -Version",
    "wg --version",
    "wireguard-go --version",
    "dot -V",
)
CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
# What is imported only when it is chosen.
LIBRARIES = "kilo.backends.kubernetes.backend kilo.backends.etcd.backend iptc segno"


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with Container(build_image()) as container:
        yield container


def test_the_programs_start_where_manifests_look_for_them(container: Container) -> None:
    assert container.run("/opt/bin/kg", "--version") == f"kg {__version__}\n"
    assert "--mesh-granularity" in container.run("/opt/bin/kg", "--help")
    assert container.run("/opt/bin/kgctl", "version") == f"kgctl {__version__}\n"


def test_what_needs_no_rights_runs_without_them(container: Container) -> None:
    script = "test $(id -u) = 65532 && kgctl get --help && kg webhook --help"
    assert "--cert-file" in container.run("sh", "-c", script, user="kilo")


def test_whatever_the_agent_may_call_is_there(container: Container) -> None:
    plugins = [f"CNI_COMMAND=VERSION /opt/cni/bin/{plugin} </dev/null" for plugin in CNI_PLUGINS]
    imports = [f"/opt/kilo/bin/python -c 'import {name}'" for name in LIBRARIES.split()]
    container.run("sh", "-ec", "\n".join((*PROGRAMS, *plugins, *imports)))


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_an_agent_in_it_needs_two_rights_to_make_the_network_and_take_it_away(
    container: Container, tmp_path: Path, firewall: str
) -> None:
    mesh, log = tmp_path / "mesh", tmp_path / "log"
    mesh.mkdir()
    (mesh / "all.yaml").write_text(MESH)
    if firewall != "nft":
        container.manage(firewall, "-A", "FORWARD", "-j", "ACCEPT")
    agent = container.run_agent(
        mesh, log, "--backend=file", "--hostname=berlin", "--clean-up-interface"
    )

    def is_ready() -> bool:
        assert agent.poll() is None, log.read_text()
        return container.fetch("/ready") != ""

    try:
        wait_for(is_ready, "agent that is ready", seconds=LIMIT_SECONDS)
        assert "10.4.0.1/16" in container.ip("address", "show", "dev", "kilo0")
        assert "kilo" in container.manage(*FIREWALLS[firewall].split()).lower()
        assert lint_metrics(container.fetch("/metrics")) == ""
        assert "<svg" in container.fetch("/graph")
    finally:
        container.end_agent(agent)
        if firewall != "nft":
            container.manage(firewall, "-F", "FORWARD")
    assert '"network restored"' in log.read_text()
    assert "kilo0" not in container.ip("-brief", "link")


def test_nothing_of_how_it_was_built_is_left_in_it(container: Container) -> None:
    find = "PATH=$PATH:/opt/kilo/bin; for name in sh gcc pip; do command -v $name || true; done"
    found = container.run("sh", "-c", find).split()
    assert [Path(program).name for program in found] == ["sh"]
    assert container.run("sh", "-c", "ls -d /source 2>/dev/null; ls /var/lib/apt/lists") == ""
