"""Users, passwords, tokens and roles of a real etcd."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.backends.etcd.asks import Ask, delete, follow_prefix, get, is_absent, put, transact
from kilo.backends.etcd.failures import EtcdError
from tests.backends.etcds import (
    KEY,
    Etcd,
    connected,
    find_ways_in,
    hear_failure,
    hear_refusal,
    share_etcd,
    succeeds,
)
from tests.backends.fakeapi import until
from tests.backends.following import LIMIT_SECONDS

PASSWORD = "correct-horse"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """Wants users: root, and ``a1`` who may read below ``/kilo/``; tokens live for a second."""
    directory = tmp_path_factory.mktemp("guarded")
    with Etcd(directory, flags=["--auth-token-ttl=1"]) as etcd:
        etcd.ctl("role", "add", "reader")
        etcd.ctl("role", "grant-permission", "reader", "read", "--prefix=true", "/kilo/")
        etcd.ctl("user", "add", f"a1:{PASSWORD}")
        etcd.ctl("user", "grant-role", "a1", "reader")
        etcd.enable_auth(password=PASSWORD)
        yield etcd


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    return path


async def test_a_user_with_the_right_password_is_let_in(guarded: Etcd, password_file: Path) -> None:
    async with connected(guarded.url, username="a1", password_file=password_file) as client:
        assert not (await client.call(get(KEY))).kvs
        async with asyncio.timeout(LIMIT_SECONDS):
            stream = client.stream(follow_prefix("/kilo/", after_revision=0))
            assert (await anext(stream)).created
            await stream.aclose()


@pytest.mark.parametrize(("user", "password"), [("a1", "wrong-horse"), ("nobody", PASSWORD)])
async def test_a_wrong_user_or_password_is_one_line_without_the_password(
    guarded: Etcd, password_file: Path, user: str, password: str
) -> None:
    await asyncio.to_thread(password_file.write_text, password)
    failure = await hear_failure(guarded.url, username=user, password_file=password_file)
    assert failure == (
        f"etcd {guarded.url}: log in as {user}: authentication failed, invalid user ID or password"
    )


async def test_a_store_that_wants_a_user_says_how_to_name_one(guarded: Etcd) -> None:
    failure = await hear_failure(guarded.url)
    assert failure == (
        f"etcd {guarded.url}: get {KEY}: user name is empty"
        " (it wants a user: --etcd-username and --etcd-password-file)"
    )


@pytest.mark.parametrize(
    ("ask", "about"),
    [
        (put("/kilo/peers/squat", b"x"), "put /kilo/peers/squat"),
        (delete("/kilo/settings"), "delete /kilo/settings"),
        (get("/other"), "get /other"),
        (
            transact(when=[is_absent(KEY)], then=[put(KEY, b"x"), delete("/kilo/settings")]),
            f"put {KEY} and delete /kilo/settings",
        ),
    ],
)
async def test_what_a_role_forbids_is_named_with_its_key(
    guarded: Etcd, password_file: Path, ask: Ask, about: str
) -> None:
    who = {"username": "a1", "password_file": password_file}
    failure = await hear_refusal(ask, guarded.url, **who)
    assert failure == f"etcd {guarded.url}: {about} as a1: permission denied"


async def test_a_watch_that_a_role_forbids_is_named_with_its_prefix(
    guarded: Etcd, password_file: Path
) -> None:
    async with connected(guarded.url, username="a1", password_file=password_file) as client:
        with pytest.raises(EtcdError) as caught:
            await anext(client.stream(follow_prefix("/other/", after_revision=0)))
    assert caught.value.code == "PERMISSION_DENIED"
    assert str(caught.value) == f"etcd {guarded.url}: watch /other/ as a1: permission denied"


async def test_a_token_that_expired_is_renewed_unnoticed(
    guarded: Etcd, password_file: Path
) -> None:
    async with connected(guarded.url, username="a1", password_file=password_file) as client:
        await client.call(get(KEY))
        first = client._token

        async def is_renewed() -> bool:
            await asyncio.sleep(2.0)  # it lives for its second after it was last used
            await client.call(get(KEY))
            return client._token != first

        await until(is_renewed)


async def test_a_watch_whose_token_expired_is_opened_with_another(
    guarded: Etcd, password_file: Path
) -> None:
    async with connected(guarded.url, username="a1", password_file=password_file) as client:
        await client.call(get(KEY))
        client._token = "long-since-expired"
        assert (await anext(client.stream(follow_prefix("/kilo/", after_revision=0)))).created
        assert client._token != "long-since-expired"


async def test_many_requests_at_once_log_in_once(guarded: Etcd, password_file: Path) -> None:
    async with connected(guarded.url, username="a1", password_file=password_file) as client:
        await client.call(get(KEY))
        client._token = "long-since-expired"
        before = count_logins(guarded)
        await asyncio.gather(*(client.call(get(KEY)) for _ in range(50)))
        assert count_logins(guarded) == before + 1


def count_logins(etcd: Etcd) -> float:
    """By etcd's own metrics."""
    with urllib.request.urlopen(f"{etcd.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    begin = 'grpc_server_handled_total{grpc_code="OK",grpc_method="Authenticate"'
    return float(next(line for line in lines if line.startswith(begin)).split()[-1])


async def test_a_password_that_was_changed_is_read_anew(guarded: Etcd, password_file: Path) -> None:
    guarded.ctl("user", "add", "a2:old-password")
    guarded.ctl("user", "grant-role", "a2", "reader")
    await asyncio.to_thread(password_file.write_text, "old-password")
    async with connected(guarded.url, username="a2", password_file=password_file) as client:
        await client.call(get(KEY))
        guarded.ctl("user", "passwd", "a2", "--interactive=false", text="new-password\n")
        await asyncio.to_thread(password_file.write_text, "new-password")

        async def has_read_it() -> bool:
            await succeeds(client, get(KEY))
            read = client._credentials
            return read is not None and read.password == "new-password"

        await until(has_read_it)
        await client.call(get(KEY))


async def test_with_a_user_a_store_that_wants_none_is_used_all_the_same(
    password_file: Path,
) -> None:
    async with connected(share_etcd().url, username="a1", password_file=password_file) as client:
        await client.call(get(KEY))


async def test_no_secret_shows_itself(tmp_path: Path, password_file: Path) -> None:
    with Etcd(tmp_path, is_tls=True) as etcd:
        etcd.ctl("user", "add", f"a1:{PASSWORD}")
        etcd.enable_auth(password=PASSWORD)
        ways = find_ways_in(etcd) | {"password_file": password_file}
        async with connected(etcd.url, username="a1", **ways) as client:
            with pytest.raises(EtcdError):
                await client.call(put(KEY, b"presharedKey"))
            ask = put(KEY, b"presharedKey")
            shown = f"{client!r} {client._credentials!r} {ask!r}"
    for secret in (PASSWORD, "PRIVATE KEY", "presharedKey"):
        assert secret not in shown
