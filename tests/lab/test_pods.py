"""Pods, joined to their hosts by the real CNI plugins and the file that the host's agent keeps.

One lab serves the tests of this module; each leaves it as whole as it found it.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from kilo.errors import LabError
from kilo.lab.host import Host
from kilo.lab.lab import Lab
from kilo.lab.pods import Pod
from tests.lab.conftest import write_directory
from tests.lab.meshes import (
    LAB,
    MESH,
    SEND,
    SERVE,
    check_transfer,
    never_seen,
    no_loss,
    set_granularity,
    wait_each,
    wait_ready,
    wait_until,
)

AGENTS = ("a1", "a2", "b1", "home")
CNI_PATH = "/etc/cni/net.d/10-kilo.conflist"
TEMPLATE = Path(__file__).parents[2] / "examples/cni/10-kilo.conflist"
# This machine's kernel may have no IPIP.
FLAGS = f"flags: [--cni, --cni-template={TEMPLATE}, --encapsulate=never, --clean-up=false]\n"
OUTSIDE = ("198.51.100.31", "2001:db8::31")
"""The addresses of a host that is no member."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = write_directory(tmp_path_factory.mktemp("pods") / "lab", LAB + FLAGS, MESH)
    with Lab.up(directory, name=f"test-{os.getpid()}-pods", agents=False) as lab:
        for name in AGENTS:
            host = lab.host(name)
            with pytest.raises(LabError, match="has no CNI configuration"):
                host.add_pod("web")
            host.start_agent()
        wait_each(map(lab.host, AGENTS), has_configuration, "has made the file")
        for name in AGENTS:
            lab.host(name).add_pod("web")
        yield lab


def has_configuration(host: Host) -> bool:
    return host.succeeds(["test", "-s", CNI_PATH])


@pytest.fixture
def mesh(lab: Lab) -> Lab:
    """The lab, everything reachable and every agent ready."""
    for name in AGENTS:
        wait_ready(lab.host(name))
    lab.wait_reachable()
    return lab


def find_pod(mesh: Lab, host: str, name: str = "web") -> Pod:
    return next(pod for pod in mesh.host(host).pods.list() if pod.name == f"{host}/{name}")


def read_mtu(host: Host) -> int:
    """What the host's next pod gets."""
    config: dict[str, Any] = json.loads(host.run(["cat", CNI_PATH]))
    return int(config["plugins"][0]["mtu"])


@pytest.mark.parametrize("granularity", ["full", "location"])
def test_pods_reach_everything_and_everything_reaches_pods(mesh: Lab, granularity: str) -> None:
    set_granularity(mesh, AGENTS, granularity)
    result = mesh.wait_reachable()
    pods = {f"{name}/web" for name in AGENTS}
    assert pods <= set(result.sources)
    for source in result.sources:
        versions = {t.address.version for t in result.answered[source] if t.host in pods}
        assert versions == {4, 6}, f"{source} asked pods"
    kinds = {target.kind for target in result.answered["a2/web"]}
    assert kinds == {"internal", "pod", "wireguard", "peer", "device"}


@pytest.mark.parametrize(
    ("host", "address"),
    [
        *((host, address) for host in ("a1", "a2", "b1") for address in OUTSIDE),
        ("home", OUTSIDE[0]),  # its network has IPv4 only
    ],
)
def test_outside_the_mesh_a_pod_is_seen_as_its_host(mesh: Lab, host: str, address: str) -> None:
    """The one outside knows no pod: an answer shows that the packet was masqueraded."""
    assert find_pod(mesh, host).succeeds(["ping", "-c1", "-W5", address])
    assert not mesh.host("newcomer").succeeds(["ping", "-c1", "-W1", "10.2.11.2"])


def test_within_the_mesh_a_pod_is_seen_as_itself(mesh: Lab) -> None:
    source, target = find_pod(mesh, "a2"), find_pod(mesh, "b1")
    server = target.popen(["/usr/bin/python3", "-c", WHO, target.find_address(4)])
    assert server.stdout is not None
    assert server.stdout.readline().strip() == "listening"
    source.run(["/usr/bin/python3", "-c", CALL, target.find_address(4)])
    assert server.communicate(timeout=60)[0].strip() == source.find_address(4)


WHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 9201))
print("listening", flush=True)
print(server.accept()[1][0], flush=True)
"""
CALL = "import socket, sys; socket.create_connection((sys.argv[1], 9201), timeout=30).close()"


@pytest.mark.parametrize("name", ["a1", "a2", "b1"])
def test_an_agent_that_restarts_loses_and_shows_no_packet_between_pods(
    mesh: Lab, name: str
) -> None:
    host = mesh.host(name)
    before = host.run(["cat", CNI_PATH])
    pairs = permutations(("a1/web", "a2/web", "b1/web"), 2)
    with no_loss(mesh, pairs), never_seen(mesh, "internet", "ip saddr 10.2.0.0/16"):
        for number in (signal.SIGTERM, signal.SIGKILL):
            host.kill_agent(number)
            host.start_agent()
            wait_ready(host)
    assert host.run(["cat", CNI_PATH]) == before


def test_a_host_that_lost_its_power_connects_new_pods(mesh: Lab) -> None:
    """Its disk has the key, but neither the file nor a pod any more."""
    mesh.kill("b1")
    mesh.start("b1")
    host = mesh.host("b1")
    assert host.pods.list() == []
    wait_until(lambda: has_configuration(host), "the file is made again")
    host.add_pod("web")
    mesh.wait_reachable()


def test_a_pod_that_goes_leaves_nothing_and_its_name_and_address_are_free(mesh: Lab) -> None:
    host = mesh.host("a2")
    before = host.run(["ip", "-br", "link"])
    pod = host.add_pod("brief")
    with pytest.raises(LabError, match="pod a2/brief: is there already"):
        host.add_pod("brief")
    assert pod.succeeds(["ping", "-c1", "-W5", find_pod(mesh, "a2").find_address(4)])
    host.pods.delete("brief")
    host.pods.delete("brief")
    assert host.run(["ip", "-br", "link"]) == before
    assert [one.name for one in host.pods.list()] == ["a2/web"]


# Packets that fit.


@contextmanager
def underlay(mesh: Lab, **mtus: int) -> Iterator[None]:
    """Give the networks of some hosts another MTU (bytes) for a while, their agents following."""
    try:
        set_mtus(mesh, mtus)
        yield
    finally:
        # Whoever came next would find hosts that still make packets smaller.
        set_mtus(mesh, dict.fromkeys(mtus, 1500))


def set_mtus(mesh: Lab, mtus: Mapping[str, int]) -> None:
    """Set them, and wait until the agents have changed their tunnels and told the plugins."""
    for name, mtu in mtus.items():
        set_mtu(mesh, name, mtu)
    for name, mtu in mtus.items():
        wait_fit(mesh.host(name), mtu - 80)


def wait_fit(host: Host, mtu: int) -> None:
    """Until the tunnel and the host's next pod take packets of that size."""
    wait_until(
        lambda: read_link_mtu(host, "kilo0") == read_mtu(host) == mtu,
        f"{host.name}'s tunnel and pods have an MTU of {mtu}",
    )


def set_mtu(mesh: Lab, name: str, mtu: int) -> None:
    """Of a host's links, and of the ports they are plugged into, which drop what is larger."""
    for cable in mesh.fabric.cables:
        if cable.box == name:
            mesh.fabric.box.run(["ip", "link", "set", cable.port, "mtu", str(mtu)])
            mesh.host(name).run(["ip", "link", "set", cable.link, "mtu", str(mtu)])


@pytest.mark.parametrize(
    "mtus",
    [
        pytest.param({}, id="1500"),
        pytest.param({"a1": 1400, "a2": 1400, "b1": 1400}, id="1400"),
        pytest.param({"a1": 9000, "a2": 9000, "b1": 9000}, id="9000"),
        pytest.param({"a1": 9000, "a2": 9000, "b1": 1400}, id="9000 and 1400"),
    ],
)
def test_tcp_between_pods_of_two_locations_does_not_stall(mesh: Lab, mtus: dict[str, int]) -> None:
    with underlay(mesh, **mtus), new_pods(mesh, "a2", "b1") as pods:
        for name, pod in pods.items():
            check_fit(mesh.host(name), pod, mtus.get(name, 1500) - 80)
        for source, target in (("a2", "b1"), ("b1", "a2")):
            for version in (4, 6):
                address = pods[target].find_address(version)
                check_transfer(pods[source], pods[target], address)


def check_fit(host: Host, pod: Pod, mtu: int) -> None:
    """The tunnel and a new pod take packets of one size, and the bridge none that is larger."""
    assert read_link_mtu(host, "kilo0") == read_link_mtu(pod, "eth0") == read_mtu(host) == mtu
    assert read_link_mtu(host, "kube-bridge") <= mtu


def read_link_mtu(place: Host | Pod, link: str) -> int:
    (entry,) = json.loads(place.run(["ip", "-json", "link", "show", "dev", link]))
    return int(entry["mtu"])


@contextmanager
def new_pods(mesh: Lab, *names: str) -> Iterator[dict[str, Pod]]:
    """A pod on each of the hosts, made now."""
    try:
        yield {name: mesh.host(name).add_pod("tcp") for name in names}
    finally:
        for name in names:
            mesh.host(name).pods.delete("tcp")


STALL_SECONDS = 5.0
"""A hundred times what a transfer takes; retransmitting would go on for a quarter of an hour."""


def test_tcp_stalls_where_less_gets_through_than_the_hosts_know_until_they_are_told(
    mesh: Lab,
) -> None:
    """Somewhere between them, where nobody answers that a packet is too big; so the tests above
    would see an MTU that is wrong.
    """
    hosts = [mesh.host("a1"), mesh.host("b1")]
    set_ports(mesh, 1400)
    try:
        with new_pods(mesh, "a1", "b1") as pods:
            for host in hosts:
                check_fit(host, pods[host.name], 1420)
            assert not transfers(pods["a1"], pods["b1"], hosts[1], seconds=STALL_SECONDS)
        for host in hosts:
            host.restart_agent("--mtu=1320")
            wait_ready(host)
            wait_fit(host, 1320)
        with new_pods(mesh, "a1", "b1") as pods:
            check_transfer(pods["a1"], pods["b1"], pods["b1"].find_address(4))
    finally:
        set_ports(mesh, 1500)
        for host in hosts:
            host.restart_agent()
            wait_ready(host)
            wait_fit(host, 1420)


def set_ports(mesh: Lab, mtu: int) -> None:
    """What the internet takes, without a word to the hosts."""
    for cable in mesh.fabric.cables:
        if cable.network == "internet":
            mesh.fabric.box.run(["ip", "link", "set", cable.port, "mtu", str(mtu)])


def transfers(source: Pod, target: Pod, listener: Host, *, seconds: float) -> bool:
    """Whether a transfer ends in time; if not, both sides of it are ended."""
    address = target.find_address(4)
    server = target.popen(["/usr/bin/python3", "-c", SERVE, address])
    assert server.stdout is not None
    assert server.stdout.readline().strip() == "listening"
    words = ["timeout", str(seconds), "/usr/bin/python3", "-c", SEND, address]
    done = source.call(words).returncode == 0
    if not done:
        for process in listener.box.find_processes([SERVE, address]):
            os.kill(process, signal.SIGKILL)
    server.communicate(timeout=60)
    return done
