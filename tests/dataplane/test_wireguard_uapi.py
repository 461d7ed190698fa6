"""WireGuard's text protocol: what is written, what is understood, what is refused."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.dataplane.wireguard_device import (
    DeviceRecord,
    DeviceUpdate,
    Identity,
    MissingDeviceError,
    PeerRecord,
    PeerUpdate,
    RefusedError,
)
from kilo.dataplane.wireguard_uapi import (
    AllowedIPs,
    UserspaceDriver,
    decode_device,
    decode_result,
    encode_update,
)
from kilo.errors import DataplaneError
from kilo.keyfile import public_key
from kilo.mesh.keys import PresharedKey, PrivateKey, PublicKey
from kilo.mesh.model import Endpoint

SECRET = PrivateKey(b"\x40" * 32)
KEY = PublicKey.from_bytes(b"\x01" * 32)
OTHER = PublicKey.from_bytes(b"\x02" * 32)
PARKING = PublicKey.from_bytes(b"\xff" * 32)
PSK = PresharedKey(b"\x07" * 32)

ANSWER = f"""\
private_key={SECRET.raw.hex()}
listen_port=51820
fwmark=7
public_key={"01" * 32}
preshared_key={"07" * 32}
protocol_version=1
endpoint=[fe80::2%eth0]:4242
last_handshake_time_sec=1700000000
last_handshake_time_nsec=500000000
tx_bytes=12
rx_bytes=34
persistent_keepalive_interval=25
allowed_ip=10.2.1.0/24
allowed_ip=fd00:2::/64
public_key={"02" * 32}
preshared_key={"00" * 32}
endpoint=192.168.0.2:51820
errno=0

""".encode()


def test_an_update_is_written_line_by_line_in_the_order_the_device_must_see() -> None:
    update = DeviceUpdate(
        private_key=SECRET,
        listen_port=51820,
        peers=(
            PeerUpdate(
                public_key=KEY,
                only_if_there=True,
                endpoint=Endpoint(host="2001:db8::2", port=4242),
                keepalive_seconds=0,
                preshared_key=PSK,
                added_ips=(ip_network("10.2.1.0/24"), ip_network("fd00:2::/64")),
            ),
        ),
        revoked_ips=(ip_network("10.2.9.0/24"),),
        removed=(OTHER,),
    )
    assert encode_update(update, PARKING).decode() == (
        "set=1\n"
        f"private_key={'40' * 32}\n"
        "listen_port=51820\n"
        f"public_key={'01' * 32}\n"
        "update_only=true\n"
        f"preshared_key={'07' * 32}\n"
        "endpoint=[2001:db8::2]:4242\n"
        "persistent_keepalive_interval=0\n"
        "allowed_ip=10.2.1.0/24\n"
        "allowed_ip=fd00:2::/64\n"
        f"public_key={'ff' * 32}\n"
        "allowed_ip=10.2.9.0/24\n"
        f"public_key={'ff' * 32}\n"
        "remove=true\n"
        f"public_key={'02' * 32}\n"
        "remove=true\n"
        "\n"
    )


def test_an_answer_is_read_with_public_keys_only_and_endpoints_without_scope() -> None:
    assert decode_device(ANSWER, public_key) == DeviceRecord(
        public_key=public_key(SECRET),
        listen_port=51820,
        peers=(
            PeerRecord(
                public_key=KEY,
                preshared_key=PSK,
                endpoint=Endpoint(host="fe80::2", port=4242),
                keepalive_seconds=25,
                allowed_ips=frozenset({ip_network("10.2.1.0/24"), ip_network("fd00:2::/64")}),
                latest_handshake=1700000000.5,
                received_bytes=34,
                sent_bytes=12,
            ),
            PeerRecord(public_key=OTHER, endpoint=Endpoint(host="192.168.0.2", port=51820)),
        ),
    )


def test_what_was_said_of_allowed_ips_before_is_not_read_again() -> None:
    known: AllowedIPs = {}
    first = decode_device(ANSWER, public_key, known)
    (lines,) = known
    second = decode_device(ANSWER.replace(b"rx_bytes=34", b"rx_bytes=35"), public_key, known)
    assert second.peers[0].received_bytes == 35
    assert second.peers[0].allowed_ips is first.peers[0].allowed_ips is known[lines]


def test_of_what_was_said_before_only_the_last_is_kept() -> None:
    known: AllowedIPs = {}
    decode_device(ANSWER, public_key, known)
    other = decode_device(ANSWER.replace(b"10.2.1.0/24", b"10.2.9.0/24"), public_key, known)
    assert other.peers[0].allowed_ips == {ip_network("10.2.9.0/24"), ip_network("fd00:2::/64")}
    assert list(known.values()) == [other.peers[0].allowed_ips]


def test_allowed_ips_need_not_follow_each_other() -> None:
    answer = (
        f"public_key={'01' * 32}\nallowed_ip=10.2.1.0/24\nrx_bytes=1\nallowed_ip=fd00:2::/64\n"
        f"public_key={'02' * 32}\nallowed_ip=10.2.2.0/24\nerrno=0\n\n"
    )
    first, second = decode_device(answer.encode(), public_key).peers
    assert first.allowed_ips == {ip_network("10.2.1.0/24"), ip_network("fd00:2::/64")}
    assert second.allowed_ips == {ip_network("10.2.2.0/24")}


def test_a_device_without_a_private_key_has_no_public_one() -> None:
    assert decode_device(b"listen_port=7\nerrno=0\n\n", public_key) == DeviceRecord(listen_port=7)


@pytest.mark.parametrize("number", ["98", "-98"])
def test_an_error_number_of_either_sign_is_the_systems_reason(number: str) -> None:
    with pytest.raises(RefusedError, match="Address already in use"):
        decode_result(f"errno={number}\n\n".encode())


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", "has no result"),
        (b"\n\n", "has no result"),
        (b"listen_port=1\n\n", "has no result"),
        (b"errno=\n\n", "no number"),
        (b"errno=zero\n\n", "no number"),
        (b"errno=2147483648\n\n", "no number"),
        (b"nonsense\nerrno=0\n\n", "without '='"),
        (b"\xff\xfe=1\nerrno=0\n\n", "is not text"),
        (b"listen_port=70000\nerrno=0\n\n", "a listen_port that is none"),
        (b"listen_port=" + b"9" * 5000 + b"\nerrno=0\n\n", "a listen_port that is none"),
        (b"private_key=4040\nerrno=0\n\n", "a private_key that is none"),
        (b"public_key=xyz\nerrno=0\n\n", "a public_key that is none"),
        (b"public_key=" + b"01" * 32 + b"\nallowed_ip=10.2.1.1/24\nerrno=0\n\n", "a allowed_ip"),
        (b"public_key=" + b"01" * 32 + b"\nendpoint=x:1\nerrno=0\n\n", "a endpoint that is none"),
    ],
)
def test_a_broken_answer_is_an_error_that_does_not_quote_it(answer: bytes, complaint: str) -> None:
    with pytest.raises(DataplaneError, match=complaint) as caught:
        decode_device(answer, public_key)
    assert "4040" not in str(caught.value)
    assert caught.value.__cause__ is None


NAMES = sorted({line.split("=")[0] for line in ANSWER.decode().split()} | {"", "bogus"})
VALUES = st.text(max_size=70) | st.integers().map(str) | st.ip_addresses().map(str)


def decode_or_refuse(answer: bytes) -> None:
    with suppress(DataplaneError):
        decode_device(answer, public_key)


@settings(deadline=None)
@given(st.integers(0, len(ANSWER)), st.binary(max_size=8))
def test_a_truncated_or_damaged_answer_is_read_or_refused(cut: int, damage: bytes) -> None:
    decode_or_refuse(ANSWER[:cut] + damage)
    decode_or_refuse(ANSWER[:cut] + damage + ANSWER[cut + len(damage) :])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=12))
def test_any_lines_are_read_or_refused(lines: list[tuple[str, str]]) -> None:
    text = "".join(f"{name}={value}\n" for name, value in lines)
    decode_or_refuse((text + "errno=0\n\n").encode("utf-8", "surrogatepass"))


class Impostor:
    """A socket that takes one request and answers what it was told to, then hangs up."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._answer = answer
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener:
            connection.recv(65536)
            connection.sendall(self._answer)


def make_driver(path: Path) -> UserspaceDriver:
    return UserspaceDriver(path, Identity(SECRET, public_key(SECRET)))


def test_an_answer_is_read_from_a_socket_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "kilo0.sock"
    Impostor(path, ANSWER)
    assert make_driver(path).read() == decode_device(ANSWER, public_key)


def test_a_device_that_hangs_up_half_way_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "kilo0.sock"
    Impostor(path, ANSWER[:100])
    with pytest.raises(MissingDeviceError, match=r"no WireGuard answers at .*kilo0\.sock"):
        make_driver(path).read()


def test_a_socket_that_nobody_listens_on_is_a_missing_device(tmp_path: Path) -> None:
    path = tmp_path / "kilo0.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
    with pytest.raises(MissingDeviceError):
        make_driver(path).read()
