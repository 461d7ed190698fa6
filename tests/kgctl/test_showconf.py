"""``kgctl showconf``: what it prints is what WireGuard, kubectl and phones take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kilo.backends.documents import read_document
from kilo.keyfile import generate_private_key, public_key
from kilo.mesh.model import Endpoint, Peer
from kilo.mesh.wgconf import Conf, parse_conf
from tests.builders import make_key, make_preshared_key, make_report, make_spec, networks
from tests.kernel.wireguard_hosts import Host
from tests.kgctl.site import NODES, PHONE, Site

DEVICE = "wg0"


@pytest.fixture(autouse=True)
def _named(site: Site) -> None:
    """``b1`` is found by a name: no file format has a trouble with addresses."""
    endpoint = Endpoint(host="home.example.com", port=51821)
    site.put_node("b1", replace(NODES["b1"], endpoint=endpoint))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A namespace with a real device in it."""
    with Host("showconf") as one:
        one.sh(f"ip link add {DEVICE} type wireguard 2>/dev/null || wireguard-go {DEVICE}")
        yield one


def load(host: Host, path: Path, *, how: str = "setconf") -> Conf:
    """What the device has of the file, by the real ``wg``."""
    host.sh(f"wg set {DEVICE} listen-port 0; wg {how} {DEVICE} {path}")
    return parse_conf(host.sh(f"wg showconf {DEVICE}"))


def without_names(text: str) -> str:
    """With an address in place of a DNS name, which nothing resolves in the namespace."""
    return text.replace("home.example.com", "203.0.113.7")


def describe(conf: Conf) -> set[tuple[object, ...]]:
    """Its peers, in no order."""
    return {
        (p.public_key, frozenset(p.allowed_ips), p.endpoint, p.preshared_key, p.keepalive_seconds)
        for p in conf.peers
    }


@pytest.mark.parametrize(("kind", "name"), [("node", "a1"), ("node", "b1"), ("peer", "phone")])
def test_a_device_takes_it_as_it_is(
    site: Site, host: Host, tmp_path: Path, kind: str, name: str
) -> None:
    said = site.ask("showconf", kind, name)
    assert said.status == 0, said.err
    path = tmp_path / "conf.ini"
    path.write_text(without_names(said.out))
    expected = parse_conf(path.read_text())
    taken = load(host, path)
    assert describe(taken) == describe(expected)
    assert len(taken.peers) == 3
    if kind == "node":
        assert taken.listen_port == expected.listen_port


def test_a_leader_has_the_others_tunnels_and_the_peers(site: Site) -> None:
    preshared = make_preshared_key("phone").reveal()
    assert (
        site.ask("showconf", "node", "a1").out
        == f"""\
[Interface]
ListenPort = 51820

[Peer]
PublicKey = {make_key("b1")}
AllowedIPs = 10.2.3.0/24, 10.4.0.2/32, 192.168.2.11/32
Endpoint = home.example.com:51821

[Peer]
PublicKey = {make_key("office")}
AllowedIPs = 10.5.0.2/32, 192.168.77.0/24

[Peer]
PublicKey = {make_key("phone")}
PresharedKey = {preshared}
AllowedIPs = 10.5.0.1/32, fd00:5::1/128
"""
    )


def test_a_node_behind_nat_keeps_its_tunnels_open_and_listens_at_its_own_port(site: Site) -> None:
    conf = parse_conf(site.ask("showconf", "node", "b1").out)
    assert conf.listen_port == 51821
    assert {peer.keepalive_seconds for peer in conf.peers} == {25}


def test_with_cross_there_is_no_tunnel_within_a_location(site: Site) -> None:
    conf = parse_conf(site.ask("showconf", "node", "a2", "--mesh-granularity=cross").out)
    assert {p.public_key for p in conf.peers} == {make_key(n) for n in ("b1", "phone", "office")}


@pytest.mark.parametrize("words", [(), ("--as-peer",), ("--as-peer", "-o", "yaml")])
def test_a_node_that_does_not_lead_says_who_does(site: Site, words: tuple[str, ...]) -> None:
    said = site.ask("showconf", "node", "a2", *words)
    assert (said.status, said.out) == (1, "")
    assert said.err == ("kgctl: node a2 has no tunnel: node a1 leads its segment location:north\n")


def test_what_takes_no_part_says_why(site: Site) -> None:
    site.put_report(make_report("b1"), age_seconds=300)
    site.put_peer(replace(PHONE, name="thief", allowed_ips=networks("10.5.0.2/32")))
    for words, reason in (
        (("node", "b1"), "node b1 takes no part in the mesh: silent for 300s"),
        (("node", "x"), "node x: there is no such node in the store"),
        (("peer", "x"), "peer x: there is no such peer in the store"),
        (("peer", "thief"), f"publicKey {PHONE.public_key} refused: it is the key of Peer phone"),
    ):
        said = site.ask("showconf", *words)
        assert (said.status, said.out) == (1, "")
        assert reason in said.err


def test_a_location_becomes_a_block_that_a_device_adds(
    site: Site, host: Host, tmp_path: Path
) -> None:
    said = site.ask("showconf", "node", "b1", "--as-peer", "--allowed-ips", "10.43.0.0/16")
    path = tmp_path / "peer.ini"
    path.write_text(without_names(said.out))
    (tmp_path / "empty.ini").write_text("[Interface]\n")
    load(host, tmp_path / "empty.ini")
    assert describe(load(host, path, how="addconf")) == {
        (
            make_key("b1"),
            frozenset(networks("10.2.3.0/24", "10.4.0.2/32", "192.168.2.11/32", "10.43.0.0/16")),
            Endpoint(host="203.0.113.7", port=51821),
            None,
            25,
        )
    }


@pytest.mark.parametrize("output", ["yaml", "json"])
def test_a_location_becomes_a_peer_of_another_mesh(site: Site, output: str) -> None:
    more = ("--allowed-ips", "10.43.0.0/16,10.2.3.0/24", "--allowed-ips=10.44.0.0/16")
    said = site.ask("showconf", "node", "b1", "--as-peer", "-o", output, *more)
    document = yaml.safe_load(said.out) if output == "yaml" else json.loads(said.out)
    assert document == {
        "apiVersion": "kilo.squat.ai/v1alpha1",
        "kind": "Peer",
        "metadata": {"name": "b1"},
        "spec": {
            "publicKey": str(make_key("b1")),
            "allowedIPs": [
                "10.4.0.2/32",
                "192.168.2.11/32",
                "10.2.3.0/24",
                "10.43.0.0/16",
                "10.44.0.0/16",
            ],
            "persistentKeepalive": 25,
            "endpoint": {"dnsOrIP": {"dns": "home.example.com"}, "port": 51821},
        },
    }


def test_a_peer_becomes_the_same_peer_elsewhere(site: Site) -> None:
    said = site.ask("showconf", "peer", "phone", "--as-peer", "-o", "yaml")
    reading = read_document(yaml.safe_load(said.out), source="said")
    assert reading.problems == []
    assert [one.value for one in reading.found] == [PHONE]


def test_the_mesh_that_is_joined_takes_the_peer(site: Site, tmp_path: Path) -> None:
    """The second mesh's answer has the first one's location in it."""
    said = site.ask("showconf", "node", "b1", "--as-peer", "-o", "yaml")
    other = Site(tmp_path / "other", site._capsys)
    other.put_node("z1", make_spec(pod_subnets=networks("10.2.200.0/24")))
    other.put_report(make_report("z1", internal_ips=("192.168.200.1/24",)))
    (other.directory / "linked.yaml").write_text(said.out.replace("10.4.0.2/32", "10.44.0.2/32"))
    conf = parse_conf(other.ask("showconf", "node", "z1").out)
    assert [peer.public_key for peer in conf.peers] == [make_key("b1")]
    assert conf.peers[0].endpoint == Endpoint(host="home.example.com", port=51821)


PHONE_KEY = generate_private_key()


@pytest.fixture
def phone(site: Site) -> Peer:
    """The peer with a key of which the test has the other half."""
    peer = replace(PHONE, public_key=public_key(PHONE_KEY))
    site.put_peer(peer)
    return peer


def test_a_laptop_gets_all_but_its_key(site: Site, host: Host, tmp_path: Path) -> None:
    said = site.ask(
        "showconf", "peer", "phone", "-o", "wg-quick", "--dns", "10.43.0.10,mesh.example"
    )
    assert said.out.splitlines()[:6] == [
        "[Interface]",
        f"# PrivateKey = that of {PHONE.public_key}: only the device has it",
        "Address = 10.5.0.1/32, fd00:5::1/128",
        "MTU = 1420",
        "DNS = 10.43.0.10, mesh.example",
        "",
    ]
    path = tmp_path / f"{DEVICE}.conf"
    path.write_text(without_names(said.out))
    path.chmod(0o600)
    stripped = tmp_path / "stripped.ini"
    stripped.write_text(host.sh(f"wg-quick strip {path}"))
    assert describe(load(host, stripped)) == describe(parse_conf(path.read_text()))


def test_wg_quick_brings_the_device_up_with_its_key(
    site: Site, phone: Peer, tmp_path: Path
) -> None:
    key = tmp_path / "phone.key"
    key.write_text(PHONE_KEY.reveal() + "\n")
    said = site.ask("showconf", "peer", phone.name, "-o", "wg-quick", "--private-key", str(key))
    path = tmp_path / "wg1.conf"
    path.write_text(without_names(said.out))
    path.chmod(0o600)
    with Host("laptop") as laptop:
        laptop.sh("ip link add eth0 type veth peer name other; ip link set eth0 up")
        laptop.sh("ip addr add 203.0.113.1/24 dev eth0; ip link set other up")
        laptop.sh(f"WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go wg-quick up {path}")
        assert laptop.sh("wg show wg1 public-key").strip() == str(phone.public_key)
        assert "10.5.0.1/32" in laptop.sh("ip -brief address show wg1")
        assert "dev wg1" in laptop.sh("ip route get 10.2.3.1")
        laptop.sh(f"wg-quick down {path}")


def test_a_peer_that_is_a_network_is_told_to_choose_its_address(site: Site) -> None:
    site.put_peer(replace(PHONE, allowed_ips=networks("10.5.8.0/24")))
    said = site.ask("showconf", "peer", "phone", "-o", "wg-quick")
    assert "# Address = one inside 10.5.8.0/24, as this peer has none of its own" in said.out


def test_a_key_that_is_not_the_peers_is_refused_and_not_shown(site: Site, tmp_path: Path) -> None:
    key = tmp_path / "other.key"
    key.write_text(PHONE_KEY.reveal() + "\n")
    words = ("showconf", "peer", "phone", "-o", "wg-quick", "--private-key", str(key))
    said = site.ask(*words)
    assert (said.status, said.out) == (1, "")
    assert f"its public key is {public_key(PHONE_KEY)}, and that of peer phone is" in said.err
    assert PHONE_KEY.reveal() not in said.err


def test_a_missing_key_is_one_line(site: Site) -> None:
    said = site.ask("showconf", "peer", "phone", "--qr", "--private-key=/nowhere/key")
    assert (said.status, said.out) == (1, "")
    assert said.err == "kgctl: --private-key '/nowhere/key': No such file or directory\n"


def test_a_phone_reads_the_code(site: Site) -> None:
    segno = pytest.importorskip("segno")
    text = site.ask("showconf", "peer", "phone", "-o", "wg-quick").out
    said = site.ask("showconf", "peer", "phone", "--qr")
    assert said.status == 0
    assert read_blocks(said.out) == [list(row) for row in segno.make(text, micro=False).matrix]
    assert "without --private-key the code holds no key" in said.err


QUIET_ZONE = 4
"""Light modules on each side that a reader needs (ISO 18004)."""


def read_blocks(text: str) -> list[list[int]]:
    """The modules of a code printed in half blocks, without the quiet zone around it."""
    dark = {" ": (1, 1), "▀": (0, 1), "▄": (1, 0), "█": (0, 0)}
    rows: list[list[int]] = []
    for line in text.splitlines():
        pairs = [dark[character] for character in line]
        rows += [[upper for upper, _ in pairs], [lower for _, lower in pairs]]
    size = len(rows[0]) - 2 * QUIET_ZONE
    return [row[QUIET_ZONE:][:size] for row in rows[QUIET_ZONE:][:size]]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("host", "a1"), "'host': is not one of node, peer"),
        (("node",), "an argument is missing"),
        (("node", "a1", "-o", "yaml"), "--output 'yaml': is a Peer, and only with --as-peer"),
        (("node", "a1", "-o", "wg-quick"), "--output 'wg-quick': is for a peer"),
        (("node", "a1", "--allowed-ips=10.43.0.0/16"), "--allowed-ips: says what else a peer"),
        (("peer", "phone", "--dns=10.43.0.10"), "--dns: goes with --output=wg-quick"),
        (("peer", "phone", "--as-peer", "--qr"), "--as-peer: is part of another device's"),
        (("peer", "phone", "-o", "toml"), "possible values are wireguard, yaml, json, wg-quick"),
        (("node", "a1", "--as-peer", "--allowed-ips=10.43.0.1/16"), "10.43.0.1/16"),
    ],
)
def test_words_that_make_no_sense_are_refused(
    site: Site, words: tuple[str, ...], complaint: str
) -> None:
    said = site.ask("showconf", *words)
    assert (said.status, said.out) == (2, "")
    assert complaint in said.err
    assert len(said.err.splitlines()) == 1
