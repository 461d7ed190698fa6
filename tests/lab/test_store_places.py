"""Where the store of a lab stands, and what a mesh directory becomes in a cluster."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml

from kilo.backends.documents import read_document
from kilo.backends.objects import DeclaredNode
from kilo.errors import ConfigError
from kilo.lab import meshdir
from kilo.lab.clusterobjects import POD_SUBNETS, make_node
from kilo.lab.spec import LabSpec, parse_spec
from kilo.lab.storewiring import add_store, find_store_address
from kilo.lab.wiring import plan_cables

EXAMPLE = Path(__file__).parents[2] / "examples/file/three-clouds"
STORE = "@store"
NETWORKS = """
networks:
  lan: {subnets: [192.168.1.0/24]}
  inner: {subnets: [192.168.60.0/24], nat: {behind: outer, address: 192.168.50.9}}
  outer: {subnets: [192.168.50.0/24], nat: {behind: internet, address: 198.51.100.9}}
  internet: {public: true, subnets: [198.51.100.0/29, "2001:db8::/64"]}
"""


def make_spec(hosts: str, networks: str = NETWORKS) -> LabSpec:
    return parse_spec("lab.yaml", yaml.safe_load(f"{networks}\nhosts: {{{hosts}}}"))


def test_the_store_takes_the_highest_address_that_nobody_has() -> None:
    # .7 is the broadcast address, .6 a host's, .5 a NAT's.
    networks = NETWORKS.replace("198.51.100.9", "198.51.100.5")
    spec = add_store(make_spec("a1: {networks: {internet: 198.51.100.6}}", networks), [STORE])
    assert find_store_address(spec, STORE) == ip_address("198.51.100.4")


def test_each_machine_of_a_store_has_an_address_of_its_own() -> None:
    names = ["@etcd-1", "@etcd-2", "@etcd-3"]
    spec = add_store(
        make_spec(
            "a1: {networks: {internet: 198.51.100.5}}", networks=NETWORKS.replace("100.9", "100.2")
        ),
        names,
    )
    addresses = [find_store_address(spec, name) for name in names]
    assert addresses == [ip_address(f"198.51.100.{number}") for number in (6, 4, 3)]


def test_hosts_keep_their_cables_when_a_store_is_added() -> None:
    hosts = "a1: {networks: {internet: 198.51.100.2}}, b1: {networks: {inner: 192.168.60.11}}"
    networks = NETWORKS.replace("198.51.100.9", "198.51.100.5")
    spec = make_spec(hosts, networks)
    cables = plan_cables(add_store(spec, [STORE]))
    assert cables[:-1] == plan_cables(spec)
    assert cables[-1].box == STORE


def test_a_store_is_reached_through_as_many_nats_as_there_are() -> None:
    networks = NETWORKS.replace("198.51.100.9", "198.51.100.5")
    add_store(make_spec("b1: {networks: {inner: 192.168.60.11}}", networks), [STORE])


@pytest.mark.parametrize(
    ("networks", "host", "reason"),
    [
        ("networks: {lan: {subnets: [192.168.1.0/24]}}", "lan: 192.168.1.11", "none is public"),
        (NETWORKS.replace("100.9", "100.5"), "lan: 192.168.1.11", r"hosts\.a1: has no way to"),
        (NETWORKS.replace("100.9", "100.5"), 'internet: "2001:db8::11"', r"hosts\.a1: has no way"),
        (
            "networks: {internet: {public: true, subnets: [198.51.100.0/30]}}",
            "internet: 198.51.100.2",
            r"'198\.51\.100\.0/30' has no address left for the store",
        ),
    ],
)
def test_a_lab_without_a_place_for_a_store_is_refused(
    networks: str, host: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        add_store(make_spec(f"a1: {{networks: {{{host}}}}}", networks), [STORE])


def test_a_plain_machine_need_not_reach_the_store() -> None:
    networks = NETWORKS.replace("198.51.100.9", "198.51.100.5")
    add_store(
        make_spec("printer: {agent: false, networks: {lan: 192.168.1.50}}", networks), [STORE]
    )


def read_nodes(path: Path) -> list[tuple[dict[str, object], DeclaredNode]]:
    """Each Node of a directory as the cluster's object, and as what an agent reads out of that."""
    nodes = meshdir.read_snapshot(path).nodes
    assert nodes
    made = [make_node(node) for node in nodes]
    read = [read_document(document, source="cluster") for document in made]
    assert not [problem for reading in read for problem in reading.problems]
    values = [reading.found[0].value for reading in read]
    assert [value.spec for value in values if isinstance(value, DeclaredNode)] == [
        node.spec for node in nodes
    ]
    return list(zip(made, values, strict=True))  # type: ignore[arg-type]  # all declared, as asserted


def test_a_cluster_s_nodes_say_what_the_directory_says(tmp_path: Path) -> None:
    read_nodes(EXAMPLE / "mesh")
    spec = {
        "location": "east",
        "endpoint": "[2001:db8::11]:51821",
        "internalIP": "192.168.1.11/24",
        "leader": True,
        "persistentKeepalive": 25,
        "allowedLocationIPs": ["192.168.1.50/32", "fd00:1::50/128"],
        "podSubnets": ["10.2.11.0/24", "10.2.12.0/24"],
    }
    document = {
        "apiVersion": "kilo.squat.ai/v1alpha1",
        "kind": "Node",
        "metadata": {"name": "a1"},
        "spec": spec,
    }
    (tmp_path / "a1.yaml").write_text(yaml.safe_dump(document))
    ((made, _),) = read_nodes(tmp_path)
    assert made["spec"] == {}, "Kubernetes takes one subnet a family"
    annotations = made["metadata"]["annotations"]  # type: ignore[index]  # as make_node makes it
    assert annotations[POD_SUBNETS] == "10.2.11.0/24,10.2.12.0/24"
    assert annotations["kilo.squat.ai/leader"] == "true"


def test_a_node_without_an_agent_is_no_cluster_s_node(tmp_path: Path) -> None:
    key = "OU9/xEWEsS+A8KH880l3X2wc/4BxZ1H7bQU8FJbq7F8="
    (tmp_path / "mesh.yaml").write_text(
        "{apiVersion: kilo.squat.ai/v1alpha1, kind: Node, metadata: {name: router},"
        f" spec: {{publicKey: {key}}}}}"
    )
    (node,) = meshdir.read_snapshot(tmp_path).nodes
    with pytest.raises(ConfigError, match=r"Node router: spec\.publicKey: '.*' declares"):
        make_node(node)
