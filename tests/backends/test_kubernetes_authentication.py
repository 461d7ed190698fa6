"""The HTTP client against a real API server: each way to say who we are, and each way to fail."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from kilo.backends.kubernetes.client import MERGE_PATCH, Access, ApiError, Client
from kilo.lab.certificates import Authority, write_private
from kilo.lab.controlplane import ControlPlane
from tests.backends.fakeapi import make_kubeconfig
from tests.backends.following import LIMIT_SECONDS
from tests.cluster.planes import share_plane

VERSION = "/version"
REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"

Connect = Callable[[dict[str, Any]], Client]


@pytest.fixture
def plane() -> ControlPlane:
    return share_plane()


@pytest.fixture
async def connect(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Connect]:
    """Makes clients of the real server for users of a kubeconfig; closes them at the end."""
    made: list[Client] = []
    (tmp_path / "ca.crt").write_text(plane.files.authority.certificate)

    def make(user: dict[str, Any]) -> Client:
        cluster = {"server": plane.server, "certificate-authority": "ca.crt"}
        path = make_kubeconfig(tmp_path / "kubeconfig", cluster=cluster, user=user)
        made.append(Client(Access(kubeconfig=path)))
        return made[-1]

    yield make
    for client in made:
        await client.close()


def make_token(plane: ControlPlane, name: str) -> str:
    return plane.make_service_account_token("default", name)


async def is_known(client: Client) -> bool:
    """Whether the server knows who asks: everybody it knows may ask what they may do."""
    try:
        await client.call("POST", REVIEW, body={"spec": {"namespace": "default"}})
    except ApiError as error:
        if error.status not in {401, 403}:
            raise
        return False
    return True


async def test_a_token_of_a_service_account_is_known(plane: ControlPlane, connect: Connect) -> None:
    assert await is_known(connect({"token": make_token(plane, "a")}))


async def test_a_token_file_is_read_again_when_its_token_is_refused(
    plane: ControlPlane, connect: Connect, tmp_path: Path
) -> None:
    first = make_token(plane, "short-lived")
    write_private(tmp_path / "token", first + "\n")
    client = connect({"tokenFile": "token"})
    assert await is_known(client)
    plane.call("DELETE", "/api/v1/namespaces/default/serviceaccounts/short-lived")
    # The server remembers good tokens for ten seconds.
    await until_so(lambda: is_unknown(client))
    write_private(tmp_path / "token", make_token(plane, "short-lived"))
    assert await is_known(client)


async def is_unknown(client: Client) -> bool:
    return not await is_known(client)


async def until_so(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(2 * LIMIT_SECONDS):
        while not await is_so():  # noqa: ASYNC110 - the server tells nobody what it forgot
            await asyncio.sleep(0.2)


async def test_a_client_certificate_is_known(plane: ControlPlane, connect: Connect) -> None:
    issued = plane.files.authority.issue_client("somebody")
    user = {
        "client-certificate-data": base64.b64encode(issued.certificate.encode()).decode(),
        "client-key-data": base64.b64encode(issued.key.encode()).decode(),
    }
    assert await is_known(connect(user))


async def test_a_plugins_token_and_certificate_are_known(
    plane: ControlPlane, connect: Connect, tmp_path: Path
) -> None:
    issued = plane.files.authority.issue_client("somebody")
    for status in (
        {"token": make_token(plane, "by-plugin")},
        {"clientCertificateData": issued.certificate, "clientKeyData": issued.key},
    ):
        printed = {
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "kind": "ExecCredential",
            "status": status,
        }
        write_private(tmp_path / "printed", json.dumps(printed))
        plugin = {
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "command": "cat",
            "args": [str(tmp_path / "printed")],
        }
        assert await is_known(connect({"exec": plugin}))


async def test_a_pod_is_known_by_its_service_account(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", plane.files.address)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(plane.files.port))
    (tmp_path / "ca.crt").write_text(plane.files.authority.certificate)
    write_private(tmp_path / "token", make_token(plane, "pod"))
    client = Client(Access(service_account=tmp_path))
    assert await is_known(client)
    await client.close()


async def test_a_token_that_nobody_signed_is_refused_without_being_shown(
    connect: Connect,
) -> None:
    with pytest.raises(ApiError) as caught:
        await connect({"token": "s3cr3t"}).call("GET", VERSION)
    assert (caught.value.status, caught.value.reason) == (401, "Unauthorized")
    assert "s3cr3t" not in str(caught.value)


async def test_a_certificate_of_another_authority_is_refused(connect: Connect) -> None:
    issued = Authority.create().issue_client("kubernetes-admin", groups=["system:masters"])
    user = {
        "client-certificate-data": base64.b64encode(issued.certificate.encode()).decode(),
        "client-key-data": base64.b64encode(issued.key.encode()).decode(),
    }
    with pytest.raises(ApiError) as caught:
        await connect(user).call("GET", VERSION)
    assert caught.value.status == 401


async def test_what_a_user_may_not_do_is_said_in_the_servers_words(
    plane: ControlPlane, connect: Connect
) -> None:
    with pytest.raises(ApiError) as caught:
        await connect({"token": make_token(plane, "a")}).call("GET", "/api/v1/nodes")
    assert (caught.value.status, caught.value.reason) == (403, "Forbidden")
    assert str(caught.value) == (
        f"kubernetes {plane.server}: GET /api/v1/nodes: 403 Forbidden: nodes is forbidden: "
        'User "system:serviceaccount:default:a" cannot list resource "nodes" in API group "" '
        "at the cluster scope"
    )


async def test_a_server_of_another_authority_is_not_trusted(
    plane: ControlPlane, connect: Connect, tmp_path: Path
) -> None:
    client = connect({"token": make_token(plane, "a")})
    Authority.create("other").write(tmp_path)
    with pytest.raises(ApiError, match=f"certificate-authority {tmp_path}/ca.crt") as caught:
        await client.call("GET", VERSION)
    assert caught.value.status == 0


async def test_an_object_is_written_changed_followed_and_deleted(plane: ControlPlane) -> None:
    client = Client(Access(kubeconfig=str(plane.kubeconfig)))
    await client.call(
        "POST", CONFIG_MAPS, body={"metadata": {"name": "followed"}, "data": {"a": "1"}}
    )
    listed = await client.call("GET", CONFIG_MAPS, query={"limit": "1"})
    query = {"watch": "true", "resourceVersion": listed["metadata"]["resourceVersion"]}
    async with (
        asyncio.timeout(LIMIT_SECONDS),
        aclosing(client.stream(CONFIG_MAPS, query=query)) as lines,
    ):
        assert await anext(lines) == {}
        patch = {"data": {"a": "x" * 900_000}}
        path = f"{CONFIG_MAPS}/followed"
        await client.call("PATCH", path, body=patch, content_type=MERGE_PATCH)
        await client.call("DELETE", path)
        seen = [await anext(lines) for _ in range(2)]
        assert [event["type"] for event in seen] == ["MODIFIED", "DELETED"]
        assert len(seen[0]["object"]["data"]["a"]) == 900_000
    await client.close()


async def test_what_exists_already_and_what_does_not_exist_have_their_reasons(
    plane: ControlPlane,
) -> None:
    client = Client(Access(kubeconfig=str(plane.kubeconfig)))
    with pytest.raises(ApiError) as caught:
        await client.call("GET", f"{CONFIG_MAPS}/nowhere")
    assert (caught.value.status, caught.value.reason) == (404, "NotFound")
    with pytest.raises(ApiError) as caught:
        await client.call("POST", "/api/v1/namespaces", body={"metadata": {"name": "default"}})
    assert (caught.value.status, caught.value.reason) == (409, "AlreadyExists")
    await client.close()
