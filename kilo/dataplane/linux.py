"""The Dataplane of a Linux host: puts the drivers together, and knows none of their formats.

The WireGuard device and the firewall are drivers handed in; links, addresses and rules are in
``netlink.py``, routes in ``routes.py``. A driver that fails, or is not there, fails its own steps.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Protocol

from kilo.dataplane import netlink, netlinkchanges
from kilo.dataplane.barriers import apply_barriers
from kilo.dataplane.base import find_refused, group_failures
from kilo.dataplane.drift import DeviceWatch, Drift, Relevance
from kilo.dataplane.hostfacts import HostnameLookup, read_facts
from kilo.dataplane.nftables_shape import TABLE
from kilo.dataplane.nlsocket import run_with_socket
from kilo.dataplane.owndoing import OwnDoing
from kilo.dataplane.ownroutes import OwnRoutes
from kilo.dataplane.routes import RouteKey, apply_routes
from kilo.dataplane.sysctls import RECORD, Sysctls, add_sysctls
from kilo.dataplane.tools import MissingToolError
from kilo.dataplane.tunnel import put_tunnel, read_tunnel, remove_tunnel
from kilo.errors import DataplaneError, flatten_errors
from kilo.mesh.diff import Change, Changes
from kilo.mesh.host import ForwardDrop, HostFacts
from kilo.mesh.keys import PublicKey
from kilo.mesh.state import (
    Barrier,
    DataplaneState,
    Firewall,
    Link,
    PeerStats,
    Resource,
    Route,
    Sysctl,
    Tunnel,
    WireGuardDevice,
    WireGuardPeer,
)
from kilo.mesh.view import CILIUM_TUNNEL


class DeviceDriver(Protocol):
    """The WireGuard interface, in the kernel or in userspace."""

    async def ensure(self) -> bool:
        """Make the interface if it is missing; True if it was made."""
        ...

    async def read_marked(
        self,
    ) -> tuple[WireGuardDevice | None, frozenset[WireGuardPeer], bytes | None]:
        """The device, its peers, and their ``fingerprint``; None, none and None if there is no
        interface.
        """
        ...

    async def observe(self) -> Mapping[PublicKey, PeerStats]:
        """What it has measured; empty if there is no interface."""
        ...

    async def apply(self, steps: Sequence[Change]) -> None:
        """Steps about the device and its peers; failures as one ``ExceptionGroup``."""
        ...

    async def delete(self) -> None:
        """Remove the interface; absent is not an error."""
        ...

    async def fingerprint(self) -> bytes | None:
        """A cheap digest of what is configured; None if there is no interface."""
        ...


class FirewallDriver(Protocol):
    """Our own rules, and nothing of others'."""

    @property
    def is_transactional(self) -> bool:
        """Whether each change is one transaction of nftables'."""
        ...

    async def read(self) -> Firewall | None:
        """What it says; None if there is none."""
        ...

    async def apply(self, change: Change) -> None:
        """Make, change or remove it, with no moment in which half of it holds."""
        ...

    async def find_forward_drops(self) -> tuple[ForwardDrop, ...]:
        """Which chains of others drop what is forwarded, as far as can be seen."""
        ...


_WIREGUARD = WireGuardDevice | WireGuardPeer

ApplyGroup = Callable[[Sequence[Change]], Awaitable[list[DataplaneError]]]
"""Carries out steps of one kind and returns what failed, each text beginning with its step."""


class LinuxDataplane:
    """One host's Dataplane, in the network namespace of the event loop's thread."""

    def __init__(  # noqa: PLR0913  the parts of a host, handed in by the program
        self,
        interface: str,
        *,
        wireguard: DeviceDriver,
        firewall: FirewallDriver,
        tunnel: str = "tunl0",
        hostname: str | None = None,
        sysctls_record: Path = RECORD,
        yielding: Collection[str] = (),
    ) -> None:
        """``hostname`` is what to look up for ``facts``; None: the host's own name.

        ``yielding`` are links of another network, whose routes give way to ours.
        """
        self.interface = interface
        self._tunnels = (tunnel, CILIUM_TUNNEL)
        self._yielding = yielding
        self._wireguard = wireguard
        self._firewall = firewall
        self._sysctls = Sysctls(sysctls_record)
        self._hostname = HostnameLookup(
            hostname or socket.gethostname(), on_change=self._touch_drifts
        )
        self._drivers: Mapping[type[Resource], ApplyGroup] = {
            Barrier: _apply_barriers,
            Firewall: self._apply_firewall,
            Link: self._apply_link,
            Route: self._apply_routes,
            Sysctl: self._sysctls.apply,
            Tunnel: _apply_tunnels,
            WireGuardDevice: self._apply_wireguard,
            WireGuardPeer: self._apply_wireguard,
        }
        self._device = DeviceWatch(wireguard.fingerprint)
        self._configured: frozenset[Resource | None] = frozenset()
        """The device and its peers as they were last read."""
        self._own_routes = OwnRoutes()
        self._own = OwnDoing()
        self._routes: frozenset[RouteKey] = frozenset()
        """Where our routes are, or should be and were refused."""
        self._drifts: list[Drift] = []

    async def facts(self) -> HostFacts:
        """See ``Dataplane.facts``."""
        facts = await read_facts(self._hostname)
        facts = replace(facts, forward_drops=await self._firewall.find_forward_drops())
        return await add_sysctls(facts, self._sysctls, self.interface, self._tunnels)

    async def read(self) -> DataplaneState:
        """See ``Dataplane.read``."""
        try:
            return await self._read_all()
        except* DataplaneError as errors:
            raise flatten_errors(errors)[0] from None

    async def _read_all(self) -> DataplaneState:
        self._own.forget()
        async with asyncio.TaskGroup() as group:  # most of it is waiting, for one program or other
            reading = group.create_task(self._read_device())
            listing = group.create_task(run_with_socket(self._own_routes.read))
            asking = group.create_task(self._read_firewall())
            link = await netlink.read_link(self.interface)
            tunnels = [await read_tunnel(name) for name in self._tunnels]
            addresses = await netlink.read_addresses(self.interface)
            rules = await netlink.read_rules()
            sysctls = await self._sysctls.read()
        (device, peers), (routes, barriers) = reading.result(), listing.result()
        self._routes = self._own_routes.places
        self._own.know(routes | barriers)
        return DataplaneState(
            # What bears our link's name and is no WireGuard device is somebody else's.
            links=frozenset() if link is None or device is None else frozenset({link}),
            tunnels=frozenset(tunnel for tunnel in tunnels if tunnel is not None),
            devices=frozenset() if device is None else frozenset({device}),
            peers=peers,
            addresses=addresses,
            firewall=asking.result(),
            routes=routes,
            barriers=barriers,
            rules=rules,
            sysctls=sysctls,
        )

    async def observe(self) -> Mapping[PublicKey, PeerStats]:
        """See ``Dataplane.observe``."""
        return await self._wireguard.observe()

    async def apply(self, changes: Changes) -> None:
        """See ``Dataplane.apply``."""
        failures: list[DataplaneError] = []
        self._own.intend(changes)
        for apply_group, steps in groupby(changes, key=self._choose_driver):
            failures += await apply_group(tuple(steps))
        if failures:
            self._own.forget()
            self._await_obstacles(changes, failures)
            raise group_failures(changes, failures)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look_at_device(changes))
            group.create_task(self._look_at_firewall(changes))

    async def _look_at_firewall(self, changes: Changes) -> None:
        """See what has come of a change, and the next pass need not until somebody changes more."""
        if any(isinstance(step.resource, Firewall) for step in changes):
            with suppress(DataplaneError):  # whoever reads next meets it
                await self._firewall.read()

    async def _look_at_device(self, changes: Changes) -> None:
        """Take the device for known again, if it is now what it was to be: somebody else may have
        changed it meanwhile, and then the poll is to notice.
        """
        steps = [step for step in changes if isinstance(step.resource, _WIREGUARD)]
        if steps:
            wanted = self._configured - {step.old for step in steps} | {step.new for step in steps}
            with suppress(DataplaneError):  # whoever reads next meets it
                device, peers, fingerprint = await self._wireguard.read_marked()
                if {device, *peers} == wanted - {None}:
                    self._device.know(fingerprint)

    def _await_obstacles(self, changes: Changes, failures: Sequence[DataplaneError]) -> None:
        """Listen also for what becomes of the places of the routes that were refused: somebody
        else's route may stand there, and ours is to follow as soon as it goes.
        """
        self._routes |= {
            (step.resource.table, step.resource.destination)
            for step in find_refused(changes, failures)
            if isinstance(step.resource, Route)
        }

    def drift(self) -> Drift:
        """See ``Dataplane.drift``; it is subscribed as soon as this returns."""
        relevance = Relevance(table=TABLE, routes=lambda: self._routes, own=self._own)
        drift = Drift(relevance, self._device)
        self._drifts.append(drift)
        return drift

    async def close(self) -> None:
        """See ``Dataplane.close``; ends every ``drift``."""
        while self._drifts:
            await self._drifts.pop().aclose()

    def _touch_drifts(self) -> None:
        for drift in tuple(self._drifts):
            drift.touch_from_thread()

    async def _read_device(self) -> tuple[WireGuardDevice | None, frozenset[WireGuardPeer]]:
        """What is read counts as known: the poll notices what comes to differ from it."""
        try:
            device, peers, fingerprint = await self._wireguard.read_marked()
        except DataplaneError as error:
            self._device.know(error)
            raise
        self._device.know(fingerprint)
        self._configured = frozenset((device, *peers))
        return device, peers

    async def _read_firewall(self) -> Firewall | None:
        try:
            return await self._firewall.read()
        except MissingToolError:
            # Without nft there is no table of ours, and the rest of the mesh can do without. Not
            # swallowed: the step that wants a firewall meets the same error and names it.
            return None

    def _choose_driver(self, step: Change) -> ApplyGroup:
        """Neighbouring steps for which it is the same go to it together."""
        return self._drivers.get(type(step.resource), _apply_singly)

    async def _apply_wireguard(self, steps: Sequence[Change]) -> list[DataplaneError]:
        try:
            if await netlink.read_link(self.interface) is None:
                # A link that is gone took its device and peers with it.
                steps = [step for step in steps if step.new is not None]
            await self._wireguard.apply(steps)
        except DataplaneError as error:
            return [_name(step, error) for step in steps]
        except ExceptionGroup as group:
            failed = [error for error in group.exceptions if isinstance(error, DataplaneError)]
            if len(failed) < len(group.exceptions):
                raise
            return failed
        return []

    async def _apply_link(self, steps: Sequence[Change]) -> list[DataplaneError]:
        return [error for step in steps for error in await _try(step, self._change_link)]

    async def _change_link(self, step: Change) -> None:
        if step.new is None:
            await self._wireguard.delete()
            return
        if step.old is None:
            await self._wireguard.ensure()
        await netlinkchanges.apply_step(step)

    async def _apply_routes(self, steps: Sequence[Change]) -> list[DataplaneError]:
        apply = partial(apply_routes, steps=steps, yielding=self._yielding)
        try:
            return await run_with_socket(apply)
        except DataplaneError as error:
            return [_name(step, error) for step in steps]

    async def _apply_firewall(self, steps: Sequence[Change]) -> list[DataplaneError]:
        return [error for step in steps for error in await _try(step, self._change_firewall)]

    async def _change_firewall(self, step: Change) -> None:
        self._hear()
        if self._firewall.is_transactional:
            self._own.expect_transaction()
        try:
            await self._firewall.apply(step)
        finally:
            self._hear()
            self._own.expect_none()

    def _hear(self) -> None:
        for drift in self._drifts:
            drift.catch_up()


async def _apply_barriers(steps: Sequence[Change]) -> list[DataplaneError]:
    try:
        return await run_with_socket(partial(apply_barriers, steps=steps))
    except DataplaneError as error:
        return [_name(step, error) for step in steps]


async def _apply_tunnels(steps: Sequence[Change]) -> list[DataplaneError]:
    return [error for step in steps for error in await _try(step, _change_tunnel)]


async def _change_tunnel(step: Change) -> None:
    match step.old, step.new:
        case _, Tunnel() as tunnel:
            await put_tunnel(tunnel)
        case Tunnel() as tunnel, None:
            await remove_tunnel(tunnel)


async def _apply_singly(steps: Sequence[Change]) -> list[DataplaneError]:
    return [error for step in steps for error in await _try(step, netlinkchanges.apply_step)]


async def _try(step: Change, apply: Callable[[Change], Awaitable[None]]) -> list[DataplaneError]:
    try:
        await apply(step)
    except DataplaneError as error:
        return [_name(step, error)]
    return []


def _name(step: Change, error: DataplaneError) -> DataplaneError:
    """The error, its text beginning with the step."""
    if str(error).startswith(str(step)):
        return error
    named = DataplaneError(f"{step}: {error}")
    named.__cause__ = error
    return named
