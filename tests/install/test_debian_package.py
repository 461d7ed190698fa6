"""The Debian package under a real systemd, from installing it to purging it.

The tests stand in the order of a life: each begins where the one before ended.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install.machine import ROOT, Machine, make_root, wait_for

LIMIT_SECONDS = 120.0
MAX_EXPOSURE = 4.0
PEER = """
apiVersion: kilo.squat.ai/v1alpha1
kind: Peer
metadata: {{name: far}}
spec:
  publicKey: {key}
  allowedIPs: [10.5.0.1/32]
  endpoint: {{dnsOrIP: {{ip: 192.168.1.12}}, port: 51820}}
"""
# A neighbour to have a tunnel with: a namespace of the machine, on a link of its own.
NEIGHBOUR = """
set -eu
ip link add eth0 type veth peer name far0
ip netns add far
ip link set far0 netns far
ip address add 192.168.1.11/24 dev eth0
ip link set eth0 up
ip route add default via 192.168.1.1
ip -n far address add 192.168.1.12/24 dev far0
ip -n far link set far0 up
wg genkey >/root/far.key
systemd-run --quiet --unit=far --property=NetworkNamespacePath=/run/netns/far wireguard-go -f wgfar
until wg_answers=$(ip netns exec far wg show wgfar); do sleep 0.1; done
ip -n far address add 10.5.0.1/32 dev wgfar
ip -n far link set wgfar up
ip -n far route add 10.4.0.1 dev wgfar
wg pubkey </root/far.key
"""
MEET = """
set -eu
ip netns exec far wg set wgfar private-key /root/far.key listen-port 51820 \
    peer "$(kg public-key)" allowed-ips 10.4.0.1/32 endpoint 192.168.1.11:51820
"""
WHAT_REMAINS = (
    "/etc/default/kg",
    "/etc/kilo",
    "/etc/systemd/system/multi-user.target.wants/kg.service",
    "/lib/systemd/system/kg.service",
    "/usr/bin/kg",
    "/usr/bin/kgctl",
    "/usr/lib/kilo",
    "/var/lib/kilo",
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    done = subprocess.run(
        [ROOT / "tools/deb", sys.executable, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    with Machine(make_root(folder), folder / "boot.log") as machine:
        key = machine.run("bash", "-c", NEIGHBOUR).strip()
        machine.write("/etc/kilo/mesh/far.yaml", PEER.format(key=key))
        yield machine


def ping(machine: Machine, *, count: int) -> subprocess.Popen[str]:
    """A hundred a second, from the neighbour to the agent's host, through the tunnel."""
    words = ["ping", "-q", "-i", "0.01", "-c", str(count), "-W", "2", "10.4.0.1"]
    return machine.start("ip", "netns", "exec", "far", *words)


def main_pid(machine: Machine) -> str:
    return machine.run("systemctl", "show", "--property=MainPID", "--value", "kg").strip()


def find_userspace(machine: Machine) -> str:
    return machine.run("pgrep", "-f", "wireguard-go kilo0").strip()


def answers(machine: Machine) -> bool:
    return (
        machine.call("ip", "netns", "exec", "far", "ping", "-c1", "-W5", "10.4.0.1").returncode == 0
    )


def test_installing_it_starts_an_agent_that_is_ready_when_the_network_is(
    machine: Machine, package: Path
) -> None:
    machine.copy(package, "/root/kilo.deb")
    machine.run("dpkg", "--install", "/root/kilo.deb")
    assert machine.run("systemctl", "is-enabled", "kg").strip() == "enabled"
    assert machine.run("systemctl", "is-active", "kg").strip() == "active"
    assert "10.4.0.1/16" in machine.run("ip", "address", "show", "dev", "kilo0")
    shown = machine.run("systemctl", "show", "--property=StatusText", "--value", "kg")
    assert shown.strip() == "the network is as it should be"
    machine.run("bash", "-c", MEET)
    wait_for(lambda: answers(machine), "answer through the tunnel", seconds=LIMIT_SECONDS)


def test_the_programs_and_their_manual_are_there(machine: Machine) -> None:
    assert "--mesh-granularity" in machine.run("kg", "--help")
    assert "usage: kgctl" in machine.run("kgctl", "--help")
    assert machine.exists("/usr/share/man/man1/kg.1.gz")
    assert machine.exists("/usr/share/bash-completion/completions/kg")


def test_it_may_do_no_more_than_it_must(machine: Machine) -> None:
    shown = machine.run("systemd-analyze", "security", "--no-pager", "kg")
    found = re.search(r"Overall exposure level for kg\.service: ([0-9.]+)", shown)
    assert found, shown
    assert float(found[1]) <= MAX_EXPOSURE


def test_a_restart_loses_no_packet_and_leaves_the_userspace_device(machine: Machine) -> None:
    before = find_userspace(machine)
    pinging = ping(machine, count=1000)
    machine.run("systemctl", "restart", "kg")
    output, _ = pinging.communicate(timeout=LIMIT_SECONDS)
    assert " 0% packet loss" in output
    assert find_userspace(machine) == before


def test_an_agent_that_hangs_is_ended_and_started_again_and_no_packet_is_lost(
    machine: Machine,
) -> None:
    # The shipped time is generous; the test has less.
    drop_in = "/etc/systemd/system/kg.service.d/watchdog.conf"
    machine.write(drop_in, "[Service]\nWatchdogSec=4\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "kg")
    before = main_pid(machine)
    pinging = ping(machine, count=1500)
    machine.run("kill", "-STOP", before)
    wait_for(lambda: main_pid(machine) not in {before, "0"}, "other agent", seconds=LIMIT_SECONDS)
    output, _ = pinging.communicate(timeout=LIMIT_SECONDS)
    assert " 0% packet loss" in output
    assert "Watchdog timeout" in machine.journal("kg")
    active = ["systemctl", "is-active", "--quiet", "kg"]
    wait_for(lambda: machine.call(*active).returncode == 0, "ready agent", seconds=LIMIT_SECONDS)


def test_stopping_leaves_the_network_as_it_is(machine: Machine) -> None:
    machine.run("systemctl", "stop", "kg")
    assert answers(machine)
    machine.run("systemctl", "start", "kg")


def test_purging_it_leaves_nothing(machine: Machine) -> None:
    machine.run("dpkg", "--purge", "kilo")
    assert [path for path in WHAT_REMAINS if machine.exists(path)] == []
    assert "kilo" not in machine.run("ip", "-brief", "link")
    assert "kilo" not in machine.run("nft", "list", "ruleset")
    assert "10.5.0.1" not in machine.run("ip", "route", "show", "table", "all")
    search = ["pgrep", "-f", "wireguard-go kilo0"]
    wait_for(lambda: machine.call(*search).returncode, "end of it", seconds=LIMIT_SECONDS)
