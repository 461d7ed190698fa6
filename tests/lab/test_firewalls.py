"""The same mesh whichever firewall its hosts have: every pair, masquerading, Services, and the
rules of others.

One lab serves the tests of this module; each begins and ends without an agent.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from kilo.lab.host import Host
from kilo.lab.lab import Lab
from kilo.lab.pods import Pod
from tests.lab.conftest import write_directory
from tests.lab.meshes import LAB, MESH, wait_each, wait_ready, wait_until
from tests.lab.proxying import (
    FIREWALLD,
    PORT,
    REST6,
    SERVICE,
    TARGET_PORT,
    write_iptables,
    write_nftables,
)
from tests.lab.test_pods import CNI_PATH, TEMPLATE

AGENTS = ("a1", "a2", "b1", "home")
BACKENDS = ("a2", "b1")
"""The hosts of the pods behind the Service."""
FLAGS = f"flags: [--cni, --cni-template={TEMPLATE}, --encapsulate=never, --clean-up=false]\n"
KINDS = {"nftables": "nftables", "nft": "iptables", "legacy": "iptables"}
"""What others use -> the flag ``--firewall`` of the agents."""
OUTSIDE = "198.51.100.31"
PRINTER = "192.168.2.50"
FAMILIES = ("iptables", "ip6tables")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Its pods are there, and no agent."""
    directory = write_directory(tmp_path_factory.mktemp("firewalls") / "lab", LAB + FLAGS, MESH)
    with Lab.up(directory, name=f"test-{os.getpid()}-firewalls") as lab:
        hosts = [lab.host(name) for name in AGENTS]
        wait_each(hosts, lambda host: host.succeeds(["test", "-s", CNI_PATH]), "has the file")
        for host in hosts:
            host.add_pod("web")
        uninstall(*hosts)
        for name in BACKENDS:
            serve(find_pod(lab, name))
        for name in ("newcomer", "printer"):
            serve(lab.host(name))
        yield lab


def uninstall(*hosts: Host) -> None:
    """All at once, for each lets others find another way before it goes."""

    def end(host: Host) -> None:
        host.kill_agent(signal.SIGTERM)
        host.run(host.agent_command("uninstall"))

    with ThreadPoolExecutor() as pool:
        list(pool.map(end, hosts))


def find_pod(lab: Lab, host: str) -> Pod:
    (pod,) = lab.host(host).pods.list()
    return pod


ANSWER = """
import socket, sys
server = socket.create_server(("", int(sys.argv[2])))
print("listening", flush=True)
while True:
    connection, (source, _) = server.accept()
    connection.sendall(f"{sys.argv[1]} {source}".encode())
    connection.close()
"""
ASK = """
import socket, sys
for _ in range(int(sys.argv[3])):
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30) as connection:
        print(connection.recv(100).decode())
"""


def serve(server: Host | Pod) -> None:
    """Tell everyone who connects the server's name and whom it sees, until the lab ends."""
    name = server.name.partition("/")[0]
    process = server.popen(["/usr/bin/python3", "-c", ANSWER, name, str(TARGET_PORT)])
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "listening"


def ask(client: Host | Pod, address: str, port: int = TARGET_PORT, *, times: int = 1) -> set[str]:
    """The answers to so many connections: who served, and whom it saw."""
    words = ["/usr/bin/python3", "-c", ASK, address, str(port), str(times)]
    return set(client.run(words).splitlines())


# What others have


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """Programs with rules of their own on all the hosts that have agents."""

    kind: str
    backends: tuple[str, ...]

    def install(self, host: Host) -> None:
        if self.kind == "nftables":
            host.run(["nft", "-f", "-"], text=write_nftables(self.backends))
        else:
            for family, script in zip(
                FAMILIES, (write_iptables(self.backends), REST6), strict=True
            ):
                host.run([f"{family}-{self.kind}-restore", "--noflush"], text=script)
        host.run(
            ["ipset", "restore", "-exist"], text="create other hash:net\nadd other 10.9.0.0/24\n"
        )

    def remove(self, host: Host) -> None:
        if self.kind == "nftables":
            host.run(["nft", "flush", "ruleset"])
            return
        for family in FAMILIES:
            host.run([f"{family}-{self.kind}-restore"], text=EMPTY)


EMPTY = "*mangle\nCOMMIT\n*nat\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
SIGHTS = (
    "nft list ruleset",
    *(f"{family}-{kind}-save" for family in FAMILIES for kind in ("nft", "legacy")),
    "ipset save",
)
_COUNTS = re.compile(r"^#.*\n|packets \d+ bytes \d+|\[\d+:\d+\]", re.MULTILINE)


def look(host: Host) -> dict[str, str]:
    """All rules of a host as a person sees them, but for times of day and counts of packets."""
    return {sight: _COUNTS.sub("", host.run(sight.split())) for sight in SIGHTS}


def holds(now: str, before: str) -> bool:
    """Whether everything of before is there, in its order; what is new stands between."""
    rest = iter(now.splitlines())
    return all(line in rest for line in before.splitlines())


@contextmanager
def meeting(lab: Lab, kind: str) -> Iterator[None]:
    """Agents among others' rules, which stay as they are for as long as those work, and after."""
    hosts = [lab.host(name) for name in AGENTS]
    others = Others(
        kind=kind, backends=tuple(find_pod(lab, name).find_address(4) for name in BACKENDS)
    )
    for host in hosts:
        others.install(host)
    before = {host.name: look(host) for host in hosts}
    for host in hosts:
        host.start_agent(f"--firewall={KINDS[kind]}", "--iptables-forward-rules")
    for host in hosts:
        wait_ready(host)
    yield
    for host in hosts:
        during = look(host)
        assert during != before[host.name]
        assert all(holds(during[sight], before[host.name][sight]) for sight in SIGHTS)
    uninstall(*hosts)
    for host in hosts:
        assert look(host) == before[host.name]
        others.remove(host)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mesh_is_the_same_behind_every_firewall_and_others_rules_stay_as_they_are(
    lab: Lab, kind: str
) -> None:
    with meeting(lab, kind):
        result = lab.wait_reachable()
        kinds = {target.kind for target in result.answered["a2/web"]}
        assert kinds == {"internal", "pod", "wireguard", "peer", "device"}
        check_sources(lab)
        check_service(lab)


def check_sources(lab: Lab) -> None:
    """Who is masqueraded, and who shows itself."""
    a2, b1 = find_pod(lab, "a2"), find_pod(lab, "b1")
    for name, seen in (("a1", "198.51.100.11"), ("a2", "198.51.100.12"), ("home", "198.51.100.9")):
        assert ask(find_pod(lab, name), OUTSIDE) == {f"newcomer {seen}"}
    assert ask(a2, b1.find_address(4)) == {f"b1 {a2.find_address(4)}"}
    assert ask(lab.host("laptop"), b1.find_address(4)) == {"b1 10.5.0.1"}
    for client in (a2, lab.host("laptop"), lab.host("a2")):
        assert ask(client, PRINTER) == {"printer 192.168.2.11"}


def check_service(lab: Lab) -> None:
    """Pods of the cluster are seen as themselves, by a pod of another location as well; only one
    that meets itself, and a host, are masqueraded, as kube-proxy wants it.
    """
    a1, a2, home = (find_pod(lab, name) for name in ("a1", "a2", "home"))
    for pod in (a1, home):
        own = pod.find_address(4)
        assert ask(pod, SERVICE, PORT, times=20) == {f"a2 {own}", f"b1 {own}"}
    assert ask(a2, SERVICE, PORT, times=20) == {"a2 10.2.12.1", f"b1 {a2.find_address(4)}"}
    assert {answer.split()[0] for answer in ask(lab.host("a1"), SERVICE, PORT, times=20)} == {
        "a2",
        "b1",
    }


def test_chains_that_drop_what_is_forwarded_are_named_where_nobody_asked_for_rules(
    lab: Lab,
) -> None:
    host = lab.host("b1")
    others = Others(kind="nft", backends=("10.2.21.2",))
    others.install(host)
    host.run(["nft", "-f", "-"], text=FIREWALLD)
    host.start_agent("--firewall=iptables")
    try:
        for chain, advice in (
            ("chain FORWARD of table ip filter", "give --iptables-forward-rules"),
            ("chain FORWARD of table ip6 filter", "give --iptables-forward-rules"),
            ("chain filter_FORWARD of table inet firewalld", "accept them there"),
        ):
            wait_until(lambda: warns(host, chain, advice), f"{chain}: {advice}")  # noqa: B023 - called at once
    finally:
        uninstall(host)
        host.run(["nft", "flush", "ruleset"])


def warns(host: Host, *words: str) -> bool:
    """Whether its agent has logged a warning with all of them."""
    warnings = [str(line) for line in host.log_lines() if line.get("level") == "warn"]
    return any(all(word in warning for word in words) for warning in warnings)
