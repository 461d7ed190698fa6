"""A mesh in a real API server: six hosts in three locations, and what may befall their store.

The agents are let in as the ServiceAccount of the shipped manifests, and may do no more than
these allow. One lab serves the tests of this module; each leaves it as whole as it found it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kilo.keyfile import generate_private_key, public_key
from kilo.lab.lab import Lab
from tests.lab.clusters import (
    AGENTS,
    KILO,
    LAB,
    MESH,
    OUTAGES,
    PAIRS,
    REGION,
    all_ready,
    has_peer,
    list_leaders,
    make_guest,
    read_annotations,
    read_key,
    read_lasting_annotations,
    wait_all_ready,
)
from tests.lab.conftest import write_directory
from tests.lab.meshes import ask, count_writes, no_loss, wait_each, wait_until

OUTAGE_SECONDS = 75.0
"""Longer than the 60 s of silence after which a node that can be heard of counts as dead."""
RETURN_SECONDS = 10.0
"""So soon after the store's return everything is followed again."""
FLAGS = ("--clean-up=false", "--log-level=all")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = write_directory(tmp_path_factory.mktemp("cluster") / "lab", LAB, MESH)
    name = f"test-{os.getpid()}-cluster"
    with Lab.up(directory, name=name, backend="kubernetes", agents=False) as lab:
        for host in lab.agent_hosts:
            host.start_agent(*FLAGS)
        yield lab


@pytest.fixture
def mesh(lab: Lab) -> Lab:
    """The lab, everything reachable and every agent ready."""
    wait_all_ready(lab)
    lab.wait_reachable()
    return lab


def test_every_pair_of_six_hosts_in_three_locations_is_reachable(mesh: Lab) -> None:
    result = mesh.wait_reachable()
    assert set(result.sources) == set(AGENTS)
    assert result.outside == ("guest",)
    versions = {t.address.version for targets in result.answered.values() for t in targets}
    assert versions == {4, 6}
    locations = {read_annotations(mesh, name)[f"{KILO}location"] for name in AGENTS}
    assert locations == {"east", "west", "south"}
    for host in list_leaders(mesh):
        assert len(host.run(["wg", "show", "kilo0", "peers"]).split()) == 2, host.name


def test_a_node_that_is_annotated_with_another_location_moves_there(mesh: Lab) -> None:
    key = read_key(mesh, "b2")
    annotate = partial(mesh.plane.kubectl, "annotate", "--overwrite", "node", "b2")
    annotate(f"{KILO}location=island")
    wait_each(list_leaders(mesh), lambda host: has_peer(host, key), "meets b2, a leader now")
    mesh.wait_reachable()
    annotate(f"{KILO}location=west")
    wait_each(list_leaders(mesh), lambda host: not has_peer(host, key), "has b2 in west again")
    mesh.wait_reachable()


def test_a_node_that_is_labelled_with_another_region_moves_there(mesh: Lab) -> None:
    key = read_key(mesh, "b2")
    annotate = partial(mesh.plane.kubectl, "annotate", "--overwrite", "node", "b2")
    label = partial(mesh.plane.kubectl, "label", "--overwrite", "node", "b2")
    label(f"{REGION}=island")
    annotate(f"{KILO}location-")
    wait_each(list_leaders(mesh), lambda host: has_peer(host, key), "meets b2, a leader now")
    mesh.wait_reachable()
    label(f"{REGION}=west")
    wait_each(list_leaders(mesh), lambda host: not has_peer(host, key), "has b2 in west again")
    mesh.wait_reachable()
    annotate(f"{KILO}location=west")
    label(f"{REGION}-")


def test_a_node_that_is_deleted_is_out_and_in_again_when_it_is_created_anew(mesh: Lab) -> None:
    node = json.loads(mesh.plane.kubectl("get", "node", "b2", "--output=json"))
    annotations = {f"{KILO}location": "west"}
    fresh = {"apiVersion": "v1", "kind": "Node", "spec": node["spec"]}
    fresh["metadata"] = {"name": "b2", "annotations": annotations}
    mesh.plane.kubectl("delete", "node", "b2")
    wait_each(
        list_leaders(mesh),
        lambda host: "10.2.22.0/24" not in host.run(["ip", "route"]),
        "has no way to b2's pods",
    )
    mesh.plane.kubectl("create", "--filename=-", text=json.dumps(fresh))
    wait_until(
        lambda: read_annotations(mesh, "b2").get(f"{KILO}key"), "b2 has published itself again"
    )
    wait_all_ready(mesh)
    mesh.wait_reachable()


def test_a_peer_is_admitted_by_apply_and_out_by_delete(mesh: Lab, tmp_path: Path) -> None:
    guest = mesh.host("guest")
    key = guest.run(["sh", "-c", "wg pubkey < /var/lib/kilo/key"]).strip()
    path = tmp_path / "peer.yaml"
    path.write_text(make_guest("guest", key, "10.5.0.1/32", "fd00:5::1/128"))
    mesh.plane.kubectl("apply", f"--filename={path}")
    result = mesh.wait_reachable()
    assert "guest" in result.sources
    assert result.count("c2", "guest") == (2, 2)
    mesh.plane.kubectl("delete", f"--filename={path}")
    wait_each(list_leaders(mesh), lambda host: not has_peer(host, key), "let the guest go")
    assert mesh.wait_reachable().outside == ("guest",)


def test_nothing_was_denied_to_the_agents(mesh: Lab) -> None:
    """The shipped ClusterRole is enough.

    Before the outages: a server that has just started denies everything for a moment.
    """
    answers = [json.loads(line) for line in mesh.plane.files.audit_log.read_text().splitlines()]
    user = "system:serviceaccount:kube-system:kilo"
    ours = [one for one in answers if one["user"]["username"] == user]
    assert {one["verb"] for one in ours} >= {"list", "patch"}
    assert not [one for one in ours if one.get("responseStatus", {}).get("code") in (401, 403)]


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_an_api_server_that_is_away_costs_no_packet_and_changes_nothing(
    mesh: Lab, how: str
) -> None:
    """Not even for an agent that starts meanwhile: it has the last snapshot."""
    leave, come_back = OUTAGES[how]
    restarted = mesh.host("b1")
    annotations = read_lasting_annotations(mesh)
    writes = {host.name: count_writes(host) for host in mesh.agent_hosts} | {"b1": 0}
    with no_loss(mesh, PAIRS):
        leave(mesh.plane)
        began = time.monotonic()
        wait_each(mesh.agent_hosts, lambda host: ask(host, "/ready") == 503, "says so")
        restarted.kill_agent(signal.SIGKILL)
        restarted.start_agent(*FLAGS)
        wait_until(lambda: ask(restarted, "/metrics") == 200, "b1 answers")
        wait_until(lambda: restarted.metrics()["kilo_ready"] == 1, "b1 has its snapshot")
        time.sleep(max(0.0, began + OUTAGE_SECONDS - time.monotonic()))
        for host in mesh.agent_hosts:
            assert host.metrics()["kilo_store_up"] == 0, host.name
            assert count_writes(host) == writes[host.name], host.name
        come_back(mesh.plane)
        assert_followed_soon(mesh)
        for host in mesh.agent_hosts:
            # Of the peer that came and went since the return.
            assert count_writes(host) <= writes[host.name] + 8, host.name
        mesh.wait_reachable()
    assert read_lasting_annotations(mesh) == annotations


def assert_followed_soon(lab: Lab) -> None:
    """All are ready, and a change made now has come to all, in time since this was called."""
    began = time.monotonic()
    key = public_key(generate_private_key()).text
    lab.plane.kubectl("apply", "--filename=-", text=make_guest("herald", key, "10.5.0.9/32"))
    wait_each(list_leaders(lab), lambda host: has_peer(host, key), "lets the herald in")
    wait_until(lambda: all_ready(lab), "all are ready")
    seconds = time.monotonic() - began
    lab.plane.kubectl("delete", "peer", "herald")
    wait_each(list_leaders(lab), lambda host: not has_peer(host, key), "lets the herald go")
    assert seconds < RETURN_SECONDS


def test_an_api_server_put_back_to_an_older_state_is_believed_and_costs_no_packet(
    mesh: Lab,
) -> None:
    leave, come_back = OUTAGES["put back"]
    annotations = read_lasting_annotations(mesh)
    key, late = (public_key(generate_private_key()).text for _ in range(2))
    apply = partial(mesh.plane.kubectl, "apply", "--filename=-")
    apply(text=make_guest("early", key, "10.5.0.7/32"))
    mesh.plane.save()
    mesh.plane.kubectl("delete", "peer", "early")
    apply(text=make_guest("late", late, "10.5.0.8/32"))
    wait_each(list_leaders(mesh), lambda host: has_peer(host, late), "lets the late one in")
    wait_each(list_leaders(mesh), lambda host: not has_peer(host, key), "lets the early one go")
    with no_loss(mesh, PAIRS):
        leave(mesh.plane)
        wait_each(mesh.agent_hosts, lambda host: ask(host, "/ready") == 503, "says so")
        come_back(mesh.plane)
        began = time.monotonic()
        wait_each(list_leaders(mesh), lambda host: has_peer(host, key), "lets the early one in")
        wait_each(list_leaders(mesh), lambda host: not has_peer(host, late), "the late one goes")
        wait_until(lambda: all_ready(mesh), "all are ready")
        assert time.monotonic() - began < RETURN_SECONDS
        assert_followed_soon(mesh)
        mesh.wait_reachable()
    assert read_lasting_annotations(mesh) == annotations
    mesh.plane.kubectl("delete", "peer", "early")


def test_the_lab_shows_its_mesh_while_the_store_is_away(mesh: Lab) -> None:
    mesh.plane.kill()
    try:
        assert mesh.store.describe().endswith(": off")
        mesh.wait_reachable()
    finally:
        mesh.plane.start()
    assert mesh.store.describe().endswith(": ready")
