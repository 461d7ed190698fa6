"""Connections that dawdle, speak no TLS or come at the end, and certificates on disk."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from kilo.backends.memory import MemoryBackend
from kilo.certificate import ServingCertificate
from kilo.errors import ConfigError
from kilo.lab.certificates import Authority
from kilo.serving import Limits, Request, Server, say
from kilo.webhook import LIMITS
from tests.webhook.reviews import LAPTOP, make_document, make_review
from tests.webhook.site import (
    ANSWER_SECONDS,
    AUTHORITY,
    HOST,
    Site,
    converse,
    eventually,
    make_config,
    trust,
    working,
)

GOOD = make_review(make_document(LAPTOP))


# Connections


async def test_who_does_not_speak_tls_is_hung_up_on(site: Site) -> None:
    with contextlib.suppress(ConnectionError):
        port = site.webhook.server.port
        received = await asyncio.to_thread(converse, port, b"GET / HTTP/1.0\r\n\r\n", None)
        assert b"HTTP/1" not in received
    assert (await site.post(GOOD)).status == 200


async def test_clients_that_do_not_shake_hands_hold_up_no_other(site: Site) -> None:
    address = (HOST, site.webhook.server.port)
    with contextlib.ExitStack() as stack:
        for _ in range(LIMITS.connections):
            stack.enter_context(socket.create_connection(address, timeout=ANSWER_SECONDS))
        assert (await site.post(GOOD)).status == 200


@pytest.mark.parametrize("beginning", [b"", b"\x16\x03\x01", b"POST /validate HTTP/1.1\r\n"])
def test_a_client_that_dawdles_is_cut_off_in_and_after_the_handshake(
    tmp_path: Path, beginning: bytes
) -> None:
    config = make_config(tmp_path)
    server = Server(
        f"{HOST}:0",
        lambda _: say("ok"),
        security=ServingCertificate(config.cert_file, config.key_file),
        limits=Limits(request_seconds=0.3, body_bytes=100),
    )
    with server, socket.create_connection((HOST, server.port), timeout=ANSWER_SECONDS) as plain:
        client: socket.socket = plain
        if beginning.startswith(b"POST"):
            client = trust(AUTHORITY).wrap_socket(plain, server_hostname=HOST)
        client.sendall(beginning)
        with contextlib.suppress(ConnectionError):
            assert client.recv(1) == b""


def test_a_stop_waits_for_the_request_that_is_being_answered(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def respond(_request: Request) -> Any:
        begun.set()
        assert go_on.wait(ANSWER_SECONDS)
        return say("done")

    server = Server(f"{HOST}:0", respond, limits=Limits(drain_seconds=ANSWER_SECONDS))
    server.start()
    with socket.create_connection((HOST, server.port), timeout=ANSWER_SECONDS) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert begun.wait(ANSWER_SECONDS)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        go_on.set()
        stopping.join(ANSWER_SECONDS)
        assert not stopping.is_alive()
        with client.makefile("rb") as answer:
            assert answer.read().endswith(b"done\n")


def test_a_defect_is_an_answer_and_a_line_in_the_log(log: io.StringIO) -> None:
    def fail(_request: Request) -> Any:
        raise KeyError("left")

    with (
        Server(f"{HOST}:0", fail) as server,
        socket.create_connection((HOST, server.port), timeout=ANSWER_SECONDS) as client,
    ):
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with client.makefile("rb") as answer:
            assert answer.read().splitlines()[-1] == b"internal error"
    assert "KeyError" in log.getvalue()


# Certificates


def find_serial(port: int, context: ssl.SSLContext) -> str:
    """Of the certificate that is shown."""
    with (
        socket.create_connection((HOST, port), timeout=ANSWER_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as client,
    ):
        shown = client.getpeercert()
        assert shown
        return str(shown["serialNumber"])


async def test_a_certificate_replaced_on_disk_is_used_without_a_restart(site: Site) -> None:
    port = site.webhook.server.port
    before = find_serial(port, trust(AUTHORITY))
    assert find_serial(port, trust(AUTHORITY)) == before
    other = Authority.create("another")

    other.issue_server([HOST]).write(site.config.cert_file.parent, "webhook")

    assert find_serial(port, trust(other)) != before


async def test_a_volume_whose_link_is_swapped_is_a_new_certificate(tmp_path: Path) -> None:
    """As a kubelet renews a Secret."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        AUTHORITY.issue_server([HOST]).write(tmp_path / name, "tls")
    (tmp_path / "..data").symlink_to("one")
    config = make_config(
        tmp_path,
        cert_file=tmp_path / "..data" / "tls.crt",
        key_file=tmp_path / "..data" / "tls.key",
    )
    async with working(config, MemoryBackend()) as site:
        before = find_serial(site.webhook.server.port, trust(AUTHORITY))
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").replace(tmp_path / "..data")
        assert find_serial(site.webhook.server.port, trust(AUTHORITY)) != before


async def test_a_half_written_pair_keeps_the_one_before_and_is_told_once(
    site: Site, log: io.StringIO
) -> None:
    port = site.webhook.server.port
    before = find_serial(port, trust(AUTHORITY))
    new = AUTHORITY.issue_server([HOST])

    site.config.cert_file.write_text(new.certificate)
    for _ in range(3):
        assert find_serial(port, trust(AUTHORITY)) == before
    lines = [line for line in log.getvalue().splitlines() if "stays in use" in line]
    assert len(lines) == 1
    assert (
        f"--key-file {site.config.key_file}: is not the key of --cert-file {site.config.cert_file}"
        in lines[0]
    )

    site.config.key_file.write_text(new.key)
    assert find_serial(port, trust(AUTHORITY)) != before


async def test_a_certificate_that_is_gone_stays_in_use(site: Site, log: io.StringIO) -> None:
    site.config.cert_file.unlink()
    assert (await site.post(GOOD)).status == 200
    assert f"--cert-file {site.config.cert_file}: No such file or directory" in log.getvalue()


async def test_a_client_that_does_not_trust_the_certificate_is_told_of_once(
    site: Site, log: io.StringIO
) -> None:
    for _ in range(3):
        with pytest.raises(ssl.SSLCertVerificationError):
            find_serial(site.webhook.server.port, trust(Authority.create("another")))

    async def is_told() -> bool:
        return "handshake" in log.getvalue()

    await eventually(is_told)
    (line,) = [line for line in log.getvalue().splitlines() if "handshake" in line]
    assert "UNKNOWN_CA" in line


def encrypt(key: str) -> str:
    private = load_pem_private_key(key.encode(), password=None)
    encryption = BestAvailableEncryption(b"secret")
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()


PAIR = AUTHORITY.issue_server([HOST])
OTHER = AUTHORITY.issue_server([HOST])


@pytest.mark.parametrize(
    ("certificate", "key", "reason"),
    [
        (None, PAIR.key, "--cert-file {cert}: No such file or directory"),
        (PAIR.certificate, None, "--key-file {key}: No such file or directory"),
        ("", PAIR.key, "--cert-file {cert}: holds no certificate in PEM"),
        (PAIR.key, PAIR.key, "--cert-file {cert}: holds no certificate in PEM"),
        (
            PAIR.certificate[:200],
            PAIR.key,
            "--cert-file {cert}: holds no certificate in PEM",
        ),
        (
            PAIR.certificate,
            "",
            "--key-file {key}: holds no private key in PEM without a passphrase",
        ),
        (
            PAIR.certificate,
            PAIR.certificate,
            "--key-file {key}: holds no private key in PEM without a passphrase",
        ),
        (
            PAIR.certificate,
            encrypt(PAIR.key),
            "--key-file {key}: holds no private key in PEM without a passphrase",
        ),
        (PAIR.certificate, OTHER.key, "--key-file {key}: is not the key of --cert-file {cert}"),
    ],
)
def test_a_pair_that_cannot_be_used_at_the_start_is_refused_in_one_line(
    tmp_path: Path, certificate: str | None, key: str | None, reason: str
) -> None:
    cert_file, key_file = tmp_path / "tls.crt", tmp_path / "tls.key"
    for path, text in ((cert_file, certificate), (key_file, key)):
        if text is not None:
            path.write_text(text)
    with pytest.raises(ConfigError) as error:
        ServingCertificate(cert_file, key_file)
    assert str(error.value) == reason.format(cert=cert_file, key=key_file)
