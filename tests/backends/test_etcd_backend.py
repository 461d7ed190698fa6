"""The etcd backend, where the contract does not say it: leases, keys, registration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kilo.backends.etcd.asks import get, grant, put
from kilo.backends.etcd.backend import EtcdBackend, Registration
from kilo.backends.etcd.client import Client
from kilo.backends.etcd.keys import Keys
from kilo.backends.etcd.lease import LEASE_SECONDS, Lease
from kilo.errors import BackendError
from kilo.mesh.model import NodeSpec
from tests.backends.etcds import Etcd, connect, share_etcd
from tests.backends.fakeapi import until
from tests.backends.following import LIMIT_SECONDS, Follower, names
from tests.backends.stores import NOW
from tests.builders import make_peer, make_report
from tests.cluster.relay import Relay


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    one = Keys(f"/{tmp_path.name}/")
    yield one
    share_etcd().ctl("del", "--prefix", one.prefix)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    one = connect(share_etcd().url)
    yield one
    await one.close()


def open_backend(keys: Keys, *, url: str = "", **how: float) -> EtcdBackend:
    seconds = int(how.get("lease_seconds", LEASE_SECONDS))
    return EtcdBackend(
        connect(url or share_etcd().url),
        keys,
        wall_clock=lambda: NOW,
        lease_seconds=seconds,
        renew_seconds=how.get("renew_seconds", seconds / 3),
    )


async def read_lease(client: Client, keys: Keys) -> int:
    """Of the report; 0 where there is none."""
    found = (await client.call(get(keys.report("a1")))).kvs
    return found[0].lease if found else 0


def revoke(lease: int) -> None:
    """It is gone, as if it had run out."""
    share_etcd().ctl("lease", "revoke", f"{lease:x}")


async def has_report(client: Client, keys: Keys) -> bool:
    return bool((await client.call(get(keys.report("a1")))).kvs)


async def test_what_is_stored_is_one_schema_on_one_line(client: Client, keys: Keys) -> None:
    backend = open_backend(keys)
    await backend.declare_node("a1", NodeSpec(location="köln"))
    await backend.publish(make_report("a1"))
    await backend.put_peer(make_peer("squat"))
    await backend.declare_settings({"port": 51821})
    stored = {
        keys.node("a1"): "Node",
        keys.report("a1"): "NodeReport",
        keys.peer("squat"): "Peer",
        keys.settings: "Settings",
    }
    for key, kind in stored.items():
        value = (await client.call(get(key))).kvs[0].value
        document = json.loads(value)
        assert b"\n" not in value
        assert (document["apiVersion"], document["kind"]) == ("kilo.squat.ai/v1alpha1", kind)
    await backend.close()


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "../x"])
async def test_a_name_that_is_none_is_refused_before_anything_is_asked(
    keys: Keys, name: str
) -> None:
    backend = open_backend(keys, url="http://127.0.0.1:9")
    report, peer = make_report(name), make_peer(name)
    calls = (
        backend.publish(report),
        backend.withdraw(name),
        backend.put_peer(peer),
        backend.delete_peer(name),
        backend.declare_node(name, NodeSpec()),
    )
    for call in calls:
        with pytest.raises(BackendError, match="is not a name"):
            await call
    await backend.close()


# Leases


async def test_a_report_is_held_by_a_lease_that_outlasts_an_outage(
    client: Client, keys: Keys
) -> None:
    backend = open_backend(keys)
    await backend.publish(make_report("a1"))
    first = await read_lease(client, keys)
    assert LEASE_SECONDS >= 12 * 3600
    assert f"granted with TTL({LEASE_SECONDS}s)" in share_etcd().ctl(
        "lease", "timetolive", f"{first:x}"
    )
    await backend.publish(make_report("a1", endpoint="203.0.113.9:51820"))
    assert await read_lease(client, keys) == first
    await backend.close()


async def test_what_operators_write_is_held_by_no_lease(client: Client, keys: Keys) -> None:
    backend = open_backend(keys)
    await backend.declare_node("a1", NodeSpec())
    await backend.put_peer(make_peer("squat"))
    for key in (keys.node("a1"), keys.peer("squat")):
        assert (await client.call(get(key))).kvs[0].lease == 0
    await backend.close()


async def test_the_report_of_a_dead_agent_goes_with_its_lease(client: Client, keys: Keys) -> None:
    follower = Follower(open_backend(keys))
    backend = open_backend(keys, lease_seconds=2)
    await backend.publish(make_report("a1"))
    await follower.until(lambda snapshot: bool(snapshot.nodes))
    await backend.close()
    assert await has_report(client, keys)  # stopping is not uninstalling
    await follower.until(lambda snapshot: not snapshot.nodes)


async def test_the_report_of_a_living_agent_stays_though_it_publishes_nothing(
    client: Client, keys: Keys
) -> None:
    short = (await client.call(grant(4))).ID
    await client.call(put(f"{keys.prefix}subnets/yardstick", b"", lease=short))
    backend = open_backend(keys, lease_seconds=2, renew_seconds=0.5)
    await backend.publish(make_report("a1"))
    first = await read_lease(client, keys)

    async def has_been_long() -> bool:
        """A lease of twice the length, which nobody renews, has run out."""
        return not (await client.call(get(f"{keys.prefix}subnets/yardstick"))).kvs

    await until(has_been_long)
    assert await read_lease(client, keys) == first
    await backend.close()


async def test_an_agent_that_starts_again_takes_its_report_over(client: Client, keys: Keys) -> None:
    first = open_backend(keys)
    await first.publish(make_report("a1"))
    old = await read_lease(client, keys)
    await first.close()
    follower = Follower(open_backend(keys))
    await follower.until(lambda snapshot: bool(snapshot.nodes))
    second = open_backend(keys)
    await second.publish(make_report("a1"))
    revoke(old)
    await second.put_peer(make_peer("squat"))
    last = await follower.until(lambda snapshot: names(snapshot) == ["squat"])
    assert [node.report for node in last.nodes] == [make_report("a1")]
    await second.close()


async def test_a_lease_that_ran_out_is_granted_anew_and_the_report_is_put_again(
    client: Client, keys: Keys
) -> None:
    backend = open_backend(keys, renew_seconds=0.2)
    await backend.publish(make_report("a1"))
    old = await read_lease(client, keys)
    revoke(old)

    async def is_back() -> bool:
        return await read_lease(client, keys) not in (0, old)

    await until(is_back)
    snapshot = await backend.snapshot()
    assert [node.report for node in snapshot.nodes] == [make_report("a1")]
    await backend.close()


async def test_a_report_is_put_though_its_lease_has_just_run_out(
    client: Client, keys: Keys
) -> None:
    backend = open_backend(keys)
    await backend.publish(make_report("a1"))
    revoke(await read_lease(client, keys))
    await backend.publish(make_report("a1"))
    assert await has_report(client, keys)
    await backend.close()


async def test_what_was_withdrawn_is_not_put_again(client: Client, keys: Keys) -> None:
    backend = open_backend(keys, renew_seconds=0.1)
    await backend.publish(make_report("a1"))
    await backend.publish(make_report("b1"))
    await backend.withdraw("a1")
    old = (await client.call(get(keys.report("b1")))).kvs[0].lease
    revoke(old)

    async def is_back() -> bool:
        return bool((await client.call(get(keys.report("b1")))).kvs)

    await until(is_back)
    assert not await has_report(client, keys)
    await backend.close()


async def test_a_report_that_was_lost_in_an_outage_is_back_soon_after_it(
    tmp_path: Path,
) -> None:
    keys = Keys("/kilo/")
    with Etcd(tmp_path) as etcd, Relay(port=etcd.port) as relay:
        url = f"http://127.0.0.1:{relay.port}"
        backend = open_backend(keys, url=url, lease_seconds=2, renew_seconds=0.5)
        await backend.publish(make_report("a1"))
        client = connect(etcd.url)
        relay.refuse()

        async def is_gone() -> bool:
            return not await has_report(client, keys)

        await until(is_gone)
        relay.resume()
        await until(lambda: has_report(client, keys))
        await client.close()
        await backend.close()


async def test_a_report_that_could_not_be_put_back_at_once_is_put_back_later(
    client: Client,
) -> None:
    restored = asyncio.Event()
    tries = 0

    async def restore() -> None:
        """As a report is put back: under a new lease, and the first time the store fails."""
        nonlocal tries
        tries += 1
        await lease.get()
        if tries == 1:
            raise BackendError("the store is away again")
        restored.set()

    lease = Lease(client, restore=restore, renew_seconds=0.2)
    revoke(await lease.get())
    async with asyncio.timeout(LIMIT_SECONDS):
        await restored.wait()
    await lease.stop()


async def test_many_tasks_may_publish_and_withdraw_at_once(client: Client, keys: Keys) -> None:
    backend = open_backend(keys)
    found = [f"n{number}" for number in range(20)]
    await asyncio.gather(*(backend.publish(make_report(name)) for name in found))
    leases = {
        pair.lease for name in found for pair in (await client.call(get(keys.report(name)))).kvs
    }
    assert len(leases) == 1
    await asyncio.gather(
        *(backend.publish(make_report(name)) for name in found[::2]),
        *(backend.withdraw(name) for name in found[1::2]),
    )
    snapshot = await backend.snapshot()
    assert [node.name for node in snapshot.nodes] == sorted(found[::2])
    await backend.close()


# Registration


class Register(Registration):
    """Notes what it is asked for, and fails as a test wants it to."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self.asked: list[tuple[str, bool]] = []
        self.noted: list[str] = []
        self.faults: dict[str, BackendError] = {}
        self._client = client
        self._keys = keys

    async def ensure(self, name: str) -> None:
        await self._take("ensure", name)

    async def provide(self, name: str) -> None:
        await self._take("provide", name)

    def note_change(self, key: str) -> None:
        self.noted.append(key)

    async def _take(self, what: str, name: str) -> None:
        assert name == "a1"
        self.asked.append((what, await has_report(self._client, self._keys)))
        if what in self.faults:
            raise self.faults[what]


async def test_a_node_is_declared_before_its_report_and_provided_for_after_it(
    client: Client, keys: Keys
) -> None:
    register = Register(client, keys)
    backend = EtcdBackend(connect(share_etcd().url), keys, registration=register)
    register.faults["ensure"] = BackendError("not to be declared")
    with pytest.raises(BackendError, match="not to be declared"):
        await backend.publish(make_report("a1"))
    assert not await has_report(client, keys)
    register.faults = {"provide": BackendError("the pool is exhausted")}
    with pytest.raises(BackendError, match="exhausted"):
        await backend.publish(make_report("a1"))
    assert await has_report(client, keys)
    assert register.asked == [("ensure", False), ("ensure", False), ("provide", True)]
    await backend.close()


async def test_a_report_that_is_under_way_when_it_is_closed_leaves_nothing_running(
    client: Client, keys: Keys
) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    class Slow(Register):
        async def ensure(self, name: str) -> None:
            begun.set()
            await may_end.wait()
            await super().ensure(name)

    before = asyncio.all_tasks()
    backend = EtcdBackend(connect(share_etcd().url), keys, registration=Slow(client, keys))
    publishing = asyncio.create_task(backend.publish(make_report("a1")))
    await begun.wait()
    await backend.close()
    may_end.set()
    with pytest.raises(BackendError, match="closed"):
        await publishing
    assert {task.get_name() for task in asyncio.all_tasks() - before} == set()


async def test_the_registration_hears_of_every_key_that_changes(client: Client, keys: Keys) -> None:
    register = Register(client, keys)
    backend = EtcdBackend(connect(share_etcd().url), keys, registration=register)
    follower = Follower(backend)
    await follower.next()
    await backend.declare_node("a1", NodeSpec())
    await follower.until(lambda snapshot: bool(snapshot.nodes))
    await backend.forget_node("a1")
    await follower.until(lambda snapshot: not snapshot.nodes)
    assert register.noted == [keys.node("a1")] * 2
    await backend.close()
