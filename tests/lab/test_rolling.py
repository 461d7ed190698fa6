"""A mesh of Kilo's own agents becomes ours node by node, and theirs again, under traffic."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from kilo.lab.host import Host
from kilo.lab.lab import Lab
from kilo.lab.pods import Pod
from tests.lab.clusters import read_annotations
from tests.lab.conftest import write_directory
from tests.lab.meshes import make_nodes, no_loss, read_sessions, wait_ready, wait_until
from tests.lab.original import KILO, Originals, Site

LAB = """
networks:
  internet: {public: true, subnets: [198.51.100.0/24, 203.0.113.0/24]}
  east: {subnets: [192.168.1.0/24]}
  west: {subnets: [192.168.2.0/24]}
  south: {subnets: [192.168.3.0/24], nat: {behind: internet, address: 203.0.113.9}}
hosts:
  a1: {networks: {east: 192.168.1.11, internet: 198.51.100.11}}
  a2: {networks: {east: 192.168.1.12, internet: 198.51.100.12}}
  b1: {networks: {west: 192.168.2.11, internet: 198.51.100.21}}
  b2: {networks: {west: 192.168.2.12, internet: 198.51.100.22}}
  c1: {networks: {south: 192.168.3.11}}
flags: [--cni, --clean-up=false]
"""

SITES = (
    Site(
        name="a1",
        location="east",
        internal="192.168.1.11/24",
        endpoint="198.51.100.11:51820",
        pods="10.2.11.0/24",
        wireguard="10.4.0.1/16",
    ),
    Site(
        name="a2",
        location="east",
        internal="192.168.1.12/24",
        endpoint="198.51.100.12:51820",
        pods="10.2.12.0/24",
    ),
    Site(
        name="c1",
        location="south",
        internal="192.168.3.11/24",
        endpoint="192.168.3.11:51820",
        pods="10.2.31.0/24",
        wireguard="10.4.0.2/16",
        keepalive=5,
    ),
    Site(
        name="b1",
        location="west",
        internal="192.168.2.11/24",
        endpoint="198.51.100.21:51820",
        pods="10.2.21.0/24",
        wireguard="10.4.0.3/16",
    ),
    Site(
        name="b2",
        location="west",
        internal="192.168.2.12/24",
        endpoint="198.51.100.22:51820",
        pods="10.2.22.0/24",
    ),
)
"""In the order of their segments, which gives the leaders their addresses."""
MESH = make_nodes(
    {
        site.name: {
            "location": site.location,
            "persistentKeepalive": site.keepalive,
            "podSubnets": [site.pods],
        }
        for site in SITES
    }
)
ORDER = ("b2", "a1", "c1", "a2", "b1")
"""Half of a location ours, then a leader, then the one behind a NAT."""
PAIRS = (
    *permutations(("a1", "b1", "c1"), 2),
    *permutations(("a2/web", "b2/web"), 2),
    ("a2/web", "a1/web"),
    ("b1/web", "b2/web"),
)
"""Over every tunnel and within locations; all pairs are asked at each step besides."""


GUIDE = Path(__file__).parents[2] / "docs/migrating.md"
IPTABLES = "b1"
"""A host whose rules are iptables': there our firewall is, too."""


def read_leavings() -> tuple[str, str]:
    """What the guide tells to do once the original has taken over: what it has not made its own.

    On a host whose firewall is nftables', and on one where it is iptables'.
    """
    back = GUIDE.read_text().partition("## Back")[2]
    blocks = re.findall(r"^```sh\n(.*?)^```$", back, re.MULTILINE | re.DOTALL)
    nftables, iptables = (block for block in blocks)
    return nftables, iptables


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = write_directory(tmp_path_factory.mktemp("rolling") / "lab", LAB, MESH)
    name = f"test-{os.getpid()}-rolling"
    with Lab.up(directory, name=name, backend="kubernetes", agents=False) as lab:
        yield lab


@pytest.fixture(scope="module")
def originals(lab: Lab) -> Iterator[Originals]:
    """All nodes as the original leaves them, with a pod each."""
    them = Originals(sites=SITES, hosts=lab.hosts, plane=lab.plane)
    them.make_keys()
    for site in SITES:
        them.take(site)
        lab.host(site.name).add_pod("web")
    lab.host(IPTABLES).run(["iptables", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY"])
    for leader in ("a1", "b1"):
        them.seen_at["c1"] = wait_for_endpoint(lab.host(leader), them.keys["c1"])
    for site in SITES:
        them.annotate(site)
    with them.beating():
        yield them


def wait_for_endpoint(host: Host, key: str) -> str:
    """Where WireGuard has seen a device after a handshake."""
    wait_until(lambda: read_sessions(host).get(key), f"{host.name} has a session with {key}")
    lines = host.run(["wg", "show", "kilo0", "endpoints"]).splitlines()
    return dict(line.split("\t") for line in lines)[key]


def list_places(lab: Lab) -> list[Host | Pod]:
    return [*lab.agent_hosts, *(pod for host in lab.agent_hosts for pod in host.pods.list())]


def check_all_pairs(lab: Lab) -> None:
    """Every host and pod reaches every other, at all its addresses in the mesh."""
    addresses = [pod.find_address(4) for host in lab.agent_hosts for pod in host.pods.list()]
    addresses += [a for site in SITES for a in (site.address, site.hop) if a]
    for place in list_places(lab):
        done = place.call(["fping", "--alive", "--retry=3", "--period=50", *addresses])
        missing = set(addresses) - set(done.stdout.split())
        assert not missing, f"{place.name} does not reach {sorted(missing)}"


def read_shared(lab: Lab) -> dict[str, dict[str, str]]:
    """What the others go by: node -> its annotations that only change with the mesh."""
    names = ("endpoint", "internal-ip", "key", "wireguard-ip", "granularity")
    found = {site.name: read_annotations(lab, site.name) for site in SITES}
    return {node: {n: one[f"{KILO}{n}"] for n in names} for node, one in found.items()}


def list_routes(host: Host, protocol: str) -> set[str]:
    shown = json.loads(host.run(["ip", "-json", "route", "show", "proto", protocol]))
    return {route["dst"] for route in shown if route.get("type") != "unreachable"}


def test_no_packet_is_lost_while_one_node_after_the_other_becomes_ours(
    lab: Lab, originals: Originals
) -> None:
    check_all_pairs(lab)
    shared = read_shared(lab)
    routes = {name: list_routes(host, "static") for name, host in lab.hosts.items()}
    with no_loss(lab, PAIRS):
        for name in ORDER:
            originals.alive.discard(name)
            lab.host(name).start_agent()
            wait_ready(lab.host(name))
            check_all_pairs(lab)
    assert read_shared(lab) == shared
    for name in ORDER:
        chains = lab.host(name).run(["iptables-save"])
        assert ("KILO-MSS" in chains) == (name == IPTABLES), "ours, where rules are iptables'"
        assert name == IPTABLES or "KILO-" not in chains
        assert not list_routes(lab.host(name), "static"), "all are ours"
        assert list_routes(lab.host(name), "107") == routes[name]


def test_no_packet_is_lost_while_one_node_after_the_other_becomes_theirs_again(
    lab: Lab, originals: Originals
) -> None:
    shared = read_shared(lab)
    sites = {site.name: site for site in SITES}
    leavings = read_leavings()
    with no_loss(lab, PAIRS):
        for name in reversed(ORDER):
            lab.host(name).kill_agent(signal.SIGTERM)
            originals.take(sites[name])
            lab.host(name).run(["sh", "-ec", leavings[name == IPTABLES]])
            assert "107" not in lab.host(name).run(["ip", "route"]), "no route of ours"
            assert "kilo" not in lab.host(name).run(["nft", "list", "tables"])
            rules = lab.host(name).run(["iptables-save"])
            assert "KILO-MSS" not in rules
            assert rules.count("-j KILO-NAT") == 1, "the original's"
            check_all_pairs(lab)
    assert read_shared(lab) == shared
