"""The last good snapshot on disk: all of the mesh, none of its secrets."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_interface
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from kilo.errors import BackendError
from kilo.lastgood import SnapshotFile
from kilo.mesh.keys import WITHHELD, PresharedKey, PublicKey
from kilo.mesh.model import (
    Encapsulation,
    Endpoint,
    Granularity,
    IPInterface,
    IPNetwork,
    Node,
    NodeReport,
    NodeSpec,
    PartialSettings,
    Peer,
    Snapshot,
)
from tests.builders import make_peer, make_preshared_key, make_report, make_spec

NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
TAILS = st.binary(min_size=31, max_size=31)
KEYS = TAILS.map(lambda tail: PublicKey.from_bytes(b"\x00" + tail))
PRESHARED_KEYS = TAILS.map(lambda tail: PresharedKey(b"\x01" + tail))  # never a public key's bytes
HOSTS = st.sampled_from(["198.51.100.7", "2001:db8::7", "host.example.com"])
ENDPOINTS = st.builds(Endpoint, host=HOSTS, port=st.integers(1, 65535))
NETWORKS: st.SearchStrategy[IPNetwork] = st.one_of(
    st.integers(0, 255).map(lambda n: IPv4Network(f"10.2.{n}.0/24")),
    st.integers(0, 255).map(lambda n: IPv6Network(f"fd00:a:0:{n:x}::/64")),
)
NETWORK_TUPLES = st.lists(NETWORKS, unique=True, max_size=3).map(tuple)
INTERFACES: st.SearchStrategy[tuple[IPInterface, ...]] = st.sampled_from(
    [
        (),
        (ip_interface("192.168.1.11/24"),),
        (ip_interface("fd00:1::11/64"),),
        (ip_interface("192.168.1.11/24"), ip_interface("fd00:1::11/64")),
    ]
)
SPECS = st.builds(
    NodeSpec,
    location=st.sampled_from(["", "north", "Süd 1"]),
    endpoint=st.none() | ENDPOINTS,
    internal_ips=st.none() | INTERFACES,
    leader=st.booleans(),
    persistent_keepalive_seconds=st.integers(0, 65535),
    allowed_location_ips=NETWORK_TUPLES,
    pod_subnets=NETWORK_TUPLES,
    public_key=st.none() | KEYS,
)
PEERS = st.builds(
    Peer,
    name=NAMES,
    public_key=KEYS,
    allowed_ips=st.lists(NETWORKS, unique=True, min_size=1, max_size=3).map(tuple),
    persistent_keepalive_seconds=st.integers(0, 65535),
    preshared_key=st.none() | PRESHARED_KEYS | st.just(WITHHELD),
    endpoint=st.none() | ENDPOINTS,
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "subnets": st.sampled_from(
            [
                (IPv4Network("10.4.0.0/16"),),
                (IPv4Network("10.4.0.0/16"), IPv6Network("fd00:4::/64")),
            ]
        ),
        "granularity": st.sampled_from(Granularity),
        "port": st.integers(1, 65535),
        "mtu": st.none() | st.integers(1280, 9000),
        "encapsulation": st.sampled_from(Encapsulation),
        "service_cidrs": NETWORK_TUPLES,
        "resync_period_seconds": st.integers(1, 10**6).map(lambda n: n / 1000),
    },
)


@st.composite
def nodes(draw: st.DrawFn, name: str) -> Node:
    report = st.builds(
        NodeReport,
        name=st.just(name),
        public_key=KEYS,
        endpoint=st.none() | ENDPOINTS,
        internal_ips=INTERFACES,
        wireguard_ips=INTERFACES,
        discovered_endpoints=st.dictionaries(KEYS, ENDPOINTS, max_size=2).map(
            lambda found: tuple(sorted(found.items()))
        ),
        granularity=st.none() | st.sampled_from(Granularity),
    )
    return Node(name=name, spec=draw(SPECS), report=draw(st.none() | report))


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    names = sorted(draw(st.lists(NAMES, unique=True, max_size=4)))
    peers = draw(st.lists(PEERS, unique_by=lambda peer: peer.name, max_size=3))
    found = tuple(draw(nodes(name)) for name in names)
    chosen: PartialSettings = draw(SETTINGS)  # type: ignore[assignment]  # its keys are the TypedDict's
    return Snapshot(
        nodes=found,
        peers=tuple(sorted(peers, key=lambda peer: peer.name)),
        settings=chosen,
        last_seen=_draw_stamps(draw, found),
    )


def _draw_stamps(draw: st.DrawFn, found: tuple[Node, ...]) -> Mapping[str, int]:
    reporting = [node.name for node in found if node.report is not None]
    return {name: draw(st.integers(0, 2**32)) for name in reporting if draw(st.booleans())}


def withhold(snapshot: Snapshot) -> Snapshot:
    """What is expected back: a preshared key comes back as withheld."""
    return replace(
        snapshot,
        peers=tuple(
            replace(peer, preshared_key=WITHHELD) if peer.preshared_key else peer
            for peer in snapshot.peers
        ),
    )


@settings(deadline=None)
@given(snapshot=snapshots())
def test_everything_but_the_secrets_comes_back(
    tmp_path_factory: pytest.TempPathFactory, snapshot: Snapshot
) -> None:
    path = tmp_path_factory.mktemp("snapshot") / "snapshot.json"
    SnapshotFile(path).save(snapshot)
    loaded = SnapshotFile(path).load()

    assert loaded == withhold(snapshot)
    assert loaded is not None
    assert dict(loaded.last_seen) == dict(snapshot.last_seen)
    for peer in snapshot.peers:
        if isinstance(peer.preshared_key, PresharedKey):
            assert peer.preshared_key.reveal() not in path.read_text()
            assert peer.preshared_key.raw.hex() not in path.read_text()


SAMPLE = Snapshot(
    nodes=(Node(name="a", spec=make_spec(location="north"), report=make_report("a")),),
    peers=(make_peer("phone", preshared=True),),
    last_seen={"a": 1700000000},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kilo" / "snapshot.json"


def test_the_file_holds_no_secret_and_is_the_owners_alone(path: Path) -> None:
    SnapshotFile(path).save(SAMPLE)

    assert make_preshared_key("phone").reveal() not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_no_file_is_no_snapshot_and_no_message(path: Path) -> None:
    with capture_logs() as logs:
        assert SnapshotFile(path).load() is None
    assert logs == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"items": {}}',
        b'{"items": [1]}',
        b'{"items": [{"kind": "Pod", "apiVersion": "v1"}]}',
        b'{"items": [], "withheldPresharedKeys": 5}',
        b'{"items": [], "withheldPresharedKeys": [[]]}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:24]),
)
def test_a_broken_or_foreign_file_is_one_message_and_no_snapshot(
    path: Path, content: bytes
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with capture_logs() as logs:
        assert SnapshotFile(path).load() is None
    assert [log["event"] for log in logs] == ["snapshot unusable"]
    assert logs[0]["path"] == str(path)


def test_a_truncated_file_is_no_snapshot(path: Path) -> None:
    SnapshotFile(path).save(SAMPLE)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert SnapshotFile(path).load() is None


def test_a_folder_in_the_place_of_the_file_is_no_snapshot(path: Path) -> None:
    path.mkdir(parents=True)

    assert SnapshotFile(path).load() is None


def test_the_file_is_replaced_whole_or_not_at_all(path: Path) -> None:
    file = SnapshotFile(path)
    file.save(SAMPLE)
    reader = path.open()
    file.save(Snapshot())

    assert "phone" in reader.read()
    assert "phone" not in path.read_text()
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    reader.close()


def test_a_file_that_cannot_be_written_is_an_error_that_names_it(path: Path) -> None:
    file = SnapshotFile(path)
    file.save(SAMPLE)
    path.with_suffix(".tmp").mkdir()

    with pytest.raises(BackendError, match=str(path)):
        file.save(Snapshot())
    assert file.load() == withhold(SAMPLE)


def test_a_snapshot_that_was_removed_is_gone_and_removing_it_again_is_no_error(
    path: Path,
) -> None:
    file = SnapshotFile(path)
    file.save(SAMPLE)
    file.remove()
    file.remove()

    assert file.load() is None
