"""A whole mesh, real agents, real WireGuard, real packets: what the project promises its users.

One lab serves the tests of this module; each leaves it as whole as it found it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import permutations
from pathlib import Path

import pytest

from kilo.keyfile import generate_private_key, public_key
from kilo.lab.host import Host
from kilo.lab.lab import Lab
from tests.lab.conftest import write_directory
from tests.lab.meshes import (
    LAB,
    MESH,
    ask,
    check_transfer,
    count_writes,
    is_ready,
    make_peer,
    no_loss,
    read_documents,
    read_network,
    read_sessions,
    set_granularity,
    sum_metric,
    wait_each,
    wait_ready,
    wait_until,
    write_documents,
    write_file,
)

AGENTS = ("a1", "a2", "b1", "home")
PAIRS = tuple(permutations(AGENTS, 2))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = write_directory(tmp_path_factory.mktemp("mesh") / "lab", LAB, MESH)
    with Lab.up(directory, name=f"test-{os.getpid()}-mesh", agents=False) as lab:
        for name in AGENTS:
            lab.host(name).start_agent("--clean-up=false", "--log-level=all")
        yield lab


@pytest.fixture
def mesh(lab: Lab) -> Lab:
    """The lab, everything reachable and every agent ready."""
    for name in AGENTS:
        wait_ready(lab.host(name))
    lab.wait_reachable()
    return lab


@contextmanager
def no_reset(*hosts: Host) -> Iterator[None]:
    """Fails if a session that a host has is gone afterwards, or was counted as reset."""
    before = {host.name: read_sessions(host) for host in hosts}
    counted = {host.name: count_resets(host) for host in hosts}
    yield
    for host in hosts:
        after = read_sessions(host)
        assert before[host.name].keys() <= after.keys(), f"{host.name} has lost a session"
        assert all(after[key] >= stamp for key, stamp in before[host.name].items())
        assert count_resets(host) == counted[host.name]


def count_resets(host: Host) -> float:
    return sum_metric(host.metrics(), "kilo_wireguard_session_resets_total")


def has_peer(host: Host, key: str) -> bool:
    return key in host.run(["wg", "show", "kilo0", "peers"]).split()


@pytest.mark.parametrize("granularity", ["full", "cross", "location"])
def test_everything_reaches_everything_with_every_granularity(mesh: Lab, granularity: str) -> None:
    set_granularity(mesh, AGENTS, granularity)
    result = mesh.wait_reachable()
    assert {"a1", "a2", "b1", "home", "laptop"} == set(result.sources)
    kinds = {target.kind for targets in result.answered.values() for target in targets}
    assert {"internal", "pod", "wireguard", "peer", "device"} <= kinds
    versions = {t.address.version for targets in result.answered.values() for t in targets}
    assert versions == {4, 6}
    assert not [line for line in mesh.host("b1").log_lines() if line.get("msg") == "failure"]


@pytest.mark.parametrize(
    ("source", "target", "address"),
    [
        ("a2", "b1", "10.2.21.1"),
        ("a2", "b1", "fd00:a:0:21::1"),
        ("home", "a2", "10.2.12.1"),
        ("a2", "home", "fd00:a:0:41::1"),
        ("laptop", "a2", "10.2.12.1"),
        ("b1", "laptop", "10.5.0.1"),
    ],
)
def test_a_tcp_transfer_arrives_whole(mesh: Lab, source: str, target: str, address: str) -> None:
    check_transfer(mesh.host(source), mesh.host(target), address)


def test_a_peer_that_comes_changes_and_goes_touches_nothing_else(mesh: Lab) -> None:
    hosts = [mesh.host(name) for name in ("a1", "b1", "home")]
    key = public_key(generate_private_key()).text
    with no_reset(*hosts), no_loss(mesh, PAIRS):
        path = write_file(mesh, "guest.yaml", make_peer("aaa-guest", key, "10.5.0.9/32"))
        wait_each(hosts, lambda host: has_peer(host, key), "lets the peer in")
        path.write_text(make_peer("aaa-guest", key, "10.5.0.10/32", "fd00:5::a/128"))
        wait_each(hosts, lambda host: "10.5.0.9/32" not in read_allowed_ips(host), "changed it")
        path.unlink()
        wait_each(hosts, lambda host: not has_peer(host, key), "let the peer go")


def test_a_node_that_comes_and_goes_cuts_nobody_off_though_all_are_renumbered(mesh: Lab) -> None:
    """It sorts first, so every WireGuard address moves (spec section 4)."""
    newcomer = mesh.host("newcomer")
    hosts = [mesh.host(name) for name in ("a1", "b1", "home")]
    node = (
        "{apiVersion: kilo.squat.ai/v1alpha1, kind: Node, metadata: {name: newcomer},"
        " spec: {location: aaa, internalIP: '-'}}"
    )
    with no_reset(*hosts), no_loss(mesh, PAIRS):
        path = write_file(mesh, "newcomer.yaml", node)
        newcomer.start_agent("--clean-up-interface")
        wait_ready(newcomer)
        key = newcomer.run(["wg", "show", "kilo0", "public-key"]).strip()
        wait_each(hosts, lambda host: has_peer(host, key), "meets the newcomer")
        wait_until(
            lambda: newcomer.succeeds(["ping", "-c1", "-W1", "10.2.12.1"]), "the newcomer is in"
        )
        newcomer.kill_agent(signal.SIGTERM)
        path.unlink()
        wait_each(hosts, lambda host: not has_peer(host, key), "let the newcomer go")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_loses_no_packet_and_writes_nothing(mesh: Lab, number: signal.Signals) -> None:
    hosts = [mesh.host(name) for name in ("a1", "a2", "b1")]
    with no_reset_over_restart(*hosts), no_loss(mesh, PAIRS):
        for host in hosts:
            host.kill_agent(number)
            host.start_agent("--clean-up=false", "--log-level=all")
            wait_ready(host)
            assert count_writes(host) == 0, host.log_lines()[-20:]


@contextmanager
def no_reset_over_restart(*hosts: Host) -> Iterator[None]:
    """Of counters a restart leaves nothing, but the device's handshakes tell."""
    before = {host.name: read_sessions(host) for host in hosts}
    yield
    for host in hosts:
        assert before[host.name].keys() <= read_sessions(host).keys()


def test_what_is_deleted_by_hand_is_back_within_two_seconds(mesh: Lab) -> None:
    host = mesh.host("a1")
    peer = mesh.host("b1").run(["wg", "show", "kilo0", "public-key"]).strip()
    address = next(
        word
        for word in host.run(["ip", "-br", "-4", "address", "show", "kilo0"]).split()
        if "/" in word
    )
    # Each: what deletes it, and what shows that it is there.
    for deletion, sight in (
        (
            ["ip", "route", "del", "10.2.21.0/24"],
            ["ip", "route", "show", "10.2.21.0/24", "dev", "kilo0"],
        ),
        (
            ["ip", "-6", "route", "del", "fd00:a:0:21::/64"],
            ["ip", "-6", "route", "show", "fd00:a:0:21::/64", "dev", "kilo0"],
        ),
        (["nft", "delete", "table", "inet", "kilo"], ["nft", "list", "table", "inet", "kilo"]),
        (
            ["nft", "flush", "chain", "inet", "kilo", "postrouting"],
            ["sh", "-c", "nft list chain inet kilo postrouting | grep masquerade"],
        ),
        (
            ["wg", "set", "kilo0", "peer", peer, "remove"],
            ["sh", "-c", f"wg show kilo0 peers | grep -F {peer}"],
        ),
        (
            ["ip", "address", "del", address, "dev", "kilo0"],
            ["sh", "-c", f"ip address show kilo0 | grep -F {address}"],
        ),
        (
            ["ip", "link", "set", "kilo0", "down"],
            ["sh", "-c", "ip link show up dev kilo0 | grep kilo0"],
        ),
    ):
        host.run(deletion)
        seconds = wait_until(partial(shows, host, sight), f"back after {deletion}")
        assert seconds < 2.0, f"{deletion}: back after {seconds:.1f} s"
    mesh.wait_reachable()


def shows(host: Host, sight: list[str]) -> bool:
    done = host.box.call(sight)
    return done.returncode == 0 and bool(done.stdout.strip())


def test_what_others_made_is_never_touched(mesh: Lab) -> None:
    host = mesh.host("a1")
    made = (
        ["ip", "route", "add", "10.99.0.0/16", "via", "192.168.1.12", "proto", "static"],
        ["ip", "route", "add", "10.98.0.0/16", "via", "192.168.1.12", "table", "1107"],
        ["ip", "rule", "add", "from", "10.97.0.0/16", "lookup", "1107", "priority", "900"],
        ["nft", "add", "table", "inet", "mine"],
        ["ip", "address", "add", "192.168.77.1/32", "dev", "kube-bridge"],
    )
    for command in made:
        host.run(command)
    before = {one: text for one, text in read_network(host).items() if "link" not in one}
    host.run(["ip", "route", "del", "10.2.21.0/24"])
    wait_until(
        lambda: shows(host, ["ip", "route", "show", "10.2.21.0/24", "dev", "kilo0"]),
        "a pass was made",
    )
    after = {one: text for one, text in read_network(host).items() if "link" not in one}
    assert {one: sorted(text.splitlines()) for one, text in after.items()} == {
        one: sorted(text.splitlines()) for one, text in before.items()
    }
    for command in made:
        host.run(
            [{"add": "del"}.get(word, word) if word != "table" else word for word in command]
            if command[0] == "ip"
            else ["nft", "delete", "table", "inet", "mine"]
        )


def test_resyncs_and_others_heartbeats_write_nothing(mesh: Lab) -> None:
    documents = read_documents(mesh)
    documents[0]["spec"]["resyncPeriod"] = "500ms"
    write_documents(mesh, documents)
    host = mesh.host("b1")
    settled = count_passes(host) + 2
    wait_until(lambda: count_passes(host) > settled, "the new period is in force")
    writes, first = count_writes(host), count_passes(host)
    wait_until(lambda: count_passes(host) >= first + 3, "three resyncs")
    assert count_writes(host) == writes

    documents[0]["spec"]["resyncPeriod"] = "1h"
    write_documents(mesh, documents)
    report = mesh.mesh / "reports" / "a1.yaml"
    wait_until(lambda: not is_passing(host), "no more resyncs")
    before, stamp = count_passes(host), report.read_text()
    wait_until(lambda: report.read_text() != stamp, "a1 has checked in")
    other = mesh.mesh / "reports" / "a2.yaml"
    stamp = other.read_text()
    wait_until(lambda: other.read_text() != stamp, "a2 has checked in")
    assert count_passes(host) == before
    del documents[0]["spec"]["resyncPeriod"]
    write_documents(mesh, documents)


def is_passing(host: Host) -> bool:
    """Whether passes are still being made."""
    before = count_passes(host)
    time.sleep(4)  # eight times the period that was in force
    return count_passes(host) > before


def count_passes(host: Host) -> float:
    return sum_metric(host.metrics(), "kilo_reconciles_total")


def read_allowed_ips(host: Host) -> str:
    return host.run(["wg", "show", "kilo0", "allowed-ips"])


def test_the_directory_may_go_away(mesh: Lab) -> None:
    """For longer than a silent node is given; an agent that starts meanwhile has its snapshot."""
    away = mesh.mesh.with_name("away")
    hosts = [mesh.host(name) for name in AGENTS]
    before = {host.name: count_writes(host) for host in hosts}
    with no_loss(mesh, PAIRS):
        mesh.mesh.rename(away)
        try:
            wait_each(hosts, lambda host: ask(host, "/ready") == 503, "says so")
            for host in hosts:
                assert str(mesh.mesh) in host.http("/ready").text
                assert sum_metric(host.metrics(), "kilo_store_up") == 0
            restarted = mesh.host("b1")
            restarted.kill_agent(signal.SIGKILL)
            restarted.start_agent("--clean-up=false", "--log-level=all")
            wait_until(lambda: ask(restarted, "/metrics") == 200, "b1 answers")
            wait_until(lambda: restarted.metrics()["kilo_ready"] == 1, "b1 has its snapshot")
            time.sleep(65)  # longer than any node may be silent while the store can be heard
            for host in hosts:
                writes = 0.0 if host is restarted else before[host.name]
                assert count_writes(host) == writes, host.name
        finally:
            away.rename(mesh.mesh)
        for host in hosts:
            wait_ready(host)
    for host in hosts:
        writes = 0.0 if host is restarted else before[host.name]
        assert count_writes(host) == writes, host.name


def test_a_bad_document_is_named_once_and_disturbs_nothing(mesh: Lab) -> None:
    hosts = [mesh.host(name) for name in AGENTS]
    node_key = mesh.host("a1").run(["wg", "show", "kilo0", "public-key"]).strip()
    key = public_key(generate_private_key()).text
    bad = {
        "bad-yaml.yaml": ("kind: [", ["bad-yaml.yaml"]),
        "bad-kind.yaml": (
            "{apiVersion: kilo.squat.ai/v1alpha1, kind: Pear, metadata: {name: x}, spec: {}}",
            ["bad-kind.yaml", "kind", "Pear"],
        ),
        "bad-key.yaml": (
            make_peer("bad-key", "short", "10.5.1.1/32"),
            ["bad-key.yaml", "Peer bad-key", "spec.publicKey", "short"],
        ),
        "bad-cidr.yaml": (
            make_peer("bad-cidr", key, "10.5.1.300/32"),
            ["bad-cidr.yaml", "Peer bad-cidr", "spec.allowedIPs", "10.5.1.300/32"],
        ),
        "bad-node.yaml": (
            make_peer("bad-node", key, "10.2.11.0/25"),
            ["Peer bad-node", "spec.allowedIPs", "10.2.11.0/25"],
        ),
        "bad-all.yaml": (
            make_peer("bad-all", public_key(generate_private_key()).text, "0.0.0.0/0"),
            ["Peer bad-all", "spec.allowedIPs", "0.0.0.0/0"],
        ),
        # Of two documents with one name the first by path counts.
        "twin.yaml": (make_peer("laptop", key, "10.5.1.2/32"), ["laptop", "metadata.name"]),
        "bad-thief.yaml": (
            make_peer("bad-thief", node_key, "10.5.1.3/32"),
            ["Peer bad-thief", "publicKey", node_key],
        ),
        "bad-empty.yaml": ("", ["bad-empty.yaml"]),
    }
    writes = {host.name: count_writes(host) for host in hosts}
    with no_reset(*[host for host in hosts if host.name != "a2"]), no_loss(mesh, PAIRS):
        for name, (text, _) in bad.items():
            write_file(mesh, name, text)
        huge = write_file(mesh, "bad-huge.yaml", "")
        with huge.open("wb") as file:
            file.truncate(50 << 20)
        for words in (*(words for _, words in bad.values()), ["bad-huge.yaml"]):
            wait_each(hosts, partial(has_told, words), f"names {words}")
        for host in hosts:
            lines = list_told(host)
            assert len(lines) == len(set(lines)), "each is told once"
        for host in hosts:
            assert count_writes(host) == writes[host.name]
        for name in (*bad, huge.name):
            (mesh.mesh / name).unlink()
        wait_each(hosts, lambda host: host.metrics()["kilo_invalid_objects"] == 0, "is well")
        wait_each(hosts, lambda host: host.metrics()["kilo_refused_claims"] == 0, "is well")


def list_told(host: Host) -> list[str]:
    """What its agent found wrong in the mesh directory or refused."""
    told = [line for line in host.log_lines() if line.get("msg") in ("problem", "refusal")]
    return [str(line["detail"]) for line in told]


def has_told(words: list[str], host: Host) -> bool:
    return any(all(word in line for word in words) for line in list_told(host))


def test_no_secret_is_to_be_found_anywhere(mesh: Lab) -> None:
    host = mesh.host("b1")
    preshared = generate_private_key()
    document = make_peer("aaa-secret", public_key(generate_private_key()).text, "10.5.0.77/32")
    path = write_file(mesh, "secret.yaml", f"{document}  presharedKey: {preshared.reveal()}\n")
    broken = write_file(
        mesh,
        "secret2.yaml",
        f"{document.replace('aaa', 'bbb')}  presharedKey: {preshared.reveal()}x\n",
    )
    try:
        wait_until(lambda: "10.5.0.77/32" in read_allowed_ips(host), "in")
        wait_until(lambda: host.metrics()["kilo_invalid_objects"] == 1, "the broken one is told")
        secrets = [preshared.reveal().rstrip("="), preshared.raw.hex()]
        for name in AGENTS:
            private = (mesh.host(name).disk / "key").read_text().strip()
            secrets.append(private.rstrip("="))
        dry = host.box.call(
            [
                "/bin/sh",
                "-c",
                f"{' '.join(host.agent_command('--dry-run', '--log-level=all'))} 2>&1",
            ]
        )
        texts = {
            "log": host.log.read_text(),
            "metrics": host.http("/metrics").text,
            "graph": host.http("/graph?format=dot").text,
            "ready": host.http("/ready").text,
            "snapshot": (host.disk / "snapshot.json").read_text(),
            "dry run": dry.stdout,
            "reports": "".join(p.read_text() for p in (mesh.mesh / "reports").iterdir()),
        }
        assert "aaa-secret" in texts["snapshot"]
        for where, text in texts.items():
            assert text, where
            assert not [one for one in secrets if one in text], where
    finally:
        path.unlink()
        broken.unlink()
    wait_until(lambda: "10.5.0.77/32" not in read_allowed_ips(host), "out")


def test_a_dry_run_prints_what_would_change_and_changes_nothing(mesh: Lab) -> None:
    host = mesh.host("newcomer")
    before = read_network(host)
    printed = host.run(host.agent_command("--dry-run"))
    assert "+ link kilo0" in printed
    assert "+ route 10.2.12.0/24" in printed
    assert read_network(host) == before
    assert not (host.disk / "key").exists() or host.agents() == []
    assert not (mesh.mesh / "reports" / "newcomer.yaml").exists()
    assert "nothing to change" in mesh.host("b1").run(mesh.host("b1").agent_command("--dry-run"))


def test_stopping_with_clean_up_leaves_the_host_as_it_was(mesh: Lab) -> None:
    host = mesh.host("newcomer")
    before = read_network(host)
    host.start_agent("--clean-up=true")
    wait_ready(host)
    assert read_network(host) != before
    host.kill_agent(signal.SIGTERM)
    assert read_network(host) == before
    assert not (mesh.mesh / "reports" / "newcomer.yaml").exists()


def test_uninstall_removes_what_a_killed_agent_left(mesh: Lab) -> None:
    host = mesh.host("newcomer")
    before = read_network(host)
    host.start_agent()
    wait_ready(host)
    refused = host.box.call(host.agent_command("uninstall"))
    assert refused.returncode == 1
    host.kill_agent(signal.SIGKILL)
    key = host.disk / "key"
    kept = key.read_text()
    key.write_text("not a key\n")
    printed = host.run([*host.agent_command("uninstall"), "--backend=kubernetes"])
    assert "- link kilo0" in printed, "a store that cannot be had keeps no host from being clean"
    key.write_text(kept)
    host.run(host.agent_command("uninstall"))
    assert read_network(host) == before


def test_a_leader_that_dies_is_replaced_and_all_others_stay_reachable(mesh: Lab) -> None:
    """The whole host: its tunnel goes with it."""
    assert is_ready(mesh.host("a1"))
    mesh.kill("a1")
    try:
        wait_until(lambda: mesh.host("a2").metrics()["kilo_leader"] == 1, "a2 leads", seconds=120)
    finally:
        mesh.start("a1")
    wait_ready(mesh.host("a1"))
    mesh.wait_reachable(120)
    assert Path(mesh.mesh / "reports" / "a1.yaml").exists()
