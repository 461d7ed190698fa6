"""A mesh in a real etcd of three members, and what may befall these.

One lab of six hosts in three locations serves the tests of this module; each leaves it as whole as
it found it.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from kilo.keyfile import generate_private_key, public_key
from kilo.lab.lab import Lab
from tests.lab.clusters import (
    AGENTS,
    LAB,
    MESH,
    PAIRS,
    has_peer,
    list_leaders,
    make_guest_document,
    wait_all_ready,
)
from tests.lab.conftest import write_directory
from tests.lab.etcds import (
    Report,
    follow_a_change,
    node_moved,
    put,
    read_remaining_seconds,
    read_reports,
)
from tests.lab.meshes import ask, count_writes, no_loss, wait_each, wait_until

THREE_CLOUDS = Path(__file__).parents[2] / "examples/file/three-clouds"
OUTAGE_SECONDS = 75.0
"""Longer than the 60 s after which a node that is not heard of is dead."""
RETURN_SECONDS = 10.0
"""So soon after the store's return everything is followed again."""
FAILOVER_SECONDS = 30.0
"""So soon a change comes to all when a member is gone that they were talking to."""
SILENCE_SECONDS = 60.0
NOTICE_SECONDS = 30.0
"""How much later than that others may have let a dead node go."""
FLAGS = ("--clean-up=false", "--log-level=all")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = write_directory(tmp_path_factory.mktemp("etcd") / "lab", LAB, MESH)
    name = f"test-{os.getpid()}-etcd"
    with Lab.up(directory, name=name, backend="etcd", members=3, agents=False) as lab:
        for host in lab.agent_hosts:
            host.start_agent(*FLAGS)
        yield lab


@pytest.fixture
def mesh(lab: Lab) -> Lab:
    """The lab, everything reachable, every agent ready and reported."""
    wait_all_ready(lab)
    wait_until(lambda: read_reports(lab).keys() == set(AGENTS), "all have reported")
    lab.wait_reachable()
    return lab


def test_the_demonstration_s_mesh_runs_on_etcd(name: str) -> None:
    with Lab.up(THREE_CLOUDS, name=name, backend="etcd") as lab:
        result = lab.wait_reachable()
        assert len(result.sources) == 9, "eight nodes and the laptop"
        assert {t.address.version for ts in result.answered.values() for t in ts} == {4, 6}


def test_a_node_that_is_put_into_another_location_moves_there(mesh: Lab) -> None:
    key = str(read_reports(mesh)["b2"].document["spec"]["publicKey"])
    began = time.monotonic()
    with node_moved(mesh, "b2", "island"):
        wait_each(list_leaders(mesh), lambda host: has_peer(host, key), "meets b2, a leader now")
        assert time.monotonic() - began < RETURN_SECONDS
        mesh.wait_reachable()
    wait_each(list_leaders(mesh), lambda host: not has_peer(host, key), "has b2 in west again")
    mesh.wait_reachable()


def test_a_peer_is_admitted_by_put_and_out_by_del(mesh: Lab) -> None:
    key = mesh.host("guest").run(["sh", "-c", "wg pubkey < /var/lib/kilo/key"]).strip()
    put(mesh, "peers/guest", make_guest_document("guest", key, "10.5.0.1/32", "fd00:5::1/128"))
    result = mesh.wait_reachable()
    assert "guest" in result.sources
    assert result.count("c2", "guest") == (2, 2)
    mesh.etcd.etcdctl("del", "/kilo/peers/guest")
    wait_each(list_leaders(mesh), lambda host: not has_peer(host, key), "let the guest go")
    assert mesh.wait_reachable().outside == ("guest",)


@pytest.mark.parametrize("member", ["etcd-1", "etcd-2", "etcd-3"])
def test_any_member_may_be_killed_and_no_packet_is_lost(mesh: Lab, member: str) -> None:
    before = read_reports(mesh)
    with no_loss(mesh, PAIRS):
        mesh.etcd.kill(member)
        assert follow_a_change(mesh) < FAILOVER_SECONDS
        mesh.etcd.start(member)
        assert follow_a_change(mesh) < RETURN_SECONDS
        mesh.wait_reachable()
    assert_no_report_was_lost(mesh, before)


def test_the_leader_may_freeze_and_no_packet_is_lost(mesh: Lab) -> None:
    before = read_reports(mesh)
    with no_loss(mesh, PAIRS):
        leader = mesh.etcd.find_leader()
        mesh.etcd.freeze(leader)
        assert follow_a_change(mesh) < FAILOVER_SECONDS
        mesh.etcd.thaw(leader)
        assert follow_a_change(mesh) < RETURN_SECONDS
        mesh.wait_reachable()
    assert_no_report_was_lost(mesh, before)
    wait_until_leases_are_renewed(mesh)


def test_all_members_may_be_away_and_no_packet_or_report_is_lost(mesh: Lab) -> None:
    """Not even by an agent that starts meanwhile: it has the last snapshot."""
    restarted = mesh.host("b1")
    before = read_reports(mesh)
    writes = {host.name: count_writes(host) for host in mesh.agent_hosts} | {"b1": 0}
    with no_loss(mesh, PAIRS):
        mesh.etcd.kill()
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
        mesh.wait_reachable()  # the lab goes by what it read last
        mesh.etcd.start()
        assert follow_a_change(mesh) < RETURN_SECONDS
        for host in mesh.agent_hosts:
            # Of the peer that came and went since the return.
            assert count_writes(host) <= writes[host.name] + 8, host.name
        mesh.wait_reachable()
    assert_no_report_was_lost(mesh, before)
    wait_until_leases_are_renewed(mesh)


def assert_no_report_was_lost(lab: Lab, before: dict[str, Report]) -> None:
    """Each was there all the time, and says what it said."""
    now = read_reports(lab)
    assert {name: one.created for name, one in now.items()} == {
        name: one.created for name, one in before.items()
    }
    assert {name: one.lasting for name, one in now.items()} == {
        name: one.lasting for name, one in before.items()
    }


def wait_until_leases_are_renewed(lab: Lab) -> None:
    """Each that a report lives by is given its time anew."""
    waiting = {one.lease: math.inf for one in read_reports(lab).values()}
    assert len(waiting) == len(AGENTS)

    def all_renewed() -> bool:
        for lease, lowest in tuple(waiting.items()):
            remaining = read_remaining_seconds(lab, lease)
            waiting[lease] = min(lowest, remaining)
            if remaining > lowest:
                del waiting[lease]
        return not waiting

    wait_until(all_renewed, "every lease is renewed")


def test_what_was_compacted_while_a_watch_was_cut_is_not_missed(mesh: Lab) -> None:
    host = mesh.host("b1")
    early, late = (public_key(generate_private_key()).text for _ in range(2))
    put(mesh, "peers/early", make_guest_document("early", early, "10.5.0.7/32"))
    wait_each(list_leaders(mesh), lambda host: has_peer(host, early), "lets the early one in")
    with no_loss(mesh, PAIRS):
        for member in mesh.etcd.boxes.values():
            mesh.cut(member.name, host.name)
        mesh.etcd.etcdctl("del", "/kilo/peers/early")
        put(mesh, "peers/late", make_guest_document("late", late, "10.5.0.8/32"))
        mesh.etcd.compact()
        wait_until(lambda: ask(host, "/ready") == 503, "b1 says that the store is away")
        assert has_peer(host, early)
        assert not has_peer(host, late)
        mesh.heal()
        seconds = wait_until(lambda: has_peer(host, late), "b1 lets the late one in")
        seconds += wait_until(lambda: not has_peer(host, early), "b1 lets the early one go")
    assert seconds < RETURN_SECONDS
    mesh.etcd.etcdctl("del", "/kilo/peers/late")
    wait_each(list_leaders(mesh), lambda host: not has_peer(host, late), "lets the late one go")


def test_an_agent_that_restarts_within_its_lease_is_not_noticed(mesh: Lab) -> None:
    host = mesh.host("b2")
    others = [one for one in mesh.agent_hosts if one is not host]
    before = read_reports(mesh)
    writes = {one.name: count_writes(one) for one in others}
    host.kill_agent(signal.SIGKILL)
    host.start_agent(*FLAGS)
    wait_until(lambda: read_reports(mesh)["b2"].lease != before["b2"].lease, "b2 has a new lease")
    mesh.etcd.etcdctl("lease", "revoke", f"{before['b2'].lease:x}")
    assert_no_report_was_lost(mesh, before)
    assert {one.name: count_writes(one) for one in others} == writes


def test_another_leads_for_a_dead_node_whose_report_goes_with_its_lease(mesh: Lab) -> None:
    reports = read_reports(mesh)
    keys = {name: str(reports[name].document["spec"]["publicKey"]) for name in ("b1", "b2")}
    elsewhere = [host for host in list_leaders(mesh) if host.name != "b1"]
    bystanders = [name for name in AGENTS if not name.startswith("b")]
    with no_loss(mesh, permutations(bystanders, 2)):
        mesh.host("b1").kill_agent(signal.SIGKILL)
        seconds = wait_until(lambda: has_peer(elsewhere[0], keys["b2"]), "goes through b2")
        assert seconds < SILENCE_SECONDS + NOTICE_SECONDS
        wait_each(elsewhere, lambda host: has_peer(host, keys["b2"]), "goes through b2")
        wait_each(elsewhere, lambda host: not has_peer(host, keys["b1"]), "has let b1 go")
        mesh.etcd.etcdctl("lease", "revoke", f"{reports['b1'].lease:x}")
        assert "b1" not in read_reports(mesh)
        assert mesh.wait_reachable().outside == ("b1", "guest")
    mesh.host("b1").start_agent(*FLAGS)
    wait_each(elsewhere, lambda host: has_peer(host, keys["b1"]), "goes through b1 again")
