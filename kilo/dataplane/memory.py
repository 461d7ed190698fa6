"""A Dataplane without a host: the dry run's, and the double that tests run the engine on.

The kernel behind it is in ``simulation.py``. What only a test or a dry run needs comes after the
contract's own methods: playing the administrator, the network, or a kernel that refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from kilo.dataplane.base import group_failures
from kilo.dataplane.simulation import OURS, SimulatedKernel
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change, Changes
from kilo.mesh.host import HostFacts
from kilo.mesh.keys import PublicKey
from kilo.mesh.state import Address, DataplaneState, Link, PeerStats, Resource, Route, Rule


class MemoryDrift:
    """What ``MemoryDataplane.drift`` returns: reports what was touched since the last report."""

    def __init__(self) -> None:
        self._touched = asyncio.Event()
        self._closed = False

    def __aiter__(self) -> MemoryDrift:
        return self

    async def __anext__(self) -> None:
        await self._touched.wait()
        if self._closed:
            raise StopAsyncIteration
        self._touched.clear()

    def touch(self) -> None:
        """Report at the next chance."""
        self._touched.set()

    async def aclose(self) -> None:
        """End the iteration; may be called twice."""
        self._closed = True
        self.touch()


class MemoryDataplane:
    """A host with one WireGuard interface; its other links are those of the facts given.

    ``facts`` are of the host without what this object adds to it. For use in one event loop.
    """

    def __init__(
        self,
        state: DataplaneState | None = None,
        *,
        interface: str = "kilo0",
        facts: HostFacts | None = None,
    ) -> None:
        self.interface = interface
        self.applied: list[Change] = []
        """Every step that was carried out, in order."""
        self._kernel = SimulatedKernel(interface, state or DataplaneState())
        self._measured: dict[PublicKey, PeerStats] = {}
        self._refusals: dict[str, str] = {}
        self._unreadable = ""
        self._drifts: list[MemoryDrift] = []
        self._facts = HostFacts()
        self.set_facts(facts or HostFacts())

    async def facts(self) -> HostFacts:
        """See ``Dataplane.facts``."""
        mtus, kinds = dict(self._facts.mtus), dict(self._facts.kinds)
        for link, kind in self._kernel.list_own_links():
            mtus[link.name], kinds[link.name] = link.mtu, kind
        return replace(
            self._facts,
            addresses=self._facts.addresses + tuple(self._kernel.list_own_addresses()),
            mtus=MappingProxyType(mtus),
            kinds=MappingProxyType(kinds),
        )

    async def read(self) -> DataplaneState:
        """See ``Dataplane.read``."""
        if self._unreadable:
            raise DataplaneError(self._unreadable)
        return self._kernel.describe()

    async def observe(self) -> Mapping[PublicKey, PeerStats]:
        """See ``Dataplane.observe``."""
        return {
            key: self._measured.get(
                key,
                PeerStats(
                    endpoint=peer.endpoint, latest_handshake=0.0, received_bytes=0, sent_bytes=0
                ),
            )
            for key, peer in self._kernel.peers.items()
        }

    async def apply(self, changes: Changes) -> None:
        """See ``Dataplane.apply``."""
        failures = []
        for step in changes:
            try:
                self._carry_out(step)
            except OSError as error:
                failures.append(DataplaneError(f"{step}: {error.strerror}"))
        if any(isinstance(step.resource, Link | Address) for step in changes):
            self._touch()  # of what the host is like everybody hears, whoever made it so
        if failures:
            raise group_failures(changes, failures)

    def _carry_out(self, step: Change) -> None:
        for text, reason in self._refusals.items():
            if text in str(step):
                raise OSError(0, reason)
        self._kernel.carry_out(step)
        self.applied.append(step)

    def drift(self) -> MemoryDrift:
        """See ``Dataplane.drift``."""
        drift = MemoryDrift()
        self._drifts.append(drift)
        return drift

    async def close(self) -> None:
        """See ``Dataplane.close``; ends every ``drift``."""
        while self._drifts:
            await self._drifts.pop().aclose()

    def _touch(self) -> None:
        for drift in self._drifts:
            drift.touch()

    @property
    def writes(self) -> int:
        """How many steps were carried out so far."""
        return len(self.applied)

    def set_facts(self, facts: HostFacts) -> None:
        """The host's links and addresses are now these; those of our own interface are ignored."""
        own = self.interface
        self._facts = replace(
            facts,
            addresses=tuple(address for address in facts.addresses if address.link != own),
            mtus=MappingProxyType({name: mtu for name, mtu in facts.mtus.items() if name != own}),
            kinds=MappingProxyType(
                {name: kind for name, kind in facts.kinds.items() if name != own}
            ),
        )
        self._kernel.other_links = frozenset(self._facts.mtus)
        self._kernel.other_addresses = self._facts.addresses
        self._kernel.other_sysctls = self._facts.sysctls
        self._touch()

    def set_stats(self, key: PublicKey, stats: PeerStats) -> None:
        """The device measured this; where it heard from a peer becomes the peer's endpoint."""
        self._measured[key] = stats
        peer = self._kernel.peers.get(key)
        if peer is not None:
            self._kernel.peers[key] = replace(peer, endpoint=stats.endpoint)

    def refuse(self, text: str, *, reason: str = "Operation not permitted") -> None:
        """From now on fail every step whose text contains ``text``."""
        self._refusals[text] = reason

    def relent(self) -> None:
        """Refuse nothing any more, and be readable."""
        self._refusals.clear()
        self._unreadable = ""

    def become_unreadable(self, reason: str) -> None:
        """From now on fail every ``read``."""
        self._unreadable = reason

    def read_sysctl(self, name: str) -> str | None:
        """The value that a setting has now, whoever made it so."""
        return self._kernel.sysctls.get(name, self._facts.sysctls.get(name))

    def set_sysctl(self, name: str, value: str) -> None:
        """Somebody sets this; nobody is notified of it, as of a real kernel's."""
        if name in self._kernel.sysctls:
            self._kernel.sysctls[name] = value
        else:
            self.set_facts(
                replace(self._facts, sysctls=MappingProxyType({**self._facts.sysctls, name: value}))
            )

    def interfere(self, *steps: Change) -> None:
        """Somebody does this to what is ours, by hand."""
        for step in steps:
            self._kernel.carry_out(step)
        self._touch()

    def remove(self, *resources: Resource) -> None:
        """Somebody deletes these of ours, by hand."""
        self.interfere(*(Change(old=resource) for resource in resources))

    def add_foreign_route(self, route: Route, *, protocol: str) -> None:
        """Somebody else's route; drift only where it takes the place of one of ours."""
        held = self._kernel.routes.get((route.table, route.destination))
        self._kernel.put_foreign_route(route, protocol)
        if held is not None and held.protocol == OURS:
            self._touch()

    def remove_foreign_route(self, route: Route) -> None:
        """Its owner takes it away again."""
        self._kernel.routes.pop((route.table, route.destination), None)

    def list_foreign_routes(self) -> frozenset[Route]:
        """Everybody else's."""
        owned = self._kernel.routes.values()
        return frozenset(entry.route for entry in owned if entry.protocol != OURS)

    def add_foreign_rule(self, rule: Rule) -> None:
        """Somebody else's rule, nothing to us."""
        self._kernel.foreign_rules.add(rule)

    def list_foreign_rules(self) -> frozenset[Rule]:
        """Everybody else's."""
        return frozenset(self._kernel.foreign_rules)
