"""What an idle agent costs in a cluster of 1,000 nodes that check in every 30 seconds.

A real etcd and API server, Node objects of the size that kubelets make them, one real agent that
leads its location, and a load that rewrites ``last-seen`` of every other node as its agent would.
All of it runs in namespaces of its own, so nothing of the machine is touched; needs root. What is
printed is the agent's alone, not the servers' nor the load's. ``--quick``: fewer nodes, less time.
"""

# ruff: noqa: T201, S603, S607 - a benchmark prints, and starts the programs it names

from __future__ import annotations

import argparse
import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from _nodeobjects import LOCATIONS, make_node, name_node

from kilo.backends.annotations import PREFIX
from kilo.backends.kubernetes.settings import make_config_map
from kilo.errors import LabError
from kilo.lab.controlplane import ControlPlane
from kilo.lab.planefiles import ADMIN
from kilo.mesh.model import PartialSettings

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "kubernetes"
INSIDE = "KILO_BENCH_INSIDE"
"""Set in the environment of the program once it runs in namespaces of its own."""
AGENT_PORT = 1107
BEAT_SECONDS = 30.0
NODES, PHASE_SECONDS = 1000, 120.0
QUICK_NODES, QUICK_PHASE_SECONDS = 200, 30.0
READY_SECONDS = 300.0
SETTLE_SECONDS = 10.0
"""After readiness, and after a change of the settings, until it is measured."""
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    if INSIDE not in os.environ:
        enter_namespaces()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="200 nodes, 30 s")
    quick = parser.parse_args().quick
    make_network()
    with tempfile.TemporaryDirectory() as directory:
        try:
            plane = ControlPlane(Path(directory) / "plane")
        except LabError as error:  # no API server on this machine
            print(f"not measured: {error}")
            return
        with plane:
            if quick:
                measure(plane, QUICK_NODES, QUICK_PHASE_SECONDS)
            else:
                measure(plane, NODES, PHASE_SECONDS)


def enter_namespaces() -> None:
    """Start over in namespaces that end, with every process in them, when this one does."""
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command = [*unshare, sys.executable, *sys.argv]
    os.execvpe("unshare", command, os.environ | {INSIDE: "1"})  # noqa: S606 - as above


def make_network() -> None:
    """A host with one link and a default route; state and sockets of its own."""
    lines = (
        "mount -t tmpfs none /run",
        "mount -t tmpfs none /var/lib",
        "ip link set lo up",
        "ip link add eth0 type veth peer name far",
        "ip link set far up",
        "ip link set eth0 up",
        "ip address add 192.168.0.1/16 dev eth0",
        "ip route add default via 192.168.255.254",
    )
    for line in lines:
        subprocess.run(line.split(), check=True)


def measure(plane: ControlPlane, nodes: int, seconds: float) -> None:
    """The whole benchmark on a running control plane."""
    prepare(plane, nodes)
    size = len(json.dumps(plane.call("GET", "/api/v1/nodes/node-0001"), separators=(",", ":")))
    print(f"{nodes} nodes in {LOCATIONS} locations, a Node object is {size / 1024:.1f} KiB")
    with check_in(plane, nodes), run_agent(plane) as agent:
        converged = wait_until_ready()
        print(
            f"start to first applied pass: {converged:.1f} s, {read_cpu(agent):.1f} s of CPU,"
            f" {read_route_count()} routes"
        )
        time.sleep(SETTLE_SECONDS)
        print_phase("as started", agent, plane, seconds)
        put_settings(plane, PartialSettings(resync_period_seconds=3600.0))
        time.sleep(SETTLE_SECONDS)
        print_phase("without resyncs (Settings: resyncPeriod 1h)", agent, plane, seconds)


# What is measured.


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """An agent's counters at one moment."""

    at: float
    cpu_seconds: float
    passes: float
    calls: Counter[str]

    @classmethod
    def take(cls, agent: int, plane: ControlPlane) -> Reading:
        """Of the process ``agent``."""
        return cls(
            at=time.monotonic(),
            cpu_seconds=read_cpu(agent),
            passes=read_metrics()["kilo_reconciles_total"],
            calls=count_calls(plane),
        )


def print_phase(title: str, agent: int, plane: ControlPlane, seconds: float) -> None:
    """Watch the agent for so long, and say what it cost."""
    before = Reading.take(agent, plane)
    memory = watch_memory(agent, seconds)
    after = Reading.take(agent, plane)
    elapsed = after.at - before.at
    cpu = after.cpu_seconds - before.cpu_seconds
    calls = after.calls - before.calls
    print(f"{title}, {elapsed:.0f} s:")
    print(f"  CPU {100 * cpu / elapsed:.2f} % of a core")
    print(f"  memory {memory['Rss'] / 1024:.0f} MiB resident, {memory['Pss'] / 1024:.0f} MiB of it")
    print(f"  passes {after.passes - before.passes:.0f}")
    print(f"  calls {', '.join(f'{n} x {call}' for call, n in sorted(calls.items())) or 'none'}")


def read_cpu(process: int) -> float:
    """Seconds of CPU that a process has used."""
    # After the name, which may hold anything and ends with a parenthesis: proc(5), from field 3.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def watch_memory(process: int, seconds: float) -> dict[str, int]:
    """The most memory that a process had over that time, KiB: ``Rss`` and its share, ``Pss``."""
    ends_at = time.monotonic() + seconds
    highest = {"Rss": 0, "Pss": 0}
    while time.monotonic() < ends_at:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        for name, old in highest.items():
            highest[name] = max(old, int(text.partition(f"\n{name}:")[2].split()[0]))
        time.sleep(1.0)
    return highest


def read_metrics() -> dict[str, float]:
    """The agent's, ``name{labels}`` -> value."""
    with urlopen(f"http://127.0.0.1:{AGENT_PORT}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def count_calls(plane: ControlPlane) -> Counter[str]:
    """What the agent has asked of the API server, by verb and resource, watches when they end."""
    calls: Counter[str] = Counter()
    for entry in plane.read_audit():
        if entry["user"]["username"] == "system:serviceaccount:kube-system:kilo":
            resource = entry.get("objectRef", {}).get("resource", entry["requestURI"])
            stage = "" if entry["verb"] != "watch" else f" ({entry['stage']})"
            calls[f"{entry['verb']} {resource}{stage}"] += 1
    return calls


def read_route_count() -> int:
    """Routes that lead through the agent's device or bear its mark, as ``ip`` lists them."""
    command = ["ip", "-o", "route", "show", "dev", "kilo0"]
    return len(subprocess.run(command, capture_output=True, check=True).stdout.splitlines())


# The agent.


@contextmanager
def run_agent(plane: ControlPlane) -> Iterator[int]:
    """An agent by the roles that are shipped; yields its process."""
    token = plane.make_service_account_token("kube-system", "kilo", seconds=7200)
    kubeconfig = plane.make_kubeconfig("agent", token=token)
    command = [
        *(sys.executable, "-m", "kilo.kg", f"--hostname={name_node(0)}"),
        *("--backend=kubernetes", f"--kubeconfig={kubeconfig}"),
        *("--cni=false", "--encapsulate=never", f"--listen=127.0.0.1:{AGENT_PORT}"),
    ]
    log = plane.files.directory / "agent.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)
    try:
        yield process.pid
    except TimeoutError:
        print(*log.read_text().splitlines()[-5:], sep="\n", file=sys.stderr)
        raise
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready() -> float:
    """Seconds until ``/ready`` answers 200."""
    start = time.monotonic()
    while time.monotonic() < start + READY_SECONDS:
        try:
            with urlopen(f"http://127.0.0.1:{AGENT_PORT}/ready", timeout=5):
                return time.monotonic() - start
        except OSError:  # not listening, or 503
            time.sleep(0.05)
    raise TimeoutError(f"the agent is not ready after {READY_SECONDS:.0f} s")


def put_settings(plane: ControlPlane, settings: PartialSettings) -> None:
    """Write the mesh's settings into the cluster."""
    document = make_config_map(settings, namespace="kube-system")
    plane.call("POST", "/api/v1/namespaces/kube-system/configmaps", document)


# The cluster.


def prepare(plane: ControlPlane, nodes: int) -> None:
    """Roles, the definition of Peers, and the nodes."""
    plane.call("GET", "/api/v1/namespaces/kube-system")
    for name in ("crd.yaml", "rbac.yaml"):
        plane.apply((EXAMPLES / name).read_text())

    def create(number: int) -> None:
        caller(plane, "POST", "/api/v1/nodes", make_node(number))

    caller = Connections()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create, range(nodes)))


@contextmanager
def check_in(plane: ControlPlane, nodes: int) -> Iterator[None]:
    """Rewrite ``last-seen`` of all nodes but the agent's own, one after the other, evenly."""
    stop = threading.Event()
    names = [name_node(number) for number in range(1, nodes)]
    thread = threading.Thread(target=beat, args=(plane, names, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def beat(plane: ControlPlane, names: Sequence[str], stop: threading.Event) -> None:
    """Every name once in ``BEAT_SECONDS``, until told to stop."""
    caller, pause = Connections(), BEAT_SECONDS / len(names)
    start, count = time.monotonic(), 0
    while not stop.wait(max(0.0, start + count * pause - time.monotonic())):
        stamp = {PREFIX + "last-seen": str(int(time.time()))}
        path = f"/api/v1/nodes/{names[count % len(names)]}"
        caller(plane, "PATCH", path, {"metadata": {"annotations": stamp}})
        count += 1


class Connections:
    """Calls as the administrator over one connection a thread, as a client under load keeps it."""

    def __init__(self) -> None:
        self._local = threading.local()

    def __call__(self, plane: ControlPlane, method: str, path: str, document: object) -> None:
        if not hasattr(self._local, "connection"):
            self._local.connection = connect(plane)
        kind = "merge-patch+json" if method == "PATCH" else "json"
        headers = {"Content-Type": f"application/{kind}", "User-Agent": "kg/bench"}
        self._local.connection.request(method, path, json.dumps(document), headers)
        answer = self._local.connection.getresponse()
        body = answer.read()
        if answer.status >= 400:
            raise LabError(f"{method} {path}: {answer.status} {body[:300]!r}")


def connect(plane: ControlPlane) -> http.client.HTTPSConnection:
    """A connection to the API server as its administrator."""
    directory = plane.files.directory
    tls = ssl.create_default_context(cafile=directory / "ca.crt")
    tls.load_cert_chain(directory / f"{ADMIN}.crt", directory / f"{ADMIN}.key")
    address = urlsplit(plane.server)
    return http.client.HTTPSConnection(str(address.hostname), address.port, context=tls, timeout=30)


if __name__ == "__main__":
    main()
