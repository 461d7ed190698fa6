"""WireGuard's INI, both ways."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.errors import MeshError
from kilo.mesh.keys import WITHHELD, PresharedKey, PublicKey
from kilo.mesh.model import Endpoint, Settings
from kilo.mesh.state import sort_networks
from kilo.mesh.topology import build_topology
from kilo.mesh.wgconf import Conf, PeerConf, parse_conf, render_conf, render_peer_conf
from tests.builders import make_key, make_preshared_key
from tests.mesh.fleets import make_node, make_peer, nets

NODES = [
    make_node(
        "a",
        location="east",
        endpoint="198.51.100.1:51820",
        internal="192.168.1.1/24",
        pods="10.2.1.0/24",
        location_ips="192.168.9.9/32",
    ),
    make_node(
        "n",
        location="home",
        endpoint="home.example.com:51821",
        internal="192.168.5.1/24 fd00:1::1/64",
        keepalive=25,
    ),
]
PEERS = [
    make_peer("laptop", "10.5.0.1/32", keepalive=10, preshared=make_preshared_key("laptop")),
    make_peer("phone", "10.5.0.2/32", endpoint="203.0.113.9:7", keepalive=15),
]


def test_a_peer_is_told_of_every_segment_and_every_other_peer() -> None:
    text = render_peer_conf(build_topology(NODES, PEERS, Settings()), "laptop")
    preshared = make_preshared_key("laptop").reveal()
    assert (
        text
        == f"""\
[Interface]

[Peer]
PublicKey = {make_key("a")}
PresharedKey = {preshared}
AllowedIPs = 10.2.1.0/24, 10.4.0.1/32, 192.168.1.1/32, 192.168.9.9/32
Endpoint = 198.51.100.1:51820
PersistentKeepalive = 10

[Peer]
PublicKey = {make_key("n")}
PresharedKey = {preshared}
AllowedIPs = 10.4.0.2/32, 192.168.5.1/32, fd00:1::1/128
Endpoint = home.example.com:51821
PersistentKeepalive = 10

[Peer]
PublicKey = {make_key("phone")}
AllowedIPs = 10.5.0.2/32
Endpoint = 203.0.113.9:7
PersistentKeepalive = 10
"""
    )


def test_a_peer_is_told_where_a_device_behind_nat_was_seen() -> None:
    seen = Endpoint.parse("203.0.113.50:1")
    witness = make_node("w", location="west", seen=[(make_key("n"), seen), (make_key("a"), seen)])
    text = render_peer_conf(build_topology([*NODES, witness], PEERS, Settings()), "phone")
    endpoints = {peer.public_key: peer.endpoint for peer in parse_conf(text).peers}
    assert endpoints[make_key("n")] == seen
    assert endpoints[make_key("a")] == NODES[0].endpoint


def test_a_peer_that_takes_no_part_has_no_configuration() -> None:
    refused = make_peer("wide", "0.0.0.0/0")
    topology = build_topology(NODES, [refused], Settings())
    for name in ("wide", "nobody"):
        with pytest.raises(MeshError, match=f"^peer {name} takes no part in the mesh$"):
            render_peer_conf(topology, name)


def test_a_withheld_preshared_key_gives_no_configuration_that_cannot_work() -> None:
    peer = make_peer("laptop", "10.5.0.1/32", preshared=WITHHELD)
    with pytest.raises(MeshError, match=r"^peer laptop: its preshared key is not known here$"):
        render_peer_conf(build_topology(NODES, [peer], Settings()), "laptop")


FULL = f"""
# by hand
[Interface]
PrivateKey = {make_preshared_key("private").reveal()}  # not kept
ListenPort = 51820
FwMark = 0x1

[PEER]
publickey={make_key("a")}
presharedkey = {make_preshared_key("a").reveal()}
AllowedIPs = 10.2.1.0/24,fd00::/64
allowedips = 10.2.2.7/24
endpoint = [2001:db8::1]:51820
PersistentKeepalive = 25
[Peer]
PublicKey = {make_key("b")}
AllowedIPs =
PersistentKeepalive = off
"""


def test_what_wg_showconf_prints_and_people_write_is_read() -> None:
    assert parse_conf(FULL) == Conf(
        listen_port=51820,
        peers=(
            PeerConf(
                public_key=make_key("a"),
                allowed_ips=nets("10.2.1.0/24 fd00::/64 10.2.2.0/24"),
                endpoint=Endpoint.parse("[2001:db8::1]:51820"),
                preshared_key=make_preshared_key("a"),
                keepalive_seconds=25,
            ),
            PeerConf(public_key=make_key("b"), allowed_ips=()),
        ),
    )


def test_nothing_is_an_empty_configuration() -> None:
    assert parse_conf("") == parse_conf("\n# nothing\n") == parse_conf("[Interface]\n") == Conf()


KEY_LINE = f"PublicKey = {make_key('a')}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ListenPort = 1", r"^line 1: is not a setting inside a section$"),
        ("[Interface]\nListenPort", r"^line 2: is not a setting inside a section$"),
        ("[Interface]\nListenPort = many", r"^line 2: ListenPort is not a number from 0 to 65535$"),
        ("[Interface]\nListenPort = 65536", r"^line 2: ListenPort is not a number"),
        ("[Interface]\nListenPort = -1", r"^line 2: ListenPort is not a number"),
        ("[Peer]\nAllowedIPs = 10.2.1.0/24", r"^line 1: PublicKey is 0 bytes long"),
        ("[Peer]\n\nPublicKey = x", r"^line 3: PublicKey is not base64$"),
        (f"[Peer]\n{KEY_LINE}\nPresharedKey = x", r"^line 3: PresharedKey is not base64$"),
        (f"[Peer]\n{KEY_LINE}\nAllowedIPs = 10.2.1.0/33", r"^line 3: AllowedIPs '10.2.1.0/33' "),
        (f"[Peer]\n{KEY_LINE}\nAllowedIPs = fd00::%x/64", r"^line 3: AllowedIPs 'fd00::%x/64' "),
        (
            f"[Peer]\n{KEY_LINE}\nAllowedIPs = x\nAllowedIPs = 10.2.1.0/24",
            r"^line 3: AllowedIPs 'x' ",
        ),
        (f"[Peer]\n{KEY_LINE}\nEndpoint = host", r"^line 3: Endpoint is not host:port$"),
        (f"[Peer]\n{KEY_LINE}\nPersistentKeepalive = on", r"^line 3: PersistentKeepalive is not a"),
    ],
)
def test_an_error_names_its_line(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_conf(text)


networks = st.sampled_from(nets("10.2.1.0/24 10.2.0.0/16 192.168.1.1/32 fd00::/64 fd00::1/128"))
endpoints = st.sampled_from(
    list(map(Endpoint.parse, ("203.0.113.1:1", "[2001:db8::1]:65535", "a.example.com:51820")))
)
peer_confs = st.builds(
    PeerConf,
    public_key=st.binary(min_size=32, max_size=32).map(PublicKey.from_bytes),
    allowed_ips=st.frozensets(networks).map(sort_networks).map(tuple),
    endpoint=st.none() | endpoints,
    preshared_key=st.none() | st.binary(min_size=32, max_size=32).map(PresharedKey),
    keepalive_seconds=st.integers(0, 65535),
)
confs = st.builds(
    Conf,
    listen_port=st.none() | st.integers(0, 65535),
    peers=st.lists(peer_confs, max_size=4).map(tuple),
)


@given(confs)
@settings(deadline=None)
def test_a_configuration_reads_what_it_writes(conf: Conf) -> None:
    assert parse_conf(render_conf(conf)) == conf


@pytest.mark.skipif(shutil.which("wg") is None, reason="wireguard-tools is not installed")
def test_wg_understands_the_syntax(tmp_path: Path) -> None:
    """``wg setconf`` reads the file before it looks for the device, which is not there."""
    good, bad = tmp_path / "good.conf", tmp_path / "bad.conf"
    peers = [make_peer("laptop", "10.5.0.1/32 fd00:5::1/128", keepalive=10)]
    nodes = [NODES[0]]  # no DNS name: wg would ask a resolver
    good.write_text(render_peer_conf(build_topology(nodes, peers, Settings()), "laptop"))
    bad.write_text(good.read_text() + "Nonsense = 1\n")
    complaints = [
        subprocess.run(
            ["wg", "setconf", "kilo-no-such", str(path)],
            capture_output=True,
            text=True,
            check=False,
        ).stderr
        for path in (good, bad)
    ]
    assert "Configuration parsing error" not in complaints[0]
    assert "Unable to modify interface" in complaints[0]
    assert "Configuration parsing error" in complaints[1]
