"""What an agent may be asked for, and what it refuses in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kilo.agentflags import AgentConfig, parse_agent_flags
from kilo.dataplane.firewall import Choice
from kilo.errors import ConfigError
from kilo.mesh.model import Encapsulation, Endpoint, NodeSpec
from tests.builders import networks

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


def test_what_an_agent_declares_of_its_node_is_said_by_flags() -> None:
    config = parse(
        "--backend=etcd --location=oregon --pod-subnet=10.2.1.0/24,fd00:2:1::/64 --leader"
        " --allowed-location-ip 192.168.1.50/32 --allowed-location-ip 192.168.1.51/32"
        " --endpoint=[2001:db8::7]:51820",
        KG_PERSISTENT_KEEPALIVE="10",
    )
    assert config.backend.registration == NodeSpec(
        location="oregon",
        pod_subnets=networks("10.2.1.0/24", "fd00:2:1::/64"),
        leader=True,
        allowed_location_ips=networks("192.168.1.50/32", "192.168.1.51/32"),
        endpoint=Endpoint(host="2001:db8::7", port=51820),
        persistent_keepalive_seconds=10,
    )


def test_without_such_a_flag_an_agent_declares_nothing() -> None:
    assert parse("--backend=etcd").backend.registration is None
    assert parse("--backend=etcd --location=").backend.registration == NodeSpec()


@pytest.mark.parametrize(
    ("flag", "shown"),
    [
        ("--location=oregon", "--location 'oregon'"),
        ("--pod-subnet=10.2.1.0/24,fd00::/64", "--pod-subnet '10.2.1.0/24,fd00::/64'"),
        ("--leader", "--leader 'true'"),
        ("--allowed-location-ip=10.9.0.1/32", "--allowed-location-ip '10.9.0.1/32'"),
        ("--endpoint=a.example.com:1", "--endpoint 'a.example.com:1'"),
        ("--persistent-keepalive=7", "--persistent-keepalive '7'"),
    ],
)
@pytest.mark.parametrize("backends", ["file", "kubernetes", "kubernetes,etcd"])
def test_elsewhere_nodes_are_declared_by_others(flag: str, shown: str, backends: str) -> None:
    assert complaint(f"--backend={backends} {flag}") == (
        f"{shown}: is for --backend=etcd, and this is --backend={backends}"
    )


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        (f"--location={'a' * 254}", "is not a location: up to 253 printable characters"),
        ("--pod-subnet=10.2.1.1/24", "is not a CIDR without host bits, such as 10.4.0.0/16"),
        ("--pod-subnet=fd00:2::%eth0/64", "is not a CIDR without host bits, such as 10.4.0.0/16"),
        ("--persistent-keepalive=65536", "is not within 0-65535"),
        ("--endpoint=198.51.100.7", "is not host:port"),
        ("--endpoint=300.51.100.7:1", "has a malformed address"),
    ],
)
def test_what_no_node_can_be_declared_with_is_refused(flag: str, reason: str) -> None:
    name, _, value = flag.partition("=")
    assert complaint(f"--backend=etcd {flag}") == f"{name} {value!r}: {reason}"
