"""One agent at work between a store and a kernel that are both made of dicts.

The own host is ``a``, which leads the location ``north``; ``b`` is its neighbour there, ``c`` is
the location ``south``, and ``phone`` a peer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from kilo.backends.base import Backend
from kilo.backends.memory import MemoryBackend
from kilo.dataplane.base import Dataplane
from kilo.dataplane.memory import MemoryDataplane
from kilo.engine import CleanUp, Engine
from kilo.lastgood import SnapshotFile
from kilo.mesh.host import HostFacts
from kilo.mesh.model import IPAddress, NodeReport, PartialSettings
from kilo.mesh.plan import Agent
from kilo.mesh.state import DataplaneState
from kilo.mesh.view import RenderOptions
from kilo.pods import PodConfiguration
from kilo.resolver import Lookup
from kilo.status import Status
from tests.builders import make_key, make_report, make_spec, networks
from tests.mesh.fleets import make_facts

LIMIT_SECONDS = 20.0
HOST = replace(
    make_facts(eth0="198.51.100.1/24 192.168.1.11/24"),
    sysctls={"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"},
)
NEIGHBOUR = make_report("b", endpoint="198.51.100.2:51820", internal_ips=("192.168.1.12/24",))
REMOTE = make_report("c", endpoint="198.51.100.3:51820", internal_ips=("192.168.2.11/24",))


class Clock:
    """The store's wall clock, which a test can put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def resolve_nothing(name: str) -> list[IPAddress]:
    raise OSError(f"{name}: no resolver in this test")


def make_backend(clock: Callable[[], float] = time.time) -> MemoryBackend:
    """The store of the mesh described above; everybody was seen just now."""
    backend = MemoryBackend(wall_clock=clock)
    backend.put_node("a", make_spec(location="north", pod_subnets=networks("10.2.1.0/24")))
    backend.put_node("b", make_spec(location="north", pod_subnets=networks("10.2.2.0/24")))
    backend.put_node("c", make_spec(location="south", pod_subnets=networks("10.2.3.0/24")))
    backend.put_report(NEIGHBOUR, last_seen=int(clock()))
    backend.put_report(REMOTE, last_seen=int(clock()))
    backend.put_document("Peer phone", _PHONE)
    return backend


_PHONE = {
    "apiVersion": "kilo.squat.ai/v1alpha1",
    "kind": "Peer",
    "metadata": {"name": "phone"},
    "spec": {"publicKey": str(make_key("phone")), "allowedIPs": ["10.5.0.1/32"]},
}


@dataclass(kw_only=True)
class World:
    """The agent with everything around it."""

    path: Path
    backend: MemoryBackend = field(default_factory=make_backend)
    dataplane: MemoryDataplane = field(default_factory=lambda: MemoryDataplane(facts=HOST))
    flags: PartialSettings = field(default_factory=PartialSettings)
    clean_up: CleanUp = field(default_factory=lambda: CleanUp(network=False))
    look_up: Lookup = resolve_nothing
    pods: PodConfiguration | None = None
    options: RenderOptions = field(default_factory=RenderOptions)
    store: Backend | None = None
    """Instead of ``backend``, for a store that misbehaves."""
    kernel: Dataplane | None = None
    """Instead of ``dataplane``, for a kernel that misbehaves."""
    agent: Agent = field(init=False)
    status: Status = field(init=False)
    engine: Engine = field(init=False)
    stop: asyncio.Event = field(init=False)
    task: asyncio.Task[None] = field(init=False)

    def start(self) -> None:
        """A new agent, from now on at work."""
        self.agent = Agent(
            name="a", public_key=make_key("a"), flags=self.flags, options=self.options
        )
        self.status = Status(name="a", interface="kilo0")
        self.stop = asyncio.Event()
        self.engine = Engine(
            self.agent,
            self.store or self.backend,
            self.kernel or self.dataplane,
            self.status,
            SnapshotFile(self.path / "snapshot.json"),
            pods=self.pods,
            clean_up=self.clean_up,
            look_up=self.look_up,
        )
        self.task = asyncio.create_task(self.engine.run(self.stop))

    async def end(self) -> None:
        """What SIGTERM does."""
        self.stop.set()
        async with asyncio.timeout(LIMIT_SECONDS):
            await self.task

    async def kill(self) -> None:
        """The agent is gone without a chance to do anything."""
        self.task.cancel()
        await asyncio.wait({self.task})

    async def eventually(
        self, holds: Callable[[], object], *, seconds: float = LIMIT_SECONDS
    ) -> None:
        """Returns when it holds; fails if it does not in time, or if the agent has ended."""
        deadline = time.monotonic() + seconds
        while not holds():
            if self.task.done():
                await self.task
                raise AssertionError("the agent has ended")
            assert time.monotonic() < deadline, f"not within {seconds} s: {self.status.not_ready}"
            await asyncio.sleep(0.005)

    async def settled(self) -> DataplaneState:
        """The state after a pass that changed the last thing there was to change."""
        await self.eventually(lambda: self.status.not_ready == "")
        before = -1.0
        while before != self.writes:
            before = self.writes
            await self.next_pass()
        return await self.dataplane.read()

    async def next_pass(self) -> None:
        """A whole pass from now on, asked for by a notification of the kernel's."""
        await let_everything_run()
        passes = self.passes
        self.dataplane.interfere()
        await self.eventually(lambda: self.passes > passes)
        await let_everything_run()

    def read(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """A metric, as a dashboard sees it."""
        return self.status.registry.get_sample_value(name, dict(labels or {})) or 0.0

    @property
    def passes(self) -> float:
        return self.read("kilo_reconciles_total")

    @property
    def writes(self) -> float:
        return float(self.dataplane.writes)

    @property
    def names(self) -> set[str]:
        """The nodes that take part."""
        topology = self.status.topology
        return {node.name for node in topology.nodes} if topology else set()

    def find_report(self) -> NodeReport | None:
        """What the store has of the own node."""
        node = next(node for node in self.backend._read().nodes if node.name == "a")
        return node.report


async def let_everything_run() -> None:
    """Every task does what it can do without time passing."""
    for _ in range(100):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(world: World) -> AsyncIterator[World]:
    """The agent at work; at the end it is stopped as by SIGTERM, if it has not been."""
    world.start()
    try:
        yield world
        if not world.task.done():
            await world.end()
    finally:
        await world.kill()


def hold_addresses(*addresses: str) -> HostFacts:
    """The own host with these addresses on its one link."""
    return replace(HOST, addresses=make_facts(eth0=" ".join(addresses)).addresses)
