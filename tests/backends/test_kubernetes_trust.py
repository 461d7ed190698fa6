"""Who the HTTP client trusts, who it says it is, and what becomes of that when files change."""

from __future__ import annotations

import asyncio
import base64
from contextlib import aclosing
from pathlib import Path

import pytest
from aiohttp import web

from kilo.backends.kubernetes.client import Access, ApiError, Client
from kilo.lab.certificates import Authority
from tests.backends.fakeapi import (
    NODES,
    FakeApi,
    answer,
    collect,
    connect,
    fail,
    make_kubeconfig,
    open_stream,
    stream,
    until,
)
from tests.backends.following import LIMIT_SECONDS

# TLS


async def test_a_server_of_another_authority_is_not_trusted(client: Client, api: FakeApi) -> None:
    Authority.create().write(api.directory)
    error = str(await fail(client))
    assert error.startswith(
        f"kubernetes {api.url}: GET {NODES}: the server's certificate is refused"
    )
    assert error.endswith(f"checked with certificate-authority {api.certificate_file}")


async def test_a_server_of_another_name_is_not_trusted(tmp_path: Path) -> None:
    api = FakeApi(Authority.create(), tmp_path)
    async with api.serve(hosts=("elsewhere.example",)):
        client = connect(api)
        assert "not valid for '127.0.0.1'" in str(await fail(client))
        await client.close()


async def test_a_server_may_be_known_by_another_name(tmp_path: Path) -> None:
    api = FakeApi(Authority.create(), tmp_path)
    async with api.serve(hosts=("elsewhere.example",)):
        cluster = {
            "server": api.url,
            "certificate-authority": "ca.crt",
            "tls-server-name": "elsewhere.example",
        }
        path = make_kubeconfig(tmp_path / "kubeconfig", cluster=cluster, user={})
        client = Client(Access(kubeconfig=path))
        await client.call("GET", NODES)
        await client.close()


async def test_a_server_may_be_left_unchecked(api: FakeApi) -> None:
    cluster = {"server": api.url, "insecure-skip-tls-verify": True}
    path = make_kubeconfig(api.directory / "kubeconfig", cluster=cluster, user={})
    client = Client(Access(kubeconfig=path))
    await client.call("GET", NODES)
    await client.close()


async def test_an_authority_may_have_a_name_in_comments_beside_it(api: FakeApi) -> None:
    comment = "# Főtanúsítvány\n".encode()
    (api.directory / "bundle.crt").write_bytes(comment + api.certificate_file.read_bytes())
    cluster = {"server": api.url, "certificate-authority": "bundle.crt"}
    path = make_kubeconfig(api.directory / "kubeconfig", cluster=cluster, user={})
    client = Client(Access(kubeconfig=path))
    await client.call("GET", NODES)
    await client.close()


async def test_without_an_authority_the_systems_are_asked(api: FakeApi) -> None:
    path = make_kubeconfig(api.directory / "kubeconfig", cluster={"server": api.url}, user={})
    client = Client(Access(kubeconfig=path))
    assert str(await fail(client)).endswith("checked with the CAs that this system trusts")
    await client.close()


async def test_plain_http_behind_an_https_url_is_a_tls_failure() -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    client = Client(Access(master=f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    assert "TLS failed: " in str(await fail(client))
    await client.close()
    server.close()


async def test_the_keys_of_a_kubeconfig_are_never_on_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    api = FakeApi(Authority.create(), tmp_path)
    async with api.serve(asks_certificate=True):
        client = connect(api, **as_data(api.authority, "kilo"))
        await client.call("GET", NODES)
        assert api.asked[-1].user == "kilo"
        assert list(temporary.iterdir()) == []
        assert not [name for name in open_files() if "client-certificate" in name]
        await client.close()


def as_data(authority: Authority, user: str) -> dict[str, str]:
    issued = authority.issue_client(user)
    return {
        "client-certificate-data": base64.b64encode(issued.certificate.encode()).decode(),
        "client-key-data": base64.b64encode(issued.key.encode()).decode(),
    }


def open_files() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except OSError:
            continue  # the one that listed the directory
    return found


async def test_a_key_of_another_certificate_is_an_error_that_shows_neither(api: FakeApi) -> None:
    user = as_data(api.authority, "kilo")
    user["client-key-data"] = as_data(api.authority, "other")["client-key-data"]
    client = connect(api, **user)
    error = str(await fail(client))
    assert "the client certificate or its key" in error
    assert user["client-key-data"][:20] not in error
    await client.close()


# Credentials that change


@pytest.fixture
def pod(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a pod's ServiceAccount, with links as the kubelet makes them."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
    directory = api.directory / "serviceaccount"
    directory.mkdir()
    for name in ("token", "ca.crt", "namespace"):
        (directory / name).symlink_to(Path("..data") / name)
    project(directory, api, token="one")
    return directory


def project(directory: Path, api: FakeApi, *, token: str) -> None:
    """Renew what is in the volume the way the kubelet does: a link is swapped."""
    content = directory / f"..{token}"
    content.mkdir()
    (content / "token").write_text(f"{token}\n")
    (content / "ca.crt").write_text(api.authority.certificate)
    (content / "namespace").write_text("kilo\n")
    new = directory / "..data_tmp"
    new.symlink_to(content.name)
    new.rename(directory / "..data")


async def test_a_pod_is_its_service_account(api: FakeApi, pod: Path) -> None:
    client = Client(Access(service_account=pod))
    await client.call("GET", NODES)
    assert api.asked[-1].token == "one", "without the line break at the end of the file"
    assert client.namespace == "kilo"
    await client.close()


async def test_outside_a_pod_the_namespace_is_kube_system(client: Client, tmp_path: Path) -> None:
    assert Client(Access(service_account=tmp_path)).namespace == "kube-system"


async def test_a_token_that_is_renewed_is_used_soon(api: FakeApi, pod: Path) -> None:
    client = Client(Access(service_account=pod))
    await client.call("GET", NODES)
    project(pod, api, token="two")

    async def is_used() -> bool:
        await client.call("GET", NODES)
        return api.asked[-1].token == "two"

    await until(is_used)
    await client.close()


async def test_a_token_that_is_refused_is_read_again_at_once(api: FakeApi, pod: Path) -> None:
    client = Client(Access(service_account=pod))
    await client.call("GET", NODES)
    project(pod, api, token="two")
    api.tokens = {"two"}
    await client.call("GET", NODES)
    await client.call("GET", NODES)
    assert [asked.token for asked in api.asked] == ["one", "one", "two", "two"]
    await client.close()


async def test_a_stream_whose_token_is_refused_begins_with_the_new_one(
    api: FakeApi, pod: Path
) -> None:
    client = Client(Access(service_account=pod))
    await client.call("GET", NODES)
    project(pod, api, token="two")
    api.tokens = {"two"}
    api.handler = stream(b'{"a": 1}\n')
    assert await collect(client) == ([{}, {"a": 1}], "")
    await client.close()


async def test_a_refused_token_that_is_not_renewed_is_not_tried_again(
    api: FakeApi, pod: Path
) -> None:
    api.tokens = {"two"}
    client = Client(Access(service_account=pod))
    error = await fail(client)
    assert (error.status, error.reason) == (401, "Unauthorized")
    assert len(api.asked) == 1
    await client.close()


async def test_many_requests_refused_at_once_read_the_token_once(api: FakeApi, pod: Path) -> None:
    client = Client(Access(service_account=pod))
    await client.call("GET", NODES)
    project(pod, api, token="two")
    api.tokens = {"two"}
    await asyncio.gather(*(client.call("GET", NODES) for _ in range(10)))
    connections = {asked.connection for asked in api.asked if asked.token == "two"}
    assert 1 <= len(connections) <= 10
    assert sum(asked.token == "two" for asked in api.asked) == 10
    await client.close()


async def test_a_stream_goes_on_when_the_token_changes_and_then_leaves_nothing(
    api: FakeApi, pod: Path
) -> None:
    hold = asyncio.Event()
    watching, calling = stream(b'{"a": 1}\n', hold=hold), answer({})

    async def handle(request: web.Request) -> web.StreamResponse:
        return await (watching if "watch" in request.query else calling)(request)

    api.handler = handle
    client = Client(Access(service_account=pod))
    async with asyncio.timeout(LIMIT_SECONDS), aclosing(open_stream(client)) as lines:
        assert [await anext(lines), await anext(lines)] == [{}, {"a": 1}]
        project(pod, api, token="two")
        api.tokens = {"two"}
        await client.call("GET", NODES)
        hold.set()
        assert await anext(lines, None) is None

    async def is_one_left() -> bool:
        return api.count_connections() == 1

    await until(is_one_left)
    await client.close()


async def test_a_token_that_comes_late_is_an_error_until_then(api: FakeApi, pod: Path) -> None:
    (pod / "..data").rename(pod / "..later")
    client = Client(Access(service_account=pod))
    error = await fail(client)
    assert str(error) == (
        f"kubernetes: CA file {pod}/ca.crt: cannot be read: No such file or directory"
    )
    (pod / "..later").rename(pod / "..data")
    await client.call("GET", NODES)
    await client.close()


async def test_an_authority_that_is_replaced_is_trusted_from_then_on(tmp_path: Path) -> None:
    api = FakeApi(Authority.create("old"), tmp_path)
    async with api.serve():
        client = connect(api)
        await client.call("GET", NODES)
    api.authority = Authority.create("new")
    async with api.serve():

        async def is_trusted() -> bool:
            try:
                await client.call("GET", NODES)
            except ApiError:
                return False
            return True

        await until(is_trusted)
        await client.close()


async def test_a_client_certificate_that_is_replaced_is_shown_from_then_on(tmp_path: Path) -> None:
    api = FakeApi(Authority.create(), tmp_path)
    async with api.serve(asks_certificate=True):
        api.authority.issue_client("first").write(tmp_path, "me")
        client = connect(api, **{"client-certificate": "me.crt", "client-key": "me.key"})
        await client.call("GET", NODES)
        assert api.asked[-1].user == "first"
        # Not both at once: in between they are no pair.
        api.authority.issue_client("second").write(tmp_path, "me")

        async def is_shown() -> bool:
            await client.call("GET", NODES)
            return api.asked[-1].user == "second"

        await until(is_shown)
        await client.close()


async def test_a_kubeconfig_spoilt_while_running_changes_nothing(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect(api, token="one")
    await client.call("GET", NODES)
    (api.directory / "kubeconfig").write_text("{")

    async def is_noticed() -> bool:
        await client.call("GET", NODES)
        return "going on with the credentials from before" in capsys.readouterr().out

    await until(is_noticed)
    api.tokens = {"two"}
    assert str(api.directory / "kubeconfig") in str(await fail(client))
    make_kubeconfig(
        api.directory / "kubeconfig",
        cluster={"server": api.url, "certificate-authority": "ca.crt"},
        user={"token": "two"},
    )
    await client.call("GET", NODES)
    await client.close()
