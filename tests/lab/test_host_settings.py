"""Hosts that are not as a mesh would like them: what agents make of them, and put back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from itertools import permutations

import pytest

from kilo.lab.host import Host
from kilo.lab.lab import Lab
from tests.kernel.wireguard_hosts import kernel_has_wireguard
from tests.lab.conftest import write_directory
from tests.lab.meshes import is_ready, no_loss, read_sessions, wait_each, wait_ready, wait_until

LAB = """
networks:
  internet: {public: true, subnets: [198.51.100.0/24, "2001:db8::/64"]}
  east: {subnets: [192.168.1.0/24, "fd00:1::/64"]}
hosts:
  a1: {networks: {east: [192.168.1.11, "fd00:1::11"], internet: [198.51.100.11, "2001:db8::11"]}}
  a2: {networks: {east: [192.168.1.12, "fd00:1::12"]}}
  b1: {networks: {internet: [198.51.100.21, "2001:db8::21"]}}
  old: {networks: {internet: 198.51.100.31}}
"""
"""Two locations, and a host that has never heard of IPv6."""

MESH = """
apiVersion: kilo.squat.ai/v1alpha1
kind: Settings
metadata: {name: mesh}
spec: {subnets: [10.4.0.0/16, "fd00:4::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: a1}
spec: {location: east, leader: true, podSubnets: [10.2.11.0/24, "fd00:a:0:11::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: a2}
spec: {location: east, podSubnets: [10.2.12.0/24, "fd00:a:0:12::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: b1}
spec: {location: west, podSubnets: [10.2.21.0/24, "fd00:a:0:21::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: old}
spec: {location: old, podSubnets: [10.2.31.0/24]}
"""

AGENTS = ("a1", "a2", "b1", "old")
HARDENED = {
    "net.ipv4.ip_forward": "0",
    "net.ipv6.conf.all.forwarding": "0",
    "net.ipv4.conf.all.rp_filter": "1",
    "net.ipv4.conf.default.rp_filter": "1",
}
"""As on a server that was never meant to be a router. New links filter strictly."""
WITHOUT_IPV6 = {f"net.ipv6.conf.{link}.disable_ipv6": "1" for link in ("all", "default")}
REPAIR_SECONDS = 20.0
"""It takes one or two; less than the 30 s after which every agent looks unasked."""

NEEDS_USERSPACE = pytest.mark.skipif(
    kernel_has_wireguard(), reason="this kernel has WireGuard, so wireguard-go is never started"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = write_directory(tmp_path_factory.mktemp("host-settings") / "lab", LAB, MESH)
    with Lab.up(directory, name=f"test-{os.getpid()}-settings", agents=False) as lab:
        set_all(lab.host("a1"), HARDENED)
        set_all(lab.host("a2"), HARDENED)
        set_all(lab.host("old"), WITHOUT_IPV6)
        for name in AGENTS:
            lab.host(name).start_agent("--clean-up=false")
        yield lab


@pytest.fixture
def mesh(lab: Lab) -> Lab:
    """The lab, every agent ready and everything reachable."""
    wait_each(map(lab.host, AGENTS), is_ready, "is ready")
    wait_whole(lab)
    return lab


def set_all(host: Host, settings: dict[str, str]) -> None:
    host.run(["sysctl", "-qw", *(f"{name}={value}" for name, value in settings.items())])


def read_all(host: Host, *names: str) -> dict[str, str]:
    return dict(zip(names, host.run(["sysctl", "-n", *names]).split(), strict=True))


PODS = {"a1": 11, "a2": 12, "b1": 21, "old": 31}


def list_targets(name: str) -> list[str]:
    """The pods that a host should reach: those of IPv6 only where there is any."""
    others = [number for other, number in PODS.items() if other != name]
    found = [f"10.2.{number}.1" for number in others]
    if name != "old":
        found += [f"fd00:a:0:{number}::1" for number in others if number != PODS["old"]]
    return found


def reaches_all(host: Host) -> bool:
    return host.succeeds(["fping", "-q", "--timeout=500", "--retry=1", *list_targets(host.name)])


def wait_whole(lab: Lab) -> float:
    """Until every host reaches the pods of every other; how many seconds that took."""
    hosts = [lab.host(name) for name in AGENTS]
    return wait_until(lambda: all(map(reaches_all, hosts)), "every pair is reachable")


def list_failures(host: Host) -> list[str]:
    return [line["detail"] for line in host.log_lines() if line.get("msg") == "failure"]


def test_a_host_that_was_no_router_becomes_one(mesh: Lab) -> None:
    host = mesh.host("a1")
    kilo0 = "net.ipv4.conf.kilo0.rp_filter"
    found = read_all(host, *HARDENED, kilo0)
    forwarding = {"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}
    assert found == {**HARDENED, **forwarding, kilo0: "2"}
    assert host.metrics()['kilo_kernel_writes_total{kind="sysctl"}'] == 3
    assert list_failures(host) == []


def test_a_host_without_ipv6_is_a_member_like_others(mesh: Lab) -> None:
    host = mesh.host("old")
    assert list_failures(host) == []
    assert [line for line in host.log_lines() if line.get("level") == "error"] == []
    assert "fd00" not in host.run(["ip", "address"])
    assert "fd00:a:0:21::/64" in mesh.host("a1").run(["ip", "-6", "route"])


@NEEDS_USERSPACE
def test_a_wireguard_go_that_dies_is_replaced_within_seconds(mesh: Lab) -> None:
    host = mesh.host("a1")
    (daemon,) = find_daemons(host)
    before = look_at(host)
    os.kill(daemon, signal.SIGKILL)
    wait_until(partial(has_replaced, host, daemon), "there is another one", seconds=REPAIR_SECONDS)
    assert wait_whole(mesh) < REPAIR_SECONDS
    wait_ready(host)
    assert look_at(host) == before


SIGHTS = (
    "ip -br address show dev kilo0 scope global",
    "ip route show table all proto 107",
    "ip -6 route show table all proto 107",
    "wg show kilo0 allowed-ips | tr ' ' '\\n' | sort",
    "wg show kilo0 public-key",
    "sysctl net.ipv4.conf.kilo0.rp_filter",
)


def look_at(host: Host) -> list[str]:
    return [host.run(["/bin/sh", "-c", sight]) for sight in SIGHTS]


def has_replaced(host: Host, daemon: int) -> bool:
    return any(process != daemon for process in find_daemons(host))


def find_daemons(host: Host) -> list[int]:
    """Its wireguard-go processes; the interface's name is an argument of nothing else."""
    return host.box.find_processes(["kilo0"])


@NEEDS_USERSPACE
def test_a_wireguard_go_outlives_its_agent_and_is_found_again(mesh: Lab) -> None:
    host = mesh.host("b1")
    before = find_daemons(host)
    host.restart_agent("--clean-up=false")
    wait_ready(host)
    assert find_daemons(host) == before
    assert len(before) == 1


@NEEDS_USERSPACE
def test_an_agent_that_must_not_make_the_interface_waits_for_it(mesh: Lab) -> None:
    host = mesh.host("b1")
    host.kill_agent(signal.SIGKILL)
    (daemon,) = find_daemons(host)
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: "kilo0" not in host.run(["ip", "link"]), "it is gone")
    said = len(list_failures(host))

    host.start_agent("--clean-up=false", "--create-interface=false")

    reason = "interface kilo0 does not exist and --create-interface=false"
    wait_until(lambda: reason in answer(host), "it says what it waits for")
    wait_until(lambda: count_tries(host) >= 3, "it goes on trying")
    (failure,) = list_failures(host)[said:]
    assert failure.endswith(reason)
    host.run(["wireguard-go", "kilo0"])
    seconds = wait_until(lambda: is_ready(host), "it has found the interface")
    assert seconds < REPAIR_SECONDS
    wait_whole(mesh)
    host.restart_agent("--clean-up=false")
    wait_ready(host)


SIDECAR = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "wireguard-go", "-f", "kilo0"]
"""As a container beside the agent's: it has processes of its own, and shares /run/wireguard."""


@NEEDS_USERSPACE
def test_a_wireguard_go_in_a_container_of_its_own_outlives_the_agent_but_not_unnoticed(
    mesh: Lab,
) -> None:
    host, flags = mesh.host("b1"), ("--clean-up=false", "--create-interface=false")
    stop_all(host)
    host.start_agent(*flags)
    host.box.spawn(SIDECAR, log=host.log)
    wait_until(lambda: is_ready(host), "it has found the interface")
    wait_whole(mesh)
    check_restart(mesh, host, flags)

    (container,) = find_daemons(host)
    os.kill(container, signal.SIGKILL)
    wait_until(lambda: "does not exist" in answer(host), "it says so", seconds=REPAIR_SECONDS)
    host.box.spawn(SIDECAR, log=host.log)
    wait_until(lambda: is_ready(host), "it is configured again", seconds=REPAIR_SECONDS)
    wait_whole(mesh)

    stop_all(host)
    host.start_agent("--clean-up=false")
    wait_ready(host)


def stop_all(host: Host) -> None:
    """The agent and its WireGuard."""
    host.kill_agent(signal.SIGKILL)
    for daemon in find_daemons(host):
        os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: "kilo0" not in host.run(["ip", "link"]), "it is gone")


def check_restart(mesh: Lab, host: Host, flags: tuple[str, ...]) -> None:
    """Neither a session nor a packet is lost while the agent is away and when it is back."""
    sessions = read_sessions(host)
    assert len(sessions) == 2
    with no_loss(mesh, permutations(("a1", host.name), 2)):
        host.restart_agent(*flags)
        wait_ready(host)
    after = read_sessions(host)
    assert all(after[key] >= stamp for key, stamp in sessions.items())


def count_tries(host: Host) -> float:
    return host.metrics().get('kilo_errors_total{event="reconcile"}', 0)


def answer(host: Host) -> str:
    """Why the agent is not ready; empty if it is, or does not answer."""
    try:
        ready = host.http("/ready")
    except Exception:  # noqa: BLE001 - not listening yet
        return ""
    return ready.text if ready.status == 503 else ""


def test_an_uninstall_makes_a_router_a_plain_host_again(mesh: Lab) -> None:
    host = mesh.host("a1")
    host.kill_agent(signal.SIGKILL)
    printed = host.run(host.agent_command("uninstall"))
    assert "- sysctl net.ipv4.ip_forward=1" in printed
    assert read_all(host, *HARDENED) == HARDENED
    assert sorted(path.name for path in host.disk.iterdir()) == ["agent.lock", "key"]
    host.start_agent("--clean-up=true")
    wait_ready(host)
    wait_whole(mesh)
    host.kill_agent(signal.SIGTERM)
    assert read_all(host, *HARDENED) == HARDENED
    host.start_agent("--clean-up=false")


def test_an_uninstall_finds_what_agents_have_made_under_another_name_and_nobody_elses(
    mesh: Lab,
) -> None:
    host = mesh.host("b1")
    host.kill_agent(signal.SIGKILL)
    host.run(host.agent_command("uninstall"))
    if not host.succeeds(["ip", "link", "add", "wg7", "type", "wireguard"]):
        host.run(["wireguard-go", "wg7"])
    host.run(["sh", "-c", "wg genkey | wg set wg7 private-key /dev/stdin"])
    host.start_agent("--clean-up=false", "--interface=wg9")
    wait_ready(host)
    host.kill_agent(signal.SIGKILL)

    assert "- link wg9" in host.run(host.agent_command("uninstall", "--dry-run"))
    assert "wg9" in host.run(["ip", "link"])
    assert "- link wg9" in host.run(host.agent_command("uninstall"))
    links = host.run(["ip", "link"])
    assert "wg9" not in links
    assert "wg7" in links
    assert host.run(host.agent_command("uninstall")) == "nothing to remove\n"
    host.run(["ip", "link", "delete", "wg7"])
    host.start_agent("--clean-up=false")
