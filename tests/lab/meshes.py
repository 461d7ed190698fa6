"""The small mesh that the acceptance tests run on, and how to look at it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from kilo.lab.host import Host
from kilo.lab.lab import Lab
from kilo.lab.pods import Pod

LAB = """
networks:
  internet: {public: true, subnets: [198.51.100.0/24, "2001:db8::/64"]}
  east: {subnets: [192.168.1.0/24, "fd00:1::/64"]}
  west: {subnets: [192.168.2.0/24, "fd00:2::/64"]}
  home: {subnets: [192.168.50.0/24], nat: {behind: internet, address: 198.51.100.9}}
hosts:
  a1: {networks: {east: [192.168.1.11, "fd00:1::11"], internet: [198.51.100.11, "2001:db8::11"]}}
  a2: {networks: {east: [192.168.1.12, "fd00:1::12"], internet: [198.51.100.12, "2001:db8::12"]}}
  b1: {networks: {west: [192.168.2.11, "fd00:2::11"], internet: [198.51.100.21, "2001:db8::21"]}}
  home: {networks: {home: 192.168.50.11}}
  newcomer: {agent: false, networks: {internet: [198.51.100.31, "2001:db8::31"]}}
  printer: {agent: false, networks: {west: [192.168.2.50, "fd00:2::50"]}}
  laptop: {peer: laptop, networks: {internet: 198.51.100.50}}
"""

MESH = """
apiVersion: kilo.squat.ai/v1alpha1
kind: Settings
metadata: {name: mesh}
spec: {subnets: [10.4.0.0/16, "fd00:4::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: a1}
spec: {location: east, podSubnets: [10.2.11.0/24, "fd00:a:0:11::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: a2}
spec: {location: east, podSubnets: [10.2.12.0/24, "fd00:a:0:12::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: b1}
spec:
  location: west
  podSubnets: [10.2.21.0/24, "fd00:a:0:21::/64"]
  allowedLocationIPs: [192.168.2.50/32, "fd00:2::50/128"]
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {name: home}
spec: {internalIP: "-", persistentKeepalive: 5, podSubnets: [10.2.41.0/24, "fd00:a:0:41::/64"]}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Peer
metadata: {name: laptop}
spec:
  publicKey: GY5aT1N9dTR/nJnT1N2f4ClZWVj0jOAld0r8ysWLyjg=
  allowedIPs: [10.5.0.1/32, "fd00:5::1/128"]
  persistentKeepalive: 5
"""

SECONDS = 90.0
"""How long these slow and noisy machines may take for what takes one or two."""


def wait_until(holds: Callable[[], object], what: str, *, seconds: float = SECONDS) -> float:
    """Look until it holds, and return how many seconds that took; fails when time is up."""
    start = time.monotonic()
    while not holds():
        elapsed = time.monotonic() - start
        assert elapsed < seconds, f"not after {seconds:g} s: {what}"
        time.sleep(0.05)  # between two looks at another process; what counts is what is seen
    return time.monotonic() - start


def wait_each(hosts: Iterable[Host], holds: Callable[[Host], object], what: str) -> None:
    """Until it holds of every host."""
    for host in hosts:
        wait_until(partial(holds, host), f"{host.name} {what}")


def wait_ready(host: Host) -> None:
    """Until the host's agent has made a pass that succeeded."""
    wait_until(lambda: is_ready(host), f"{host.name} is ready")


def is_ready(host: Host) -> bool:
    """Whether the agent answers, and says that it is ready."""
    return bool(host.agents()) and ask(host, "/ready") == 200


def ask(host: Host, path: str) -> int:
    """The status of an answer; 0 if there was none."""
    try:
        return host.http(path).status
    except Exception:  # noqa: BLE001 - not listening yet, or not any more
        return 0


def count_writes(host: Host) -> float:
    """How often the host's running agent has written to the kernel."""
    return sum_metric(host.metrics(), "kilo_kernel_writes_total")


def sum_metric(metrics: Mapping[str, float], name: str) -> float:
    """Over all labels."""
    return sum(value for key, value in metrics.items() if key.partition("{")[0] == name)


def read_sessions(host: Host) -> dict[str, int]:
    """Public key -> Unix seconds of the latest handshake, of those that had one."""
    lines = host.run(["wg", "show", "kilo0", "latest-handshakes"]).splitlines()
    pairs = (line.split() for line in lines)
    return {key: int(stamp) for key, stamp in pairs if stamp != "0"}


def reaches(host: Host, *addresses: str) -> bool:
    """Whether all of them answer a ping, or a second one."""
    return host.succeeds(["fping", "--quiet", "--retry=1", *addresses])


SERVE = """
import hashlib, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.create_server((sys.argv[1], 9200), family=family)
print("listening", flush=True)
connection, _ = server.accept()
digest = hashlib.sha256()
while chunk := connection.recv(65536):
    digest.update(chunk)
print(digest.hexdigest(), flush=True)
"""
SEND = """
import hashlib, random, socket, sys
content = random.Random(7).randbytes(4_000_000)
with socket.create_connection((sys.argv[1], 9200), timeout=30) as connection:
    connection.sendall(content)
print(hashlib.sha256(content).hexdigest())
"""


def check_transfer(source: Host | Pod, target: Host | Pod, address: str) -> None:
    """Send 4 MB over TCP, and compare what arrived."""
    server = target.popen(["/usr/bin/python3", "-c", SERVE, address])
    assert server.stdout is not None
    assert server.stdout.readline().strip() == "listening"
    sent = source.run(["/usr/bin/python3", "-c", SEND, address]).strip()
    received, _ = server.communicate(timeout=60)
    assert received.strip() == sent


@contextmanager
def no_loss(lab: Lab, pairs: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Fails if a datagram is lost between two hosts or pods of a pair, of one each 10 ms.

    Those do not count that the kernel let fall because nobody fetched them: a busy machine starves
    a WireGuard in user space, and its socket's queue is full after 200 ms, whatever agents do.
    """
    unfetched = count_unfetched(lab)
    with lab.probe(pairs) as probe:
        yield
        losses = probe.stop()
    assert losses.sent > 0
    assert losses.lost <= count_unfetched(lab) - unfetched, str(losses)


def count_unfetched(lab: Lab) -> int:
    """How many datagrams found their socket's queue full, on hosts with agents, since ever."""
    return sum(_count_unfetched(host) for host in lab.agent_hosts)


def _count_unfetched(host: Host) -> int:
    shown = host.run(["cat", "/proc/net/snmp"])
    names, values = (line.split() for line in shown.splitlines() if line.startswith("Udp:"))
    return int(dict(zip(names, values, strict=True))["RcvbufErrors"])


WATCH = """
table bridge {table} {{
 counter seen {{ }}
 chain forward {{
  type filter hook forward priority filter - 1
  iifname {{ {ports} }} {match} counter name seen
 }}
}}
"""
_watches = count(1)


@contextmanager
def watching(lab: Lab, network: str, match: str) -> Iterator[Callable[[], int]]:
    """Counts the packets that match, in ``nft``'s words, and cross a network from now on."""
    table = f"watch{next(_watches)}"
    ports = ", ".join(cable.port for cable in lab.fabric.cables if cable.network == network)
    fabric = lab.fabric.box
    fabric.run(["nft", "-f", "-"], text=WATCH.format(table=table, ports=ports, match=match))

    def count() -> int:
        listed = fabric.run(["nft", "list", "counters", "table", "bridge", table])
        return int(listed.partition("packets ")[2].split()[0])

    try:
        yield count
    finally:
        fabric.run(["nft", "delete", "table", "bridge", table])


@contextmanager
def never_seen(lab: Lab, network: str, match: str) -> Iterator[None]:
    """Fails if a packet that matches, in ``nft``'s words, crosses a network in the meantime."""
    with watching(lab, network, match) as count_seen:
        yield
        assert count_seen() == 0, f"{match} on {network}"


NETWORK_COMMANDS = (
    ("ip", "-d", "link"),
    ("ip", "-br", "address"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "rule"),
    ("ip", "-6", "rule"),
    ("nft", "list", "ruleset"),
)


def read_network(host: Host) -> dict[str, str]:
    """What a person sees who looks at all of a host's network."""
    return {" ".join(command): host.run(list(command)) for command in NETWORK_COMMANDS}


def read_documents(lab: Lab) -> list[dict[str, Any]]:
    """The mesh as it is written down in the lab's own directory."""
    return list(yaml.safe_load_all((lab.mesh / "mesh.yaml").read_text()))


def write_documents(lab: Lab, documents: list[dict[str, Any]]) -> None:
    """Replace it, as an editor does."""
    path = lab.mesh / "mesh.yaml"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump_all(documents))
    temporary.replace(path)


def set_granularity(lab: Lab, agents: Iterable[str], granularity: str) -> None:
    """Change it in the mesh, and wait until every agent goes by it."""
    documents = read_documents(lab)
    documents[0]["spec"]["granularity"] = granularity
    write_documents(lab, documents)
    wait_each(
        map(lab.host, agents),
        lambda host: f"granularity: {granularity}" in read_report(lab, host.name),
        f"reports {granularity}",
    )


def read_report(lab: Lab, name: str) -> str:
    """What a host's agent has last said of it; empty before it has."""
    report = lab.mesh / "reports" / f"{name}.yaml"
    return report.read_text() if report.exists() else ""


def write_file(lab: Lab, name: str, text: str) -> Path:
    """Put another file into the mesh directory."""
    path = lab.mesh / name
    path.write_text(text)
    return path


def make_peer(name: str, key: str, *networks: str) -> str:
    """A Peer's document."""
    spec = {"publicKey": key, "allowedIPs": list(networks)}
    return yaml.safe_dump(
        {
            "apiVersion": "kilo.squat.ai/v1alpha1",
            "kind": "Peer",
            "metadata": {"name": name},
            "spec": spec,
        }
    )


def make_nodes(specs: Mapping[str, Mapping[str, object]]) -> str:
    """Nodes' documents, each with its fields."""
    return yaml.safe_dump_all(
        {
            "apiVersion": "kilo.squat.ai/v1alpha1",
            "kind": "Node",
            "metadata": {"name": name},
            "spec": dict(spec),
        }
        for name, spec in specs.items()
    )
