"""A mesh whose locations are encapsulated; ``test_encapsulated`` runs this where a kernel has IPIP.

Three hosts of one location, one of them in another subnet, and one host elsewhere. Every pair is
asked from pod to pod, in every combination of granularity and encapsulation, while nothing of a
pod's may be seen in clear on the way between the locations.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from kilo.lab import meshdir
from kilo.lab.host import Host
from kilo.lab.lab import Lab
from tests.lab.meshes import is_ready, never_seen, wait_until

LAB = """
networks:
  internet: {public: true, subnets: [198.51.100.0/24]}
  east: {subnets: [192.168.1.0/24, 192.168.9.0/24]}
hosts:
  a1: {networks: {east: 192.168.1.11, internet: 198.51.100.11}}
  a2: {networks: {east: 192.168.1.12, internet: 198.51.100.12}}
  a3: {networks: {east: 192.168.9.13, internet: 198.51.100.13}}
  b1: {networks: {internet: 198.51.100.21}}
"""
PODS = {"a1": "10.2.11.1", "a2": "10.2.12.1", "a3": "10.2.13.1", "b1": "10.2.21.1"}
NODE = """
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {{name: {name}}}
spec: {{location: {location}, podSubnets: [{pods}]}}
---
"""
GRANULARITIES = ("location", "full", "cross")
ENCAPSULATIONS = ("never", "crosssubnet", "always")
START_SECONDS = 240.0
PODS_IN_CLEAR = "ip saddr 10.2.0.0/16"
IPIP = "ip protocol 4"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("encapsulated")
    (directory / "lab.yaml").write_text(LAB)
    (directory / "mesh").mkdir()
    text = "".join(
        NODE.format(name=name, location=name[0], pods=f"{pod.removesuffix('.1')}.0/24")
        for name, pod in PODS.items()
    )
    (directory / "mesh" / "nodes.yaml").write_text(text)
    with Lab.up(directory, name="encapsulated") as lab:
        for host in lab.hosts.values():
            wait_started(host)
        yield lab


def wait_started(host: Host) -> None:
    """In emulation a program takes its time to start."""
    try:
        wait_until(lambda: is_ready(host), "is ready", seconds=START_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{host.name}: {error}: {host.log.read_text()[-3000:]}") from None


def reaches_all(lab: Lab, source: str) -> bool:
    """Whether every other pod answers this host's: all asked at once, a process being dear."""
    targets = [pod for name, pod in PODS.items() if name != source]
    command = ["fping", "-q", "-r2", "-t1000", "-S", PODS[source], *targets]
    return lab.host(source).succeeds(command)


def list_unhappy(lab: Lab) -> list[str]:
    return [name for name in PODS if not reaches_all(lab, name)]


def uses_tunnel(lab: Lab, source: str, target: str) -> bool:
    words = ["ip", "route", "get", PODS[target], "from", PODS[source]]
    return "dev tunl0" in lab.host(source).run(words)


def check_every_pair(lab: Lab, granularity: str, encapsulation: str) -> None:
    meshdir.set_settings(lab.mesh, granularity=granularity, encapsulation=encapsulation)
    near, far = encapsulation == "always", encapsulation != "never"
    if granularity == "full":
        near = far = False
    wait_until(lambda: uses_tunnel(lab, "a1", "a2") is near, f"{encapsulation}: a1 to a2")
    wait_until(lambda: uses_tunnel(lab, "a1", "a3") is far, f"{encapsulation}: a1 to a3")
    wait_until(lambda: not list_unhappy(lab), f"{granularity}, {encapsulation}: every pair answers")


def test_every_pod_reaches_every_pod_in_every_way_and_none_in_clear(lab: Lab) -> None:
    with never_seen(lab, "internet", PODS_IN_CLEAR), never_seen(lab, "internet", IPIP):
        for granularity, encapsulation in product(GRANULARITIES, ENCAPSULATIONS):
            check_every_pair(lab, granularity, encapsulation)
        lab.host("a1").restart_agent()
        wait_started(lab.host("a1"))
        wait_until(lambda: not list_unhappy(lab), "every pair answers after a leader's restart")


def test_a_packet_in_clear_would_have_been_seen(lab: Lab) -> None:
    with pytest.raises(AssertionError), never_seen(lab, "internet", PODS_IN_CLEAR):
        # It goes in clear, since its destination is no business of the mesh.
        lab.host("b1").box.call(["ping", "-c1", "-W1", "-I", PODS["b1"], "198.51.100.11"])


def test_a_stopped_agent_leaves_no_tunnel_and_no_rule_behind(lab: Lab) -> None:
    host = lab.host("a3")
    assert "kilo" in host.run(["ip", "-d", "link", "show", "dev", "tunl0"])
    host.kill_agent()
    host.run([*host.agent_command(), "uninstall"])
    left = host.run(["ip", "-d", "address", "show", "dev", "tunl0"])
    assert "alias" not in left
    assert "10.2.13.1" not in left
    assert "1107" not in host.run(["ip", "rule"])
    assert host.run(["ip", "route", "show", "table", "all", "proto", "107"]) == ""
