"""One mesh from two stores: three hosts of a real cluster, three in a real etcd, either away.

One lab serves the tests of this module; each leaves it as whole as it found it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from kilo.errors import ConfigError, LabError
from kilo.keyfile import generate_private_key, public_key
from kilo.lab.host import Host
from kilo.lab.hybridstore import HybridStore
from kilo.lab.lab import Lab
from tests.lab.clusters import has_peer, make_guest, make_guest_document, wait_all_ready
from tests.lab.conftest import write_directory
from tests.lab.meshes import ask, count_writes, no_loss, wait_each, wait_until

HYBRID = Path(__file__).parents[2] / "examples/hybrid"
CLUSTER, RACK = ("node-1", "node-2", "node-3"), ("vm-1", "vm-2", "vm-3")
LEADERS = ("node-1", "node-3", "vm-1")
"""Of the cluster's location, the hall's and the rack's."""
PAIRS = (
    *zip(CLUSTER, RACK, strict=True),
    *zip(RACK, CLUSTER, strict=True),
    *permutations(("node-1", "node-3"), 2),
    *permutations(("vm-1", "vm-3"), 2),
)
"""Over every tunnel and within every location, both ways. Not all pairs there are: eight streams
into one tunnel fill the socket of its userspace WireGuard when that gets no CPU for a third of a
second, as it may on a busy machine, and what the kernel drops then says nothing of the mesh."""
OUTAGE_SECONDS = 75.0
"""Longer than the 60 s after which who is silent is dead."""
RETURN_SECONDS = 10.0
FLAGS = ("--clean-up=false", "--log-level=all")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    name = f"test-{os.getpid()}-hybrid"
    with Lab.up(HYBRID, name=name, backend="hybrid", agents=False) as lab:
        for host in lab.agent_hosts:
            host.start_agent(*FLAGS)
        yield lab


@pytest.fixture
def mesh(lab: Lab) -> Lab:
    """The lab, everything reachable and every agent ready."""
    wait_all_ready(lab)
    lab.wait_reachable()
    return lab


def find_rack(lab: Lab) -> HybridStore:
    assert isinstance(lab.store, HybridStore)
    return lab.store


def list_leaders(lab: Lab) -> list[Host]:
    return [lab.host(name) for name in LEADERS]


def read_ready(host: Host) -> str:
    """What the agent says of itself; nothing while it cannot be asked."""
    try:
        return host.http("/ready").body.decode()
    except LabError:
        return ""


def test_every_pair_is_reached_and_each_node_stands_in_its_own_store(mesh: Lab) -> None:
    result = mesh.wait_reachable()
    assert set(result.sources) == {*CLUSTER, *RACK, "laptop"}
    asked = {target.address.version for targets in result.asked.values() for target in targets}
    assert asked == {4, 6}
    for source, destination in permutations((*CLUSTER, *RACK), 2):
        answered, of = result.count(source, destination)
        assert answered == of >= 4, f"{source} -> {destination}: internal and pods, both families"
    store = find_rack(mesh)
    assert {node.name for node in store.cluster.read_snapshot().nodes} == set(CLUSTER)
    assert {node.name for node in store.rack.read_snapshot().nodes} == set(RACK)
    snapshot = store.read_snapshot()
    assert snapshot.problems == ()
    assert all(node.report is not None for node in snapshot.nodes)


def test_a_machine_outside_the_cluster_may_only_read_in_it(mesh: Lab) -> None:
    kubectl = ["kubectl", "--kubeconfig=/var/lib/kilo/kubeconfig", "auth", "can-i"]
    for host, verdict in (("node-1", "yes\n"), ("vm-1", "no\n")):
        asked = mesh.host(host).box.call([*kubectl, "patch", "nodes"])
        assert asked.stdout == verdict, host


def test_while_etcd_is_away_no_packet_is_lost_and_the_clusters_changes_converge(
    mesh: Lab,
) -> None:
    key = public_key(generate_private_key()).text
    restarted = mesh.host("vm-2")
    with no_loss(mesh, PAIRS):
        mesh.etcd.kill()
        began = time.monotonic()
        wait_each(mesh.agent_hosts, lambda host: ask(host, "/ready") == 503, "says so")
        for host in mesh.agent_hosts:
            assert read_ready(host).startswith("store etcd: etcd https://"), host.name
            assert host.metrics()['kilo_each_store_up{store="kubernetes"}'] == 1, host.name
        restarted.kill_agent(signal.SIGKILL)
        restarted.start_agent(*FLAGS)
        wait_until(lambda: ask(restarted, "/metrics") == 200, "vm-2 answers")
        wait_until(lambda: restarted.metrics()["kilo_ready"] == 1, "vm-2 knows the rack by disk")

        mesh.plane.kubectl("create", "--filename=-", text=make_guest("herald", key, "10.5.0.9/32"))
        seconds = wait_until(
            lambda: all(has_peer(host, key) for host in list_leaders(mesh)), "the herald is in"
        )
        assert seconds < RETURN_SECONDS
        time.sleep(max(0.0, began + OUTAGE_SECONDS - time.monotonic()))
        mesh.wait_reachable()
        assert all(host.metrics()["kilo_nodes"] == 6 for host in mesh.agent_hosts)
        mesh.etcd.start()
        wait_all_ready(mesh)
        mesh.plane.kubectl("delete", "peer", "herald")
        wait_each(list_leaders(mesh), lambda host: not has_peer(host, key), "lets the herald go")
        mesh.wait_reachable()


def test_while_the_api_server_is_away_no_packet_is_lost_and_etcds_changes_converge(
    mesh: Lab,
) -> None:
    key = public_key(generate_private_key()).text
    with no_loss(mesh, PAIRS):
        mesh.plane.kill()
        began = time.monotonic()
        wait_each(mesh.agent_hosts, lambda host: ask(host, "/ready") == 503, "says so")
        for host in mesh.agent_hosts:
            assert read_ready(host).startswith("store kubernetes: "), host.name
        document = make_guest_document("herald", key, "10.5.0.9/32")
        find_rack(mesh).rack.put("peers/herald", document)
        seconds = wait_until(
            lambda: all(has_peer(host, key) for host in list_leaders(mesh)), "the herald is in"
        )
        assert seconds < RETURN_SECONDS
        time.sleep(max(0.0, began + OUTAGE_SECONDS - time.monotonic()))
        assert all(host.metrics()["kilo_nodes"] == 6 for host in mesh.agent_hosts)
        mesh.plane.start()
        wait_all_ready(mesh)
        mesh.etcd.etcdctl("del", "/kilo/peers/herald")
        wait_each(list_leaders(mesh), lambda host: not has_peer(host, key), "lets the herald go")
        mesh.wait_reachable()


def test_a_node_that_moves_in_one_store_moves_for_those_of_the_other(mesh: Lab) -> None:
    store = find_rack(mesh)
    (node,) = (one for one in store.rack.read_snapshot().nodes if one.name == "vm-2")
    assert node.public_key is not None
    key = node.public_key.text
    document = {
        "apiVersion": "kilo.squat.ai/v1alpha1",
        "kind": "Node",
        "metadata": {"name": "vm-2"},
        "spec": {"podSubnets": [str(subnet) for subnet in node.pod_subnets]},
    }
    for location, leads in (("island", True), ("rack", False)):
        moved = document | {"spec": document["spec"] | {"location": location}}  # type: ignore[operator]  # both are mappings
        store.rack.put("nodes/vm-2", moved)
        wait_each(
            list_leaders(mesh),
            lambda host, leads=leads: has_peer(host, key) is leads,  # type: ignore[misc]  # bound now
            f"knows vm-2 in {location}",
        )
        mesh.wait_reachable()


def test_a_name_in_both_stores_is_the_clusters_and_the_other_host_says_so(mesh: Lab) -> None:
    """A machine of the rack was given the name of a node of the cluster."""
    host = mesh.host("vm-2")
    before = count_writes(host)
    host.kill_agent(signal.SIGKILL)
    host.start_agent(*FLAGS, "--hostname=node-2")
    wait_until(lambda: "--hostname" in read_ready(host), "vm-2 says whose name it is")
    assert read_ready(host).startswith(
        "Node node-2: is a node of kubernetes already, which comes before etcd"
    )
    assert count_writes(host) <= before
    host.kill_agent(signal.SIGKILL)
    host.start_agent(*FLAGS)
    mesh.wait_reachable()


def test_a_store_that_there_is_not_is_refused(tmp_path: Path, name: str) -> None:
    spec = (HYBRID / "lab.yaml").read_text().replace("vm-1: {store: etcd", "vm-1: {store: redis")
    mesh = (HYBRID / "mesh/rack.yaml").read_text()
    directory = write_directory(tmp_path / "lab", spec, mesh)
    with pytest.raises(ConfigError, match=r"hosts\.vm-1\.store: 'redis' is not one of"):
        Lab.up(directory, name=name, backend="hybrid")
