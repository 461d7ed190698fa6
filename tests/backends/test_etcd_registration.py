"""A node's first declaration and its pod subnets, on a real etcd."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import urllib.request
from collections.abc import AsyncIterator
from contextlib import aclosing
from ipaddress import ip_network
from typing import Any

import pytest

from kilo.agentflags import parse_agent_flags
from kilo.backends.documents import make_node_document, make_settings_document
from kilo.backends.etcd.backend import EtcdBackend
from kilo.backends.etcd.client import Client
from kilo.backends.etcd.config import EtcdConfig
from kilo.backends.etcd.endpoints import read_prefix
from kilo.backends.etcd.keys import Keys
from kilo.backends.etcd.pools import choose_subnets, complete_spec, release, take_subnets
from kilo.backends.etcd.registration import RECHECK_SECONDS, Registrar
from kilo.backends.etcd.views import read_view
from kilo.backends.opening import open_store
from kilo.errors import BackendError
from kilo.mesh.model import IPNetwork, NodeSpec, PartialSettings, Snapshot, SubnetPool
from tests.backends.etcdfleet import (
    NODES,
    POOL,
    list_by_hand,
    list_names,
    register_all,
    run_processes,
)
from tests.backends.etcds import Etcd, share_etcd
from tests.builders import make_report, make_spec, networks

NUMBERS = itertools.count(1)


class Site:
    """A prefix of its own in a real etcd: its operator, and agents that register nodes."""

    def __init__(self, etcd: Etcd) -> None:
        self.etcd = etcd
        prefix = f"/registration-{next(NUMBERS)}"
        self.config = EtcdConfig(endpoints=(etcd.url,), prefix=prefix)
        self.keys = Keys(read_prefix(self.config.prefix))
        self.client = Client(self.config)
        self.seconds = 0.0

    def make_registrar(self, spec: NodeSpec | None = None) -> Registrar:
        return Registrar(self.client, self.keys, spec, clock=lambda: self.seconds)

    async def register(self, name: str, spec: NodeSpec | None = None) -> Registrar:
        """What an agent does before and after its first report."""
        registrar = self.make_registrar(spec)
        await registrar.ensure(name)
        await registrar.provide(name)
        return registrar

    def set_pools(self, *pools: tuple[str, int]) -> None:
        made = tuple(
            SubnetPool(network=ip_network(text), node_prefix_length=length)
            for text, length in pools
        )
        settings = PartialSettings(pod_subnet_pools=made)
        self.put(self.keys.settings, make_settings_document(settings))

    def declare(self, name: str, *subnets: str, **attributes: object) -> None:
        spec = make_spec(pod_subnets=networks(*subnets), **attributes)
        self.put(self.keys.node(name), make_node_document(name, spec))

    def put(self, key: str, document: object) -> None:
        self.etcd.ctl("put", key, text=json.dumps(document))

    def delete(self, key: str) -> None:
        self.etcd.ctl("del", key)

    def read(self, prefix: str) -> dict[str, Any]:
        """All documents below the prefix, by key without it."""
        keys = self.etcd.ctl("get", "--prefix", prefix, "--keys-only").split()
        texts = self.etcd.ctl("get", "--prefix", prefix, "--print-value-only").splitlines()
        pairs = zip(keys, filter(None, texts), strict=True)
        return {key.removeprefix(prefix): json.loads(text) for key, text in pairs}

    def count_requests(self) -> int:
        """Reads, writes and transactions that the store has answered since it was started."""
        with urllib.request.urlopen(f"{self.etcd.url}/metrics", timeout=60.0) as answer:
            lines = answer.read().decode().splitlines()
        handled = re.compile(r'grpc_server_handled_total{.*grpc_service="etcdserverpb.KV".*} (\S+)')
        return sum(int(float(match[1])) for match in map(handled.fullmatch, lines) if match)

    def read_nodes(self) -> dict[str, Any]:
        """What is declared of each node."""
        found = self.read(f"{self.keys.prefix}nodes/")
        return {name: document.get("spec") for name, document in found.items()}

    def read_subnets(self, name: str) -> list[str]:
        return list((self.read_nodes()[name] or {}).get("podSubnets", []))

    def read_holders(self) -> dict[str, str]:
        """Subnet, as in its key -> node."""
        return {key: value["node"] for key, value in self.read(self.keys.subnets).items()}


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site(share_etcd())
    yield made
    await made.client.close()


# Registration.


async def test_a_node_that_nobody_declared_is_declared_as_its_flags_say(site: Site) -> None:
    spec = NodeSpec(
        location="oregon",
        leader=True,
        pod_subnets=networks("10.2.1.0/24"),
        allowed_location_ips=networks("192.168.1.50/32"),
    )
    await site.register("a1", spec)
    assert site.read(site.keys.prefix) == {"nodes/a1": make_node_document("a1", spec)}


async def test_the_flags_of_an_agent_become_the_declaration_of_its_node(site: Site) -> None:
    flags = [
        "--backend=etcd",
        f"--etcd-endpoints={site.etcd.url}",
        f"--etcd-prefix={site.config.prefix}",
        "--location=home",
        "--endpoint=home.example.com:51820",
        "--persistent-keepalive=10",
    ]
    async with open_store(parse_agent_flags(flags, {}).backend) as agent:
        await agent.publish(make_report("a1"))
    assert site.read_nodes() == {
        "a1": {
            "location": "home",
            "endpoint": "home.example.com:51820",
            "persistentKeepalive": 10,
        }
    }


@pytest.mark.parametrize("declared", [{"leader": True}, {}])
async def test_what_an_operator_declared_stays_whatever_the_flags_say(
    site: Site, declared: dict[str, object]
) -> None:
    site.declare("a1", **declared)
    await site.register("a1", NodeSpec(location="oregon", pod_subnets=networks("10.2.1.0/24")))
    assert site.read_nodes() == {"a1": declared}


async def test_without_flags_nothing_is_declared_and_no_subnet_given(site: Site) -> None:
    site.set_pools(("10.2.0.0/16", 24))
    await site.register("a1")
    assert set(site.read(site.keys.prefix)) == {"settings"}


async def test_nothing_is_asked_of_the_store_while_nothing_can_have_changed(site: Site) -> None:
    site.set_pools(("10.2.0.0/16", 24))
    registrar = await site.register("a1", NodeSpec())
    before = site.count_requests()
    for _ in range(20):
        await registrar.ensure("a1")
        await registrar.provide("a1")
        registrar.note_change(site.keys.report("a1"))
        registrar.note_change(site.keys.node("b1"))
    assert site.count_requests() == before
    site.seconds += RECHECK_SECONDS
    await registrar.ensure("a1")
    await registrar.provide("a1")
    assert site.count_requests() == before + 1


async def test_a_declaration_that_went_is_made_anew_once_it_is_told(site: Site) -> None:
    registrar = await site.register("a1", NodeSpec(location="oregon"))
    site.delete(site.keys.node("a1"))
    await registrar.ensure("a1")
    assert site.read_nodes() == {}
    registrar.note_change(site.keys.node("a1"))
    await registrar.ensure("a1")
    assert site.read_nodes() == {"a1": {"location": "oregon"}}


async def test_a_pool_that_is_set_later_is_used_once_it_is_told(site: Site) -> None:
    registrar = await site.register("a1", NodeSpec())
    site.set_pools(("10.2.0.0/24", 24))
    registrar.note_change(site.keys.settings)
    await registrar.ensure("a1")
    await registrar.provide("a1")
    assert site.read_subnets("a1") == ["10.2.0.0/24"]


async def test_an_agent_that_watches_is_told_and_declares_before_it_reports(site: Site) -> None:
    registrar = site.make_registrar(NodeSpec(location="oregon"))
    backend = EtcdBackend(site.client, site.keys, registration=registrar)
    await backend.publish(make_report("a1"))
    async with aclosing(backend.watch()) as snapshots, asyncio.timeout(60.0):
        async for snapshot in snapshots:
            assert isinstance(snapshot, Snapshot)
            (node,) = snapshot.nodes
            assert node.report is not None
            if not node.spec.location:
                break
            site.delete(site.keys.node("a1"))
    await backend.publish(make_report("a1"))
    assert site.read_nodes() == {"a1": {"location": "oregon"}}
    await backend.close()


async def test_a_store_that_failed_is_asked_again(site: Site) -> None:
    registrar = site.make_registrar(NodeSpec())
    await site.client.close()
    with pytest.raises(BackendError):
        await registrar.ensure("a1")
    with pytest.raises(BackendError):
        await registrar.ensure("a1")


# Pod subnets.


async def test_a_node_gets_a_subnet_of_each_pool_and_keeps_them_whatever_happens(
    site: Site,
) -> None:
    site.set_pools(("10.2.0.0/16", 24), ("fd00:2::/48", 64))
    await site.register("a1", NodeSpec(location="oregon"))
    first, second = (ip_network(text) for text in site.read_subnets("a1"))
    assert (first.version, first.prefixlen, second.version, second.prefixlen) == (4, 24, 6, 64)
    assert site.read_holders() == {
        f"{first.network_address}-24": "a1",
        f"{second.network_address}-64": "a1",
    }

    site.delete(site.keys.node("a1"))
    await site.register("a1", NodeSpec(location="frankfurt"))
    assert site.read_subnets("a1") == [str(first), str(second)]
    site.declare("a1", location="singapore")
    await site.register("a1")
    assert site.read_nodes() == {
        "a1": {"location": "singapore", "podSubnets": [str(first), str(second)]}
    }
    assert len(site.read_holders()) == 2


async def test_a_node_that_an_operator_declared_gets_a_subnet_beside_all_that_he_wrote(
    site: Site,
) -> None:
    site.set_pools(("10.2.0.0/24", 24), ("fd00:2::/48", 64))
    document = make_node_document("a1", make_spec(location="größer", leader=True))
    document["metadata"] = {"name": "a1", "labels": {"rack": "7"}}
    document["spec"] |= {"colour": "red", "podSubnets": "fd00:9::/64, oops"}  # type: ignore[operator]  # a mapping
    site.put(site.keys.node("a1"), document)
    await site.register("a1", NodeSpec(location="oregon"))
    document["spec"] |= {"podSubnets": ["fd00:9::/64", "oops", "10.2.0.0/24"]}  # type: ignore[operator]  # a mapping
    assert site.read(f"{site.keys.prefix}nodes/") == {"a1": document}


async def test_what_is_declared_by_hand_or_set_aside_is_given_to_nobody(site: Site) -> None:
    site.set_pools(("10.2.0.0/24", 27))  # eight parts
    site.declare("wide", "10.2.0.0/26")
    site.declare("narrow", "fd00:9::/64", "10.2.0.65/32")
    site.put(f"{site.keys.subnets}10.2.0.96-27", {"node": ""})
    site.etcd.ctl("put", f"{site.keys.subnets}10.2.0.128-26", text="not a document")
    site.etcd.ctl("put", f"{site.keys.subnets}something", text="else")
    await site.register("a1", NodeSpec())
    await site.register("a2", NodeSpec())
    assert sorted(site.read_subnets("a1") + site.read_subnets("a2")) == [
        "10.2.0.192/27",
        "10.2.0.224/27",
    ]
    with pytest.raises(BackendError, match="no free /27 left"):
        await site.register("a3", NodeSpec())


async def test_a_key_that_names_a_network_with_a_zone_stands_for_none(site: Site) -> None:
    site.set_pools(("fd00:2::/64", 64))
    site.put(f"{site.keys.subnets}fd00:2::%x-64", {"node": "a9"})
    await site.register("a1", NodeSpec())
    assert site.read_subnets("a1") == ["fd00:2::/64"]


async def test_a_pool_with_nothing_left_is_one_line_and_others_are_given_out(site: Site) -> None:
    site.set_pools(("10.2.0.0/24", 25), ("fd00:2::/48", 64))
    for name in ("a1", "a2"):
        await site.register(name, NodeSpec())
    registrar = site.make_registrar(NodeSpec())
    await registrar.ensure("a3")
    for _ in range(2):
        with pytest.raises(BackendError) as error:
            await registrar.provide("a3")
        assert str(error.value) == "pod subnet pool 10.2.0.0/24: no free /25 left"
    (subnet,) = site.read_subnets("a3")
    assert subnet.endswith("/64")

    freed = site.read_subnets("a1")[0]
    await release(site.client, site.keys, "a1")
    await registrar.provide("a3")
    assert site.read_subnets("a3") == [subnet, freed]


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "Pear"},
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a1"}},
        make_node_document("b1", NodeSpec()),
    ],
    ids=["nothing of ours", "a Node of Kubernetes", "another's"],
)
async def test_a_declaration_that_is_none_is_named_and_left_as_it_is(
    site: Site, document: dict[str, object]
) -> None:
    site.set_pools(("10.2.0.0/24", 25))
    site.put(site.keys.node("a1"), document)
    registrar = site.make_registrar(NodeSpec())
    await registrar.ensure("a1")
    with pytest.raises(BackendError) as error:
        await registrar.provide("a1")
    key = site.keys.node("a1")
    assert str(error.value) == f"{key}: is no Node, so no pod subnet is declared in it"
    assert site.read(key) == {"": document}


async def test_pod_subnets_that_are_none_are_named_and_left_as_they_are(site: Site) -> None:
    site.set_pools(("10.2.0.0/24", 25))
    document = make_node_document("a1", NodeSpec()) | {"spec": {"podSubnets": 5}}
    site.put(site.keys.node("a1"), document)
    with pytest.raises(BackendError) as error:
        await site.register("a1")
    key = site.keys.node("a1")
    assert str(error.value) == (
        f"{key}: spec.podSubnets: '5' is not a list, so no pod subnet is declared in it"
    )
    assert site.read(key) == {"": document}


@pytest.mark.parametrize("how", ["declares", "sets aside"])
async def test_a_subnet_that_somebody_uses_by_hand_at_the_same_moment_is_left_to_him(
    site: Site, how: str
) -> None:
    site.set_pools(("10.2.0.0/24", 25))
    site.declare("a1", location="oregon")
    view = await read_view(site.client, site.keys, "a1")
    chosen, _ = choose_subnets(view, "a1", site.keys, 0)
    taken = {}
    if how == "declares":
        site.declare("by-hand", str(chosen[0].subnet))
    else:
        taken = {f"{chosen[0].subnet.network_address}-26": ""}
        site.put(f"{site.keys.subnets}{next(iter(taken))}", {"node": ""})

    assert not await take_subnets(site.client, site.keys, "a1", view, chosen)

    assert site.read_nodes()["a1"] == {"location": "oregon"}
    assert site.read_holders() == taken
    await site.register("a1")
    assert site.read_subnets("a1") not in ([], [str(chosen[0].subnet)])


async def test_what_a_node_holds_stays_its_own_though_something_else_is_given_back(
    site: Site,
) -> None:
    site.set_pools(("10.2.0.0/24", 25))
    await site.register("a1", NodeSpec())
    held = site.read_holders()
    site.set_pools(("10.2.0.0/24", 25), ("fd00:2::/48", 64))
    site.declare("a1")  # without what it holds
    view = await read_view(site.client, site.keys, "a1")
    chosen, _ = choose_subnets(view, "a1", site.keys, 0)
    site.declare("by-hand", str(chosen[1].subnet))

    assert not await take_subnets(site.client, site.keys, "a1", view, chosen)

    assert site.read_subnets("a1") == []
    assert site.read_holders() == held


@pytest.mark.parametrize("what", ["the node", "the subnet", "the pools"])
async def test_what_somebody_else_wrote_meanwhile_is_not_written_over(
    site: Site, what: str
) -> None:
    site.set_pools(("10.2.0.0/24", 25))
    site.declare("a1")
    view = await read_view(site.client, site.keys, "a1")
    chosen, _ = choose_subnets(view, "a1", site.keys, 0)
    if what == "the node":
        site.declare("a1", location="elsewhere")
    elif what == "the pools":
        site.set_pools(("10.2.0.0/24", 26))
    else:
        site.put(chosen[0].key, {"node": "b1"})
    before = site.read(site.keys.prefix)

    assert not await take_subnets(site.client, site.keys, "a1", view, chosen)

    assert site.read(site.keys.prefix) == before


# Forgetting and declaring.


async def test_what_a_node_held_goes_with_its_declaration_and_nothing_else(site: Site) -> None:
    site.set_pools(("10.2.0.0/24", 25), ("fd00:2::/48", 64))
    for name in ("a1", "a2"):
        await site.register(name, NodeSpec())
    await release(site.client, site.keys, "a1")
    assert list(site.read_nodes()) == ["a2"]
    assert set(site.read_holders().values()) == {"a2"}
    await release(site.client, site.keys, "a1")  # absent is not an error
    site.delete(site.keys.node("a2"))
    await release(site.client, site.keys, "a2")
    assert site.read_holders() == {}


async def test_a_declaration_without_pod_subnets_leaves_a_node_those_that_it_holds(
    site: Site,
) -> None:
    site.set_pools(("10.2.0.0/24", 24), ("fd00:2::/64", 64))
    await site.register("a1", NodeSpec())

    async def complete(*subnets: str) -> tuple[IPNetwork, ...]:
        spec = NodeSpec(location="oregon", pod_subnets=networks(*subnets))
        completed = await complete_spec(site.client, site.keys, "a1", spec)
        assert completed.location == "oregon"
        return completed.pod_subnets

    site.put(f"{site.keys.subnets}10.2.9.0-24", {"node": "a1"})  # of a pool that was
    assert set(await complete()) == set(networks("10.2.0.0/24", "fd00:2::/64"))
    assert await complete("10.9.0.0/24") == networks("10.9.0.0/24", "fd00:2::/64")
    spec = NodeSpec(location="oregon")
    assert await complete_spec(site.client, site.keys, "b1", spec) == spec


# Many at once, on a pool with just enough.


def prepare_fleet(site: Site) -> None:
    site.set_pools((str(POOL), 24))
    for number, subnet in enumerate(list_by_hand()):
        site.declare(f"by-hand-{number}", str(subnet))


def check_fleet(site: Site) -> None:
    """Each node has one subnet, nobody else has any part of it, and the keys say the same."""
    nodes = site.read_nodes()
    given = {name: nodes[name]["podSubnets"] for name in list_names()}
    assert {len(subnets) for subnets in given.values()} == {1}
    assert {nodes[name]["location"] for name in given} == {f"location of {name}" for name in given}
    subnets = [ip_network(subnet) for (subnet,) in given.values()]
    assert len(set(subnets)) == NODES
    assert not any(subnet.overlaps(one) for subnet in subnets for one in list_by_hand())
    assert site.read_holders() == {
        subnet.replace("/", "-"): name for name, (subnet,) in given.items()
    }


async def test_two_hundred_agents_that_are_interrupted_get_a_subnet_each(site: Site) -> None:
    prepare_fleet(site)
    chance = random.Random(5)
    interrupted = await register_all(site.config, list_names(), cancelled=chance)
    assert interrupted
    check_fleet(site)


def test_two_hundred_agents_whose_processes_are_killed_get_a_subnet_each(site: Site) -> None:
    prepare_fleet(site)
    killed = run_processes(site.config, list_names(), random.Random(7))
    assert killed
    check_fleet(site)
