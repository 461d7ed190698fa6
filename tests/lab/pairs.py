"""Two clusters side by side in one lab, each with an API server and hosts of its own.

The first is the lab's store; the second's API server stands on a host that has no agent. Their
hosts have the public network in common and nothing else. What kube-proxy would do for a Service is
done here, from what the API servers say.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import kilo
from kilo.backends.kubernetes.crd import make_peer_crd
from kilo.lab.apicalls import RefusedError
from kilo.lab.box import Popen
from kilo.lab.boxedplane import BoxedPlane
from kilo.lab.cluster import ACCOUNT, MANIFEST, NODES, PEERS, TOKEN_SECONDS
from kilo.lab.clusterobjects import NAMESPACE, make_node
from kilo.lab.host import Host
from kilo.lab.lab import Lab
from kilo.lab.planefiles import PlaneFiles
from kilo.mesh.model import Node
from tests.builders import interfaces, make_spec, networks
from tests.lab.conftest import write_directory
from tests.lab.meshes import make_nodes, wait_ready, wait_until

LAB = """
networks:
  internet: {public: true, subnets: [198.51.100.0/24]}
  east: {subnets: [192.168.1.0/24]}
  north: {subnets: [192.168.3.0/24]}
hosts:
  a1: {networks: {east: 192.168.1.11, internet: 198.51.100.11}}
  a2: {networks: {east: 192.168.1.12, internet: 198.51.100.12}}
  c1: {networks: {north: 192.168.3.11, internet: 198.51.100.21}}
  c2: {networks: {north: 192.168.3.12, internet: 198.51.100.22}}
  store2: {agent: false, networks: {internet: 198.51.100.201}}
  laptop: {agent: false, networks: {internet: 198.51.100.50}}
"""
MESH = make_nodes(
    {
        "a1": {"location": "east", "podSubnets": ["10.2.11.0/24"]},
        "a2": {"location": "east", "podSubnets": ["10.2.12.0/24"]},
    }
)
PODS = {"a1": "10.2.11", "a2": "10.2.12", "c1": "10.7.11", "c2": "10.7.12"}
"""The first three bytes of each node's pod subnet."""
POD_CIDRS = ("10.2.0.0/16", "10.7.0.0/16")
SERVICE_CIDRS = ("10.43.0.0/16", "10.53.0.0/16")
SUBNETS = ("10.4.0.0/16", "10.6.0.0/16")
SERVICES = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1beta1/namespaces/default/endpointslices"
ENDPOINTS = "/api/v1/namespaces/default/endpoints"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two clusters."""

    plane: BoxedPlane
    hosts: tuple[Host, Host]
    """Nodes of one location; the first leads unless somebody is asked to."""
    number: int
    """0 or 1: its place in the tables above."""

    @property
    def peers(self) -> dict[str, dict[str, Any]]:
        """Name -> ``spec``, of the Peers there."""
        items = self.plane.call("GET", PEERS)["items"]
        return {item["metadata"]["name"]: item["spec"] for item in items}

    def put_service(self, name: str, *, port: int, backend: str, target_port: int) -> str:
        """A Service with one pod, which answers at that address; its cluster IP."""
        document = {"metadata": {"name": name}, "spec": {"ports": [{"port": port}]}}
        made = self.plane.call("POST", SERVICES, document)
        subset = {"addresses": [{"ip": backend}], "ports": [{"port": target_port}]}
        self.plane.call("POST", ENDPOINTS, {"metadata": {"name": name}, "subsets": [subset]})
        return str(made["spec"]["clusterIP"])

    def proxy(self) -> None:
        """Do on both hosts what kube-proxy does, for the Services as they are now."""
        for host in self.hosts:
            host.run(["nft", "-f", "-"], text=self._write_rules())

    def _write_rules(self) -> str:
        lines = []
        for service in self.plane.call("GET", SERVICES)["items"]:
            address = service["spec"]["clusterIP"]
            for port in service["spec"]["ports"]:
                target = self._find_target(service["metadata"]["name"], port.get("name", ""))
                match = f"ip daddr {address} tcp dport {port['port']}"
                lines.append(f"  {match} ip saddr != {POD_CIDRS[self.number]} meta mark set 0x4000")
                lines.append(f"  {match} {f'dnat to {target}' if target else 'drop'}")
        return RULES.format(rules="\n".join(lines))

    def _find_target(self, name: str, port: str) -> str:
        """Of EndpointSlices, as kube-proxies go by today; else of Endpoints."""
        label = {"kubernetes.io/service-name": name}
        for one in self.plane.call("GET", SLICES)["items"]:
            if label.items() <= one["metadata"].get("labels", {}).items():
                number = next(p["port"] for p in one["ports"] if (p.get("name") or "") == port)
                return f"{one['endpoints'][0]['addresses'][0]}:{number}"
        try:
            (subset,) = self.plane.call("GET", f"{ENDPOINTS}/{name}")["subsets"]
        except RefusedError:
            return ""
        return f"{subset['addresses'][0]['ip']}:{subset['ports'][0]['port']}"


RULES = """
table ip kube-proxy {{ }}
delete table ip kube-proxy
table ip kube-proxy {{
 chain services {{
{rules}
 }}
 chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
 chain output {{ type nat hook output priority -100; jump services; }}
 chain postrouting {{
  type nat hook postrouting priority srcnat
  meta mark & 0x4000 != 0 masquerade
 }}
}}
"""
"""Marked is what comes from no pod of the cluster: kube-proxy masquerades it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both clusters, and a person with ways into them."""

    lab: Lab
    sides: tuple[Side, Side]
    home: Path
    """Of the person, whose files stand on the machine itself."""

    @property
    def environment(self) -> dict[str, str]:
        """What that person has set, under the names that docs/recipes.md has."""
        first, second = (side.plane.files.kubeconfig for side in self.sides)
        return {
            "HOME": str(self.home),
            "KUBECONFIG": str(first),
            "KUBECONFIG1": str(first),
            "KUBECONFIG2": str(second),
            "SERVICECIDR1": SERVICE_CIDRS[0],
            "SERVICECIDR2": SERVICE_CIDRS[1],
            "PYTHONPATH": str(Path(kilo.__file__).parents[1]),
            "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}",
        }

    def shell(self, script: str) -> CompletedProcess[str]:
        """Run it as that person, on the laptop."""
        return self.lab.host("laptop").box.call(self._wrap(script), timeout=300)

    def start(self, command: str, log: Path) -> Popen:
        """Start it as that person; its output is written there, and read by nobody."""
        with log.open("w") as output:
            return self.lab.host("laptop").box.popen(
                self._wrap(f"exec {command} >&2"), stderr=output
            )

    def _wrap(self, script: str) -> list[str]:
        exports = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in self.environment.items())
        return ["bash", "-c", f"{exports}cd {shlex.quote(str(self.home))}\n{script}"]


@contextmanager
def open_pair(directory: Path) -> Iterator[Pair]:
    """Both, all agents ready."""
    lab_directory = write_directory(directory / "lab", LAB, MESH)
    name = f"test-{os.getpid()}-pair"
    with Lab.up(lab_directory, name=name, backend="kubernetes", agents=False) as lab:
        second = start_second(lab)
        hosts = {name: lab.host(name) for name in PODS}
        sides = (
            Side(plane=lab.plane, hosts=(hosts["a1"], hosts["a2"]), number=0),
            Side(plane=second, hosts=(hosts["c1"], hosts["c2"]), number=1),
        )
        for side in sides:
            for host in side.hosts:
                host.start_agent(
                    f"--subnet={SUBNETS[side.number]}",
                    f"--service-cidr={SERVICE_CIDRS[side.number]}",
                )
        for host in hosts.values():
            wait_ready(host)
        yield Pair(lab=lab, sides=sides, home=make_home(lab.path / "home"))


def make_home(home: Path) -> Path:
    """With the programs that an operator has."""
    programs = {
        "kgctl": f'exec {shlex.quote(sys.executable)} -m kilo.kgctl "$@"',
        "sudo": 'exec "$@"',
    }
    (home / "bin").mkdir(parents=True)
    for name, line in programs.items():
        path = home / "bin" / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    return home


def start_second(lab: Lab) -> BoxedPlane:
    """An API server with the nodes ``c1`` and ``c2``, and a way in on the disk of each."""
    host = lab.host("store2")
    files = PlaneFiles(
        directory=lab.path / "store2", address="198.51.100.201", service_cidr=SERVICE_CIDRS[1]
    )
    plane = BoxedPlane(host.box, files)
    plane.start()
    crd = json.dumps(make_peer_crd())
    plane.kubectl("create", "--validate=false", "--filename=-", text=crd)
    plane.kubectl("create", f"--filename={MANIFEST}")
    for name in ("c1", "c2"):
        spec = make_spec(location="north", pod_subnets=networks(f"{PODS[name]}.0/24"))
        plane.call("POST", NODES, make_node(Node(name=name, spec=spec)))
        let_in(lab.host(name), plane)
        lab.host(name).add_pod_bridge(interfaces(f"{PODS[name]}.1/24"))
    wait_until(lambda: serves_peers(plane), "peers are served")
    return plane


def let_in(host: Host, plane: BoxedPlane) -> None:
    """In place of the way into the lab's own store."""
    request: Mapping[str, object] = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": TOKEN_SECONDS},
    }
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ACCOUNT}"
    token = plane.call("POST", f"{account}/token", request)["status"]["token"]
    made = plane.files.make_kubeconfig(host.name, token=str(token))
    made.replace(host.disk / "kubeconfig")


def serves_peers(plane: BoxedPlane) -> bool:
    """A second after the definition was put there it does."""
    try:
        plane.call("GET", PEERS)
    except RefusedError:
        return False
    return True


SERVE = """
import http.server, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(f"hello from {sys.argv[3]}".encode())
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET
server = Server((sys.argv[1], int(sys.argv[2])), Handler)
print("listening", flush=True)
server.serve_forever()
"""
FETCH = """
import http.client, sys
source, host, port = sys.argv[1:]
connection = http.client.HTTPConnection(host, int(port), timeout=10, source_address=(source, 0))
connection.request("GET", "/")
print(connection.getresponse().read().decode())
"""


@contextmanager
def serving(host: Host, port: int) -> Iterator[str]:
    """A pod of the host answers over HTTP meanwhile, at this address."""
    address = f"{PODS[host.name]}.1"
    command = ["/usr/bin/python3", "-c", SERVE, address, str(port), host.name]
    server = host.popen(command)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        yield address
    finally:
        for process in host.box.find_processes(["-c", SERVE]):
            os.kill(process, 9)
        server.communicate(timeout=60)


def fetch(host: Host, address: str, port: int) -> str:
    """What is answered to a pod of the host; empty if nothing is."""
    source = f"{PODS[host.name]}.1"
    return host.call(["/usr/bin/python3", "-c", FETCH, source, address, str(port)]).stdout.strip()
