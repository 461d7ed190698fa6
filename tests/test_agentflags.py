"""What an agent may be asked for, and what it refuses in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kilo.agentflags import AgentConfig, parse_agent_flags
from kilo.dataplane.firewall import Choice
from kilo.errors import ConfigError
from kilo.mesh.model import Encapsulation

CLUSTER = "--backend=kubernetes --cni=false --encapsulate=never --hostname=a1"


def parse(line: str, **environ: str) -> AgentConfig:
    return parse_agent_flags(line.split(), environ)


def complaint(line: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse(line, **environ)
    return str(error.value)


def test_where_the_api_server_is_can_be_said_by_flags() -> None:
    backend = parse(f"{CLUSTER} --kubeconfig=/etc/k --master https://203.0.113.1:6443").backend
    assert (backend.kind, backend.kubeconfig) == ("kubernetes", "/etc/k")
    assert backend.master == "https://203.0.113.1:6443"


def test_without_them_the_agent_takes_itself_to_be_in_the_cluster() -> None:
    backend = parse(CLUSTER).backend
    assert (backend.kubeconfig, backend.master) == ("", "")


def test_kubernetes_is_the_backend_unless_another_is_named() -> None:
    assert parse("--cni=false --encapsulate=never").backend.kind == "kubernetes"


@pytest.mark.parametrize("backend", ["file", "etcd"])
@pytest.mark.parametrize("flag", ["kubeconfig", "master"])
def test_where_an_api_server_is_means_nothing_to_other_backends(flag: str, backend: str) -> None:
    assert complaint(f"--backend={backend} --{flag}=x") == (
        f"--{flag} 'x': is for --backend=kubernetes, and this is --backend={backend}"
    )


@pytest.mark.parametrize(
    ("backend", "cni", "encapsulation"),
    [
        ("kubernetes", True, Encapsulation.ALWAYS),
        ("file", False, Encapsulation.NEVER),
    ],
)
def test_pods_and_encapsulation_are_ours_by_default_in_a_cluster_only(
    backend: str,
    cni: bool,  # noqa: FBT001 - a column of the table
    encapsulation: Encapsulation,
) -> None:
    config = parse(f"--backend={backend}")
    assert config.options.cni is cni
    assert config.defaults.encapsulation is encapsulation
    assert config.settings == {}


def test_both_can_be_said_otherwise_in_the_environment_too() -> None:
    config = parse("", KG_CNI="false", KG_ENCAPSULATE="crosssubnet")
    assert not config.options.cni
    assert config.settings == {"encapsulation": Encapsulation.CROSSSUBNET}
    assert parse("--backend=file --cni --cni-path=/etc/x").cni_path == Path("/etc/x")


def test_whose_firewall_is_written_is_found_out_unless_it_is_said() -> None:
    assert parse("--cni=false").firewall is Choice.AUTO
    assert parse("--cni=false --firewall=iptables").firewall is Choice.IPTABLES
    assert "auto, nftables, iptables" in complaint("--cni=false --firewall=ufw")


def test_a_template_of_the_pods_configuration_is_none_unless_one_is_named() -> None:
    assert parse("--cni").cni_template is None
    assert parse("--cni", KG_CNI_TEMPLATE="").cni_template is None
    assert parse("--cni --cni-template=/etc/kilo/x").cni_template == Path("/etc/kilo/x")


@pytest.mark.parametrize("other", ["flannel", "cilium"])
def test_beside_another_network_what_is_its_own_must_be_left_to_it(other: str) -> None:
    beside = f"--compatibility={other}"
    assert parse(f"{beside} --cni=false --local=false").options.compatibility == other
    assert complaint(beside) == (
        f"{beside}: the configuration of the pods is {other.title()}'s; give --cni=false"
    )
    assert complaint(f"{beside} --cni=false") == (
        f"{beside}: the routes within a location are {other.title()}'s; give --local=false"
    )


@pytest.mark.parametrize("command", ["uninstall", "uninstall --dry-run"])
def test_taking_everything_back_needs_no_such_flag(command: str) -> None:
    config = parse(f"{command} --backend=kubernetes --kubeconfig=/etc/k")
    assert (config.command, config.backend.kubeconfig) == ("uninstall", "/etc/k")


def test_a_dry_run_can_be_made_of_a_cluster() -> None:
    assert parse(f"{CLUSTER} --dry-run").dry_run


def test_the_refusal_is_one_line_on_standard_error() -> None:
    program = [sys.executable, "-m", "kilo.kg", "--backend=file", "--master=x", "--hostname=a1"]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "kg: --master 'x': is for --backend=kubernetes, and this is --backend=file\n"
    )
