"""The roles in examples/etcd on a real etcd with its own auth: enough, and nothing more."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kilo.backends.documents import make_settings_document
from kilo.backends.etcd.asks import Ask, delete, get_prefix, grant, put
from kilo.backends.etcd.backend import EtcdBackend
from kilo.backends.etcd.client import Client
from kilo.backends.etcd.config import EtcdConfig
from kilo.backends.etcd.endpoints import read_prefix
from kilo.backends.etcd.keys import Keys
from kilo.backends.etcd.registration import Registrar
from kilo.backends.etcd.views import encode_document
from kilo.errors import BackendError
from kilo.mesh.model import NodeSpec, PartialSettings, Snapshot, SubnetPool
from tests.backends.etcds import Etcd
from tests.builders import make_peer, make_report, networks

SCRIPT = Path(__file__).parents[2] / "examples" / "etcd" / "roles.sh"
PREFIX = "/kilo"
KEYS = Keys(read_prefix(PREFIX))
ROLES = {
    "a1": ("agent", "a1"),
    "r1": ("registering", "r1"),
    "r2": ("registering", "r2"),
    "anna": ("operator",),
}
"""User -> the words for the script."""
PASSWORD = "a-passing-phrase"
"""Without spaces: etcdctl reads no further."""


def run_script(etcd: Etcd, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """As root, whom the server knows by a certificate; ``more`` of its environment."""
    root = etcd.directory
    environ = {
        "ETCDCTL_ENDPOINTS": etcd.url,
        "ETCDCTL_CACERT": str(root / "ca.crt"),
        "ETCDCTL_CERT": str(root / "root.crt"),
        "ETCDCTL_KEY": str(root / "root.key"),
    }
    return subprocess.run(
        [str(SCRIPT), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60.0,
        env=os.environ | environ | more,
    )


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """With TLS, users and roles; users are known by certificates, and ``a1`` by a password too."""
    with Etcd(tmp_path_factory.mktemp("etcd"), is_tls=True) as started:
        for user, words in ROLES.items():
            done = run_script(started, *words)
            assert done.returncode == 0, done.stderr
            role = "kilo-operator" if words == ("operator",) else f"kilo-agent-{user}"
            if user == "a1":
                started.ctl("user", "add", user, "--interactive=false", text=f"{PASSWORD}\n")
            else:
                started.ctl("user", "add", user, "--no-password")
            started.ctl("user", "grant-role", user, role)
        started.enable_auth(password="of-root")
        yield started


@pytest.fixture(autouse=True)
def _empty(etcd: Etcd) -> None:
    etcd.ctl("del", "--prefix", PREFIX)


@asynccontextmanager
async def connect(etcd: Etcd, user: str) -> AsyncIterator[Client]:
    certificate, key = etcd.make_certificate(user)
    config = EtcdConfig(
        endpoints=(etcd.url,), cacert=etcd.directory / "ca.crt", cert=certificate, key=key
    )
    client = Client(config)
    yield client
    await client.close()


@asynccontextmanager
async def open_backend(
    etcd: Etcd, user: str, spec: NodeSpec | None = None
) -> AsyncIterator[EtcdBackend]:
    async with connect(etcd, user) as client:
        backend = EtcdBackend(client, KEYS, registration=Registrar(client, KEYS, spec))
        yield backend
        await backend.close()


async def refuse(client: Client, ask: Ask) -> str:
    with pytest.raises(BackendError) as error:
        await client.call(ask)
    return str(error.value)


def set_pool(etcd: Etcd) -> None:
    pool = SubnetPool(network=networks("10.2.0.0/16")[0], node_prefix_length=24)
    document = make_settings_document(PartialSettings(pod_subnet_pools=(pool,)))
    etcd.ctl("put", KEYS.settings, text=encode_document(document).decode())


async def test_an_agent_reads_the_mesh_and_says_what_it_found_out(etcd: Etcd) -> None:
    async with open_backend(etcd, "anna") as operator:
        await operator.put_peer(make_peer("squat"))
        await operator.declare_node("a1", NodeSpec(location="oregon"))
    async with open_backend(etcd, "a1") as agent:
        await agent.publish(make_report("a1"))
        async for snapshot in agent.watch():
            assert isinstance(snapshot, Snapshot)
            (node,) = snapshot.nodes
            assert (node.name, node.spec.location, node.report) == (
                "a1",
                "oregon",
                make_report("a1"),
            )
            assert [peer.name for peer in snapshot.peers] == ["squat"]
            break
        await agent.withdraw("a1")
        assert (await agent.snapshot()).nodes[0].report is None


@pytest.mark.parametrize("user", ["a1", "r1"])
@pytest.mark.parametrize(
    "key",
    [
        KEYS.report("b1"),
        KEYS.report("a11"),
        KEYS.node("b1"),
        KEYS.peer("squat"),
        KEYS.settings,
        "/elsewhere",
    ],
)
async def test_an_agent_writes_nothing_that_is_others(etcd: Etcd, user: str, key: str) -> None:
    async with connect(etcd, user) as client:
        for ask, what in ((put(key, b"{}"), "put"), (delete(key), "delete")):
            assert await refuse(client, ask) == f"etcd {etcd.url}: {what} {key}: permission denied"
        about = "get all of /elsewhere/"
        assert await refuse(client, get_prefix("/elsewhere/")) == (
            f"etcd {etcd.url}: {about}: permission denied"
        )


@pytest.mark.parametrize("key", [KEYS.node("a1"), f"{KEYS.subnets}10.2.1.0-24"])
async def test_an_agent_declares_nothing_unless_it_is_to(etcd: Etcd, key: str) -> None:
    async with connect(etcd, "a1") as client:
        assert await refuse(client, put(key, b"{}")) == (
            f"etcd {etcd.url}: put {key}: permission denied"
        )


async def test_an_agent_that_may_not_declare_its_node_says_so_and_stays_out(etcd: Etcd) -> None:
    async with open_backend(etcd, "a1", NodeSpec(location="oregon")) as agent:
        with pytest.raises(BackendError) as error:
            await agent.publish(make_report("a1"))
        assert str(error.value) == f"etcd {etcd.url}: put {KEYS.node('a1')}: permission denied"
        assert (await agent.snapshot()).nodes == ()
        etcd.ctl("put", KEYS.node("a1"), text='{"apiVersion":"kilo.squat.ai/v1alpha1",'
                 '"kind":"Node","metadata":{"name":"a1"}}')  # fmt: skip
        await agent.publish(make_report("a1"))
        assert (await agent.snapshot()).nodes[0].report is not None


async def test_agents_that_are_to_register_do_so_and_get_subnets(etcd: Etcd) -> None:
    set_pool(etcd)
    async with (
        open_backend(etcd, "r1", NodeSpec(location="oregon")) as one,
        open_backend(etcd, "r2", NodeSpec(location="frankfurt")) as two,
    ):
        await one.publish(make_report("r1"))
        await two.publish(make_report("r2"))
        nodes = (await one.snapshot()).nodes
    assert [(node.name, node.spec.location) for node in nodes] == [
        ("r1", "oregon"),
        ("r2", "frankfurt"),
    ]
    subnets = [node.pod_subnets for node in nodes]
    assert [len(one) for one in subnets] == [1, 1]
    assert subnets[0] != subnets[1]


async def test_an_agent_without_rights_to_pools_says_so_and_takes_part(etcd: Etcd) -> None:
    set_pool(etcd)
    async with open_backend(etcd, "anna") as operator:
        await operator.declare_node("a1", NodeSpec(location="oregon"))
    async with open_backend(etcd, "a1") as agent:
        with pytest.raises(BackendError) as error:
            await agent.publish(make_report("a1"))
        assert str(error.value).startswith(f"etcd {etcd.url}: put {KEYS.node('a1')} and put ")
        assert str(error.value).endswith(": permission denied")
        (node,) = (await agent.snapshot()).nodes
    assert node.report == make_report("a1")


async def test_an_operator_declares_and_forgets_all_there_is(etcd: Etcd) -> None:
    set_pool(etcd)
    async with open_backend(etcd, "r1", NodeSpec(location="oregon")) as agent:
        await agent.publish(make_report("r1"))
    async with open_backend(etcd, "anna") as operator:
        await operator.put_peer(make_peer("squat"))
        await operator.delete_peer("squat")
        await operator.declare_settings(PartialSettings(port=51821))
        await operator.forget_settings()
        await operator.forget_node("r1")
    assert etcd.ctl("get", "--prefix", PREFIX, "--keys-only").strip() == ""


async def test_a_user_with_a_password_is_held_to_the_same(etcd: Etcd, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    # Somebody's certificate opens the connection; the password says who it is.
    certificate, key = etcd.make_certificate("host")
    config = EtcdConfig(
        endpoints=(etcd.url,),
        cacert=etcd.directory / "ca.crt",
        cert=certificate,
        key=key,
        username="a1",
        password_file=path,
    )
    client = Client(config)
    await client.call(put(KEYS.report("a1"), b"{}"))
    assert await refuse(client, put(KEYS.report("b1"), b"{}")) == (
        f"etcd {etcd.url}: put {KEYS.report('b1')} as a1: permission denied"
    )
    await client.close()


async def test_leases_want_no_permission(etcd: Etcd) -> None:
    # So the roles name none; and so only hosts of the mesh should be let in at all.
    async with connect(etcd, "nobody-in-particular") as client:
        assert (await client.call(grant(60))).ID
        assert await refuse(client, get_prefix(KEYS.prefix)) == (
            f"etcd {etcd.url}: get all of {KEYS.prefix}: permission denied"
        )


def test_a_slash_at_the_end_of_the_prefix_means_nothing(etcd: Etcd) -> None:
    assert run_script(etcd, "agent", "elsewhere", KILO_PREFIX="/other/").returncode == 0
    granted = etcd.ctl("role", "get", "kilo-agent-elsewhere")
    assert "/other/reports/elsewhere" in granted
    assert "//" not in granted


def test_the_script_may_be_run_again_and_says_how_it_is_used(etcd: Etcd) -> None:
    before = etcd.ctl("role", "get", "kilo-agent-r1")
    assert run_script(etcd, "registering", "r1").returncode == 0
    assert etcd.ctl("role", "get", "kilo-agent-r1") == before
    for words in ((), ("agent",), ("operator", "x"), ("root", "x")):
        done = run_script(etcd, *words)
        assert done.returncode == 2
        assert done.stderr == "usage: roles.sh operator | agent NODE | registering NODE\n"
