"""What ``kgctl plan`` foretells is what agents do: random changes, foretold, made, compared."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kilo.backends.objects import (
    DeclaredNode,
    DeclaredSettings,
    Found,
    ReportedNode,
    StoredObject,
)
from kilo.kgctl.overlay import overlay
from kilo.mesh.foretell import LAN, Foretold, Hosts, foretell, name_keys
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import (
    Encapsulation,
    Endpoint,
    Granularity,
    IPNetwork,
    NodeReport,
    PartialSettings,
    Peer,
    Settings,
    Snapshot,
)
from kilo.mesh.survey import Flags, make_survey
from kilo.mesh.view import RenderOptions
from tests.builders import interfaces, make_key, make_preshared_key, make_spec, networks
from tests.engine.world import NEIGHBOUR, REMOTE, World, running

CHANGES = 50
"""Of each of the four seeds: 200 in all."""
UNTOLD = Flags(settings=PartialSettings(), defaults=Settings())
OPTIONS = RenderOptions(cni=True, forward_rules=True)
OTHERS = "bcde"
LOCATIONS = ("", "north", "south", "west")
POD_SUBNETS = networks("10.2.1.0/24", "10.2.2.0/24", "10.2.7.0/24", "10.2.0.0/20", "fd00:a::/64")
LOCATION_IPS = networks("192.168.8.8/32", "192.168.8.0/24", "192.168.0.0/16", "10.5.0.0/16")
CLAIMS = networks(
    "10.5.0.1/32", "10.5.0.2/32", "10.5.0.0/24", "10.2.2.0/25", "192.168.0.0/16", "fd00:5::1/128"
)
ENDPOINTS = ("198.51.100.77:1", "192.168.1.77:2", "[2001:db8::77]:3")
"""No names: what a resolver says, and when, is not of the store."""
SUBNETS = (
    networks("10.4.0.0/16"),
    networks("10.4.0.0/24", "fd00:4::/64"),
    networks("10.4.64.0/20"),
)


class Chance:
    """The hands of an operator who does anything."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def change(self) -> StoredObject:
        """Some object as it might be written next."""
        makers = (self.make_node, self.make_node, self.make_peer, self.make_report)
        return self._random.choice((*makers, self.make_peer, self.make_settings))()

    def make_node(self) -> StoredObject:
        """``a`` keeps its addresses: it is the host that the test can see."""
        name = self._random.choice("a" + OTHERS)
        forced = (None, None, None, ()) if name == "a" else (None, (), interfaces("192.168.3.9/24"))
        spec = make_spec(
            location=self._random.choice(LOCATIONS),
            endpoint=self._random.choice((None, None, *map(Endpoint.parse, ENDPOINTS))),
            internal_ips=self._random.choice(forced),
            leader=self._random.random() < 0.2,
            persistent_keepalive_seconds=self._random.choice((0, 0, 25)),
            allowed_location_ips=self._some(LOCATION_IPS),
            pod_subnets=self._some(POD_SUBNETS),
        )
        return DeclaredNode(name=name, spec=spec)

    def make_report(self) -> StoredObject:
        name = self._random.choice(OTHERS)
        place = self._random.choice((1, 2))
        address = f"192.168.{place}.{ord(name)}"
        seen = ((make_key("p"), Endpoint.parse("203.0.113.5:5")),)
        report = NodeReport(
            name=name,
            public_key=make_key(self._random.choice((name, name, name, "b", "p"))),
            endpoint=Endpoint.parse(self._random.choice((f"{address}:51820", *ENDPOINTS))),
            internal_ips=interfaces(f"{address}/24") if self._random.random() < 0.8 else (),
            discovered_endpoints=seen if self._random.random() < 0.3 else (),
            agent="" if self._random.random() < 0.1 else "kg",
        )
        return ReportedNode(report=report, last_seen=int(time.time()))

    def make_peer(self) -> StoredObject:
        """``q`` never has an endpoint, the others always have: which one a device keeps when its
        own is taken from the store, the store does not tell.
        """
        name = self._random.choice("pqr")
        return Peer(
            name=name,
            public_key=make_key(
                "q" if name == "q" else self._random.choice((name, name, "p", "b"))
            ),
            allowed_ips=self._some(CLAIMS) or CLAIMS[:1],
            persistent_keepalive_seconds=self._random.choice((0, 10)),
            preshared_key=self._random.choice((None, make_preshared_key(name))),
            endpoint=None if name == "q" else Endpoint.parse(self._random.choice(ENDPOINTS)),
        )

    def make_settings(self) -> StoredObject:
        settings = PartialSettings(
            granularity=self._random.choice(list(Granularity)),
            encapsulation=self._random.choice(list(Encapsulation)),
            subnets=self._random.choice(SUBNETS),
            mtu=self._random.choice((None, 1300)),
            service_cidrs=self._random.choice(((), networks("10.43.0.0/16"))),
        )
        return DeclaredSettings(settings=settings)

    def _some(self, pool: Sequence[IPNetwork]) -> tuple[IPNetwork, ...]:
        return tuple(self._random.sample(pool, self._random.choice((0, 1, 1, 2))))


def write(world: World, value: StoredObject) -> None:
    """As its writer puts it into the store."""
    match value:
        case DeclaredNode():
            world.backend.put_node(value.name, value.spec)
        case ReportedNode():
            world.backend.put_report(value.report, last_seen=value.last_seen)
        case Peer():
            world.backend._store_peer(value)
        case DeclaredSettings():
            world.backend.put_settings(value.settings)


def find(value: StoredObject) -> Found:
    """As it is read from a document."""
    match value:
        case DeclaredNode() | Peer():
            return Found(source="test", kind="", name=value.name, value=value)
        case ReportedNode():
            return Found(source="test", kind="", name=value.report.name, value=value)
    return Found(source="test", kind="", name="mesh", value=value)


def foretell_own(before: Snapshot, after: Snapshot) -> Foretold:
    """What the agent of ``a`` will do."""
    wall = time.time()
    now = make_survey(before, UNTOLD, wall=wall)
    then = make_survey(after, UNTOLD, wall=wall, evident=now.evident)
    hosts = Hosts(options=OPTIONS)
    return next(one for one in foretell(now, then, hosts) if one.node == "a")


async def read_keys(world: World) -> set[PublicKey]:
    """Whom the device of ``a`` may have sessions with."""
    return {peer.public_key for peer in (await world.dataplane.read()).peers}


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_foretold_is_what_happens(tmp_path: Path, seed: int) -> None:
    chance = Chance(seed)
    world = World(path=tmp_path, options=OPTIONS)
    for report in (NEIGHBOUR, REMOTE):
        # Their agents are none that would follow the settings and say so.
        silent = replace(report, granularity=None)
        world.backend.put_report(silent, last_seen=int(time.time()))
    counts = {"changes": 0, "nothing": 0, "cut": 0, "left as it is": 0}
    async with running(world):
        await world.settled()
        for _ in range(CHANGES):
            before = await world.backend.snapshot()
            value = chance.change()
            foretold = foretell_own(before, overlay(before, [find(value)], now=int(time.time())))
            writes, keys = world.writes, await read_keys(world)
            write(world, value)
            await settle(world, foretold)
            done = world.dataplane.applied[int(writes) :]
            expected = [str(step).replace(f"dev {LAN} ", "dev eth0 ") for step in foretold.changes]
            assert list(map(str, done)) == expected, value
            names = name_keys(before)
            cut = {names[key] for key in keys - await read_keys(world)}
            assert sorted(cut) == list(foretold.cut)
            counts["changes" if done else "nothing"] += 1
            counts["cut"] += len(cut)
            if foretold.note:
                counts["left as it is"] += 1
                await undo(world, before)
    assert counts["changes"] > CHANGES / 4
    assert counts["cut"] > 0


async def settle(world: World, foretold: Foretold) -> None:
    """The agent has done what it does about the change, even if that is nothing."""
    if foretold.note:
        await world.eventually(lambda: world.status.not_ready)
        await world.next_pass()
    else:
        await world.settled()


async def undo(world: World, before: Snapshot) -> None:
    """Nothing can be foretold of an agent that has not done what the mesh wants."""
    for source in [*world.backend._documents]:
        world.backend.delete_document(source)
    for node in before.nodes:
        world.backend._store_node(node)
        if node.report is not None:
            world.backend.put_report(node.report, last_seen=before.last_seen.get(node.name))
    for peer in before.peers:
        world.backend._store_peer(peer)
    world.backend.put_settings(before.settings)
    await world.settled()
