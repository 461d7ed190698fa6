"""``kgctl connect`` on a host that is no member: real tunnels, a leader that dies, and nothing of
it left afterwards.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from kilo.keyfile import generate_private_key, public_key
from kilo.lab.host import Host
from kilo.lab.lab import Lab
from kilo.mesh.model import Snapshot
from tests.lab.conftest import write_directory
from tests.lab.meshes import reaches, read_network, wait_each, wait_ready, wait_until

LAB = """
networks:
  internet: {public: true, subnets: [198.51.100.0/24]}
  east: {subnets: [192.168.1.0/24]}
  home: {subnets: [192.168.50.0/24], nat: {behind: internet, address: 198.51.100.9}}
hosts:
  a1: {networks: {east: 192.168.1.11, internet: 198.51.100.11}}
  a2: {networks: {east: 192.168.1.12, internet: 198.51.100.12}}
  b1: {networks: {internet: 198.51.100.21}}
  laptop: {agent: false, networks: {home: 192.168.50.11}}
"""
MESH = """
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: a1}
spec: {location: east, podSubnets: [10.2.11.0/24, "fd00:a:0:11::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: a2}
spec: {location: east, podSubnets: [10.2.12.0/24]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: b1}
spec: {location: west, podSubnets: [10.2.21.0/24]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: broken}
spec:
  location: nowhere
  publicKey: GY5aT1N9dTR/nJnT1N2f4ClZWVj0jOAld0r8ysWLyjg=
  endpoint: no-such-name.example:51820
  podSubnets: [10.2.99.0/24]
"""
SERVICE = "10.43.0.10"
PODS = ("10.2.11.1", "10.2.12.1", "10.2.21.1", "fd00:a:0:11::1")
MARK = "kilo.kgctl"
DEATH_SECONDS = 240.0
"""60 s until a silent node counts as dead, on a machine that is slow."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = write_directory(tmp_path_factory.mktemp("connect") / "lab", LAB, MESH)
    with Lab.up(directory, name=f"test-{os.getpid()}-connect") as lab:
        for host in lab.agent_hosts:
            wait_ready(host)
            host.run(["ip", "address", "add", f"{SERVICE}/32", "dev", "lo"])
        yield lab


@pytest.fixture
def laptop(lab: Lab) -> Host:
    return lab.host("laptop")


def connect(lab: Lab, host: Host, *words: str) -> list[str]:
    return [sys.executable, "-m", MARK, "connect", *lab.store.flags(host.name), *words]


class Guest:
    """A running ``kgctl connect``."""

    def __init__(self, lab: Lab, host: Host, log: Path, *words: str) -> None:
        self.log = log
        self._host = host
        with log.open("w") as stderr:
            self._process: Popen[str] = host.box.popen(connect(lab, host, *words), stderr=stderr)

    def has_said(self, words: str) -> bool:
        """Whether it has; fails if it has ended."""
        said = self.log.read_text()
        assert self._process.poll() is None, said
        return words in said

    def wait_for(self, words: str) -> None:
        wait_until(lambda: self.has_said(words), f"it says {words!r}")

    def signal(self, *numbers: signal.Signals) -> int:
        """Its exit status after these."""
        for process in self._host.box.find_processes(["-m", MARK]):
            for number in numbers:
                os.kill(process, number)
        return self._process.wait(timeout=90)


@contextmanager
def connected(lab: Lab, host: Host, log: Path, *words: str) -> Iterator[Guest]:
    guest = Guest(lab, host, log, *words)
    try:
        guest.wait_for("connected as")
        yield guest
    finally:
        guest.signal(signal.SIGKILL)


def wait_reached(host: Host, *addresses: str, seconds: float = 90.0) -> None:
    for address in addresses:
        wait_until(lambda: reaches(host, address), f"{address} answers", seconds=seconds)  # noqa: B023 - called before the next one


def find_carrier(host: Host) -> str:
    """The public key of the peer that has the service CIDR."""
    lines = host.run(["wg", "show", "kilo0", "allowed-ips"]).splitlines()
    return next((line.split()[0] for line in lines if "10.43.0.0/16" in line), "")


def read_store(lab: Lab) -> Snapshot:
    return lab.store.read_snapshot()


WORDS = ("laptop", "-a", "10.5.0.9/32", "-a", "fd00:5::9/128", "--allowed-ips", "10.43.0.0/16")


def test_a_guest_reaches_pods_and_services_also_when_a_leader_dies_and_leaves_nothing(
    lab: Lab, laptop: Host, tmp_path: Path
) -> None:
    before, peers = read_network(laptop), read_store(lab).peers
    with connected(lab, laptop, tmp_path / "log", *WORDS) as guest:
        wait_reached(laptop, *PODS, SERVICE)
        assert [peer.name for peer in read_store(lab).peers] == ["laptop"]
        carrier = find_carrier(laptop)
        dead = next(node for node in read_store(lab).nodes if str(node.public_key) == carrier)
        assert dead.name in {"a1", "b1"}
        others = [f"10.2.{n}.1" for name, n in (("a2", 12), ("b1", 21)) if name != dead.name]
        lab.kill(dead.name)
        wait_until(lambda: find_carrier(laptop) != carrier, "moved", seconds=DEATH_SECONDS)
        wait_reached(laptop, SERVICE, *others)
        assert guest.signal(signal.SIGINT) == 0
    assert "peer laptop removed" in guest.log.read_text()
    lab.start(dead.name)
    lab.host(dead.name).run(["ip", "address", "add", f"{SERVICE}/32", "dev", "lo"])
    assert read_network(laptop) == before
    assert read_store(lab).peers == peers


def test_signals_that_come_while_it_is_undone_leave_nothing_half_undone(
    lab: Lab, laptop: Host, tmp_path: Path
) -> None:
    before = read_network(laptop)
    with connected(lab, laptop, tmp_path / "log", *WORDS) as guest:
        assert guest.signal(signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP) == 0
    assert "is being undone already" in guest.log.read_text()
    assert read_network(laptop) == before
    assert read_store(lab).peers == ()


def test_what_a_killed_one_leaves_is_taken_over_by_the_next_and_undone(
    lab: Lab, laptop: Host, tmp_path: Path
) -> None:
    before = read_network(laptop)
    with connected(lab, laptop, tmp_path / "log", *WORDS):
        wait_reached(laptop, "10.2.21.1")
    key = laptop.run(["wg", "show", "kilo0", "public-key"])
    with connected(lab, laptop, tmp_path / "log", *WORDS) as guest:
        assert laptop.run(["wg", "show", "kilo0", "public-key"]) == key
        wait_reached(laptop, "10.2.21.1")
        assert guest.signal(signal.SIGTERM) == 0
    assert read_network(laptop) == before
    assert read_store(lab).peers == ()


def test_it_does_not_run_beside_an_agent(lab: Lab) -> None:
    wait_each(lab.agent_hosts, lambda host: host.agents(), "has an agent")
    host = lab.host("a2")
    done = host.call(connect(lab, host, *WORDS))
    assert done.returncode == 1
    assert "an agent is running on this host already" in done.stderr
    assert read_store(lab).peers == ()


HOLD = """
import socket
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
held.bind(("0.0.0.0", 51999))
print("held", flush=True)
input()
"""


def test_a_port_in_use_is_named_with_its_owner(lab: Lab, laptop: Host, tmp_path: Path) -> None:
    private = generate_private_key()
    (laptop.disk / "own").write_text(private.reveal() + "\n")
    document = lab.mesh / "fixed.yaml"
    document.write_text(
        "apiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {name: fixed}\n"
        f"spec: {{publicKey: {public_key(private)}, allowedIPs: [10.5.0.8/32],"
        " endpoint: {dnsOrIP: {ip: 198.51.100.9}, port: 51999}}\n"
    )
    holder = laptop.popen(["/usr/bin/python3", "-c", HOLD])
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    before = read_network(laptop)
    words = ("fixed", "--private-key=/var/lib/kilo/own")
    guest = Guest(lab, laptop, tmp_path / "log", *words)
    try:
        guest.wait_for("UDP port 51999 is held by python3 (pid")
        holder.communicate("\n", timeout=60)
        guest.wait_for("connected as peer fixed")
        assert laptop.run(["wg", "show", "kilo0", "listen-port"]).strip() == "51999"
        assert guest.signal(signal.SIGTERM) == 0
    finally:
        guest.signal(signal.SIGKILL)
        holder.kill()
    assert read_network(laptop) == before
    assert [peer.name for peer in read_store(lab).peers] == ["fixed"]
    document.unlink()
