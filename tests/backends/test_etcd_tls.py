"""TLS between an etcd and us, and its failures: each seen on a real member."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kilo.backends.etcd.asks import delete, follow_prefix, get, put
from kilo.backends.etcd.client import Client
from kilo.errors import BackendError
from kilo.lab.certificates import Authority
from tests.backends.etcds import (
    KEY,
    Etcd,
    connect,
    connected,
    find_ways_in,
    hear_failure,
    share_etcd,
    succeeds,
)
from tests.backends.fakeapi import until
from tests.backends.following import LIMIT_SECONDS


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """Takes only clients with a certificate of its authority."""
    with Etcd(tmp_path_factory.mktemp("secured"), is_tls=True) as etcd:
        yield etcd


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_with_the_right_certificates_requests_are_answered(secured: Etcd, host: str) -> None:
    url = secured.url.replace("127.0.0.1", host)
    async with connected(url, **find_ways_in(secured)) as client:
        await client.call(put(KEY, b"x"))
        assert [pair.value for pair in (await client.call(get(KEY))).kvs] == [b"x"]
        await client.call(delete(KEY))


async def test_an_authority_may_have_a_name_in_comments_beside_it(
    secured: Etcd, tmp_path: Path
) -> None:
    ways = find_ways_in(secured)
    bundle = tmp_path / "bundle.crt"
    bundle.write_bytes("# Főtanúsítvány\n".encode() + ways["cacert"].read_bytes())
    async with connected(secured.url, **ways | {"cacert": bundle}) as client:
        await client.call(get(KEY))


async def test_an_authority_that_did_not_sign_the_servers_certificate_is_named(
    secured: Etcd, tmp_path: Path
) -> None:
    Authority.create("another").write(tmp_path)
    trusted = tmp_path / "ca.crt"
    assert await hear_failure(secured.url, **find_ways_in(secured) | {"cacert": trusted}) == (
        f"etcd {secured.url}: get {KEY}: the server's certificate is refused:"
        f" unable to get local issuer certificate; checked with {trusted}"
    )


async def test_without_an_authority_those_of_the_system_are_asked(secured: Etcd) -> None:
    ways = find_ways_in(secured)
    failure = await hear_failure(secured.url, cert=ways["cert"], key=ways["key"])
    assert "unable to get local issuer certificate; checked with the system's" in failure


async def test_a_certificate_of_ours_that_has_expired_is_said_to_have(
    secured: Etcd, tmp_path: Path
) -> None:
    expired = secured.authority.issue_client("a1", lifetime=timedelta(minutes=-1))
    certificate, key = expired.write(tmp_path, "expired")
    ways = find_ways_in(secured) | {"cert": certificate, "key": key}
    assert (await hear_failure(secured.url, **ways)).startswith(
        f"etcd {secured.url}: get {KEY}: the server refuses our certificate: it has expired, "
    )


async def test_a_certificate_of_the_servers_that_has_expired_is_said_to_have(
    tmp_path: Path,
) -> None:
    with Etcd(tmp_path, is_tls=True) as etcd:
        expired = etcd.authority.issue_server(["127.0.0.1"], lifetime=timedelta(minutes=-1))
        expired.write(tmp_path, "server")  # read anew for each connection
        failure = await hear_failure(etcd.url, **find_ways_in(etcd))
    assert "the server's certificate is refused: certificate has expired; checked" in failure


async def test_a_certificate_of_another_authority_is_refused(secured: Etcd, tmp_path: Path) -> None:
    certificate, key = Authority.create().issue_client("a1").write(tmp_path, "foreign")
    ways = find_ways_in(secured) | {"cert": certificate, "key": key}
    failure = await hear_failure(secured.url, **ways)
    assert failure == f"etcd {secured.url}: get {KEY}: {REFUSED}: bad certificate"


REFUSED = "the server refuses our certificate"


async def test_a_server_that_wants_a_certificate_says_so(secured: Etcd) -> None:
    failure = await hear_failure(secured.url, cacert=secured.directory / "ca.crt")
    assert failure.endswith("the server wants a certificate of us: --etcd-cert and --etcd-key")


async def test_a_server_of_another_name_is_refused(secured: Etcd, tmp_path: Path) -> None:
    other = secured.authority.issue_server(["192.0.2.1"])
    with Etcd(tmp_path, is_tls=True) as etcd:
        other.write(tmp_path, "server")
        ways = find_ways_in(etcd) | {"cacert": secured.directory / "ca.crt"}
        failure = await hear_failure(etcd.url, **ways)
    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in failure


@pytest.mark.parametrize(("speaks", "wants"), [("http", "TLS (https://)"), ("https", "(http://)")])
async def test_the_wrong_scheme_is_guessed_at(secured: Etcd, speaks: str, wants: str) -> None:
    url = secured.url if speaks == "http" else share_etcd().url
    failure = await hear_failure(f"{speaks}://{url.partition('://')[2]}")
    assert failure.endswith(wants)


@pytest.mark.parametrize(("speaks", "wants"), [("http", "TLS (https://)"), ("https", "(http://)")])
async def test_the_wrong_scheme_is_guessed_at_where_the_connection_is_reset(
    secured: Etcd, speaks: str, wants: str
) -> None:
    """As the kernel does where the server had read less than was sent."""

    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened = writer.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    ways = find_ways_in(secured) if speaks == "https" else {}
    async with await asyncio.start_server(reset, "127.0.0.1", 0) as server:
        (host, port), *_ = (one.getsockname() for one in server.sockets)
        failure = await hear_failure(f"{speaks}://{host}:{port}", **ways)
    assert failure.endswith(wants)


@pytest.mark.parametrize(
    ("flag", "content", "complaint"),
    [
        ("cacert", None, "--etcd-cacert {path}: cannot be read: No such file or directory"),
        ("cacert", "", "{path}: holds no usable certificate"),
        ("cacert", "\0\u00ff binary", "{path}: holds no usable certificate"),
        ("cacert", "junk", "{path}: holds no usable certificate"),
        ("cert", None, "--etcd-cert {path}: cannot be read: No such file or directory"),
        (
            "key",
            "junk",
            "the client certificate or its key is no PEM, has a passphrase, or the two are no pair",
        ),
    ],
)
async def test_a_file_of_no_use_is_named(
    secured: Etcd, tmp_path: Path, flag: str, content: str | None, complaint: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content)
    failure = await hear_failure(secured.url, **find_ways_in(secured) | {flag: path})
    assert failure == f"etcd: {complaint.format(path=path)}"


async def fails(client: Client, why: str) -> bool:
    try:
        await client.call(get(KEY))
    except BackendError as error:
        return why in str(error)
    return False


async def test_certificates_that_were_renewed_are_used_and_running_streams_go_on(
    secured: Etcd, tmp_path: Path
) -> None:
    own = {name: tmp_path / path.name for name, path in find_ways_in(secured).items()}
    for name, path in find_ways_in(secured).items():
        own[name].write_bytes(path.read_bytes())
    async with connected(secured.url, **own) as client:
        stream = client.stream(follow_prefix("/renewed/", after_revision=0))
        await anext(stream)
        secured.authority.issue_client("a1", lifetime=timedelta(minutes=-1)).write(tmp_path, "a1")
        await until(lambda: fails(client, "it has expired"))
        secured.authority.issue_client("a1").write(tmp_path, "a1")
        await until(lambda: succeeds(client, put("/renewed/a", b"x")))
        async with asyncio.timeout(LIMIT_SECONDS):
            assert (await anext(stream)).events
        await stream.aclose()


async def test_with_renewed_files_that_are_no_good_it_goes_on_with_the_old(
    secured: Etcd, tmp_path: Path
) -> None:
    own = find_ways_in(secured) | {"cacert": tmp_path / "ca.crt"}
    own["cacert"].write_bytes((secured.directory / "ca.crt").read_bytes())
    async with connected(secured.url, **own) as client:
        await client.call(get(KEY))
        own["cacert"].write_text("half written")
        with capture_logs() as logs:

            async def has_looked() -> bool:
                await client.call(get(KEY))
                return bool(logs)

            await until(has_looked)
        assert logs[0]["event"] == "going on with the credentials from before"


async def test_without_tls_towards_another_host_one_line_says_what_is_at_stake() -> None:
    with capture_logs() as logs:
        connect("http://192.0.2.1:2379", "https://192.0.2.2:2379", "http://192.0.2.3:2379")
        connect("http://127.0.0.1:2379", "http://[::1]:2379", "localhost:2379")
    (line,) = logs
    assert line["log_level"] == "warning"
    assert "preshared keys" in line["event"]
    assert "who may join" in line["event"]
    assert line["endpoints"] == ["http://192.0.2.1:2379", "http://192.0.2.3:2379"]
