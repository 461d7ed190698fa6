"""The store of a lab on etcd: made, worked by hand, broken, taken down. No agents."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from kilo.errors import ConfigError, LabError
from kilo.lab.box import find_inits
from kilo.lab.lab import Lab
from kilo.lab.machine import describe_machine, list_namespaces
from kilo.lab.storage import ROOT
from tests.lab.conftest import NODES, SITES, write_directory
from tests.lab.meshes import wait_until
from tests.lab.test_cli import kgctl
from tests.lab.test_lifecycle import assert_nothing_left

MEMBERS = ("etcd-1", "etcd-2", "etcd-3")
DISK = "/var/lib/kilo/etcd"
"""Of a host: where it has what lets it in."""


@pytest.fixture
def lab(directory: Path, name: str) -> Iterator[Lab]:
    with Lab.up(directory, name=name, backend="etcd", members=3, agents=False) as lab:
        yield lab


def test_a_lab_on_etcd_is_worked_by_commands_and_leaves_nothing(directory: Path, name: str) -> None:
    def lab(command: str, *words: str) -> subprocess.CompletedProcess[str]:
        return kgctl("lab", command, f"--name={name}", *words)

    before = describe_machine()
    assert lab("up", str(directory), "--backend=etcd", "--agents=false").returncode == 0
    namespaces = list_namespaces(find_inits(ROOT / name))
    assert not (ROOT / name / "mesh").exists()
    state = "store: etcd, etcd-1 (https://198.51.100.254:2379) {}\n"
    assert lab("status").stdout.endswith(state.format("leads"))
    keys = ("etcdctl", "get", "--prefix", "--keys-only", "/")
    assert lab(*keys).stdout.split() == ["/kilo/nodes/oregon-1"]
    assert lab("etcdctl", "--", "nonsense").returncode == 1

    assert lab("store", "freeze").returncode == 0
    assert lab("status").stdout.endswith(state.format("frozen"))
    assert lab("store", "thaw", "etcd-1").returncode == 0
    assert lab("store", "kill").returncode == 0
    assert lab("status").stdout.endswith(state.format("off"))
    assert "store etcd-1: is not running" in lab("store", "kill").stderr
    assert lab("store", "start").returncode == 0
    assert "store: is running" in lab("store", "start").stderr
    assert "'etcd-2': is not one of etcd-1" in lab("store", "kill", "etcd-2").stderr
    assert "'save': is not one of kill, start, freeze, thaw" in lab("store", "save").stderr
    assert lab(*keys).stdout.split() == ["/kilo/nodes/oregon-1"], "what was written stays"

    assert describe_machine() == before, "nothing is made outside, even while it is up"
    assert lab("down").returncode == 0
    assert_nothing_left(name, namespaces, before)


def test_hosts_reach_every_member_through_nats_by_certificates_of_their_own(lab: Lab) -> None:
    host = lab.host("home-1")
    members = lab.etcd.files.members
    show = [f"--cacert={DISK}/ca.crt", f"--cert={DISK}/client.crt", f"--key={DISK}/client.key"]

    def ask(url: str, shown: list[str], *, seconds: int = 60) -> bool:
        limits = [f"--dial-timeout={seconds}s", f"--command-timeout={seconds}s"]
        ask = ["etcdctl", f"--endpoints={url}", *limits, *shown, "get", "--prefix", "/kilo/nodes/"]
        done = host.call(ask)
        return "oregon-1" in done.stdout

    assert len({member.url for member in members}) == 3
    for member in members:
        assert ask(member.url, show)
        assert not ask(member.url, show[:1], seconds=2), "who shows no certificate is not let in"
    shown = x509.load_pem_x509_certificate(host.run(["cat", f"{DISK}/client.crt"]).encode())
    assert shown.subject.rfc4514_string() == "CN=home-1"
    assert host.run(["stat", "-c", "%a", "/var/lib/kilo", f"{DISK}/client.key"]) == "700\n600\n"

    lab.cut("@etcd-2", "home-1")
    assert not ask(members[1].url, show, seconds=2)
    assert ask(members[0].url, show), "it is cut off from nothing else"
    lab.heal()
    assert ask(members[1].url, show)


def test_two_of_three_members_serve_and_one_does_not(lab: Lab) -> None:
    first = lab.etcd.find_leader()
    lab.etcd.kill(first)
    lab.etcd.put("/tried", "yes")
    others = {name for name in MEMBERS if name != first}
    assert lab.etcd.find_leader() in others
    assert f"{first} (" in lab.etcd.describe()
    lab.etcd.freeze(lab.etcd.find_leader())
    with pytest.raises(LabError, match=r"store: no member leads: .* frozen"):
        lab.etcd.find_leader()
    with pytest.raises(LabError, match="store: etcdctl put /tried: "):
        lab.etcd.put("/tried", "no")
    lab.etcd.start(first)
    wait_until(lambda: has_leader(lab), "two of three agree")
    assert lab.etcd.get_prefix("/tried") == {"/tried": "yes"}
    lab.etcd.thaw()
    wait_until(lambda: lab.etcd.describe().count("follows") == 2, "all take part again")


def has_leader(lab: Lab) -> bool:
    try:
        lab.etcd.find_leader()
    except LabError:
        return False
    return True


def test_settings_and_peers_are_changed_in_etcd(directory: Path, name: str) -> None:
    with Lab.up(directory, name=name, backend="etcd", granularity="full", agents=False) as lab:
        lab.store.set_settings(port=51821)
        settings = lab.store.read_snapshot().settings
        assert settings == {"granularity": "full", "port": 51821}
        with pytest.raises(ConfigError, match="granularity: 'tiny'"):
            lab.store.set_settings(granularity="tiny")
        written = json.loads(lab.etcd.get_prefix("/kilo/settings")["/kilo/settings"])
        assert written["spec"] == settings
        lab.etcd.kill()
        assert lab.store.read_snapshot().settings == settings, "as it was last read"
        lab.etcd.start()


def test_a_mesh_with_something_unreadable_is_refused(tmp_path: Path, name: str) -> None:
    mesh = NODES.replace("10.2.11.0/24", "10.2.11.0/99")
    before = describe_machine()
    with pytest.raises(ConfigError, match=r"podSubnets.*an etcd is given only what can be read"):
        Lab.up(write_directory(tmp_path / "lab", SITES, mesh), name=name, backend="etcd")
    assert_nothing_left(name, set(), before)


def test_members_are_asked_of_an_etcd_only(directory: Path, name: str) -> None:
    for backend in ("file", "kubernetes"):
        with pytest.raises(ConfigError, match="--members 3: is for --backend=etcd"):
            Lab.up(directory, name=name, backend=backend, members=3)
    with pytest.raises(ConfigError, match="--members 0: an etcd has one or more"):
        Lab.up(directory, name=name, backend="etcd", members=0)
    with pytest.raises(ConfigError, match="backend 'paper': is not one of file, kubernetes, etcd"):
        Lab.up(directory, name=name, backend="paper")


def test_a_lab_in_a_directory_has_no_etcd(sites: Lab) -> None:
    with pytest.raises(LabError, match=r"its store is the directory .*/mesh; no etcd"):
        sites.etcd.etcdctl("get", "/")
    with pytest.raises(ConfigError, match="store kill: the store is the directory"):
        sites.store.befall("kill", [])
