"""All checks of a host, and what they need to know of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from kilo.agentlock import KEY, STATE
from kilo.backends.opening import BackendConfig
from kilo.doctor.checking import Check, run_checks
from kilo.doctor.findings import Outcome
from kilo.doctor.judging_agent import Agent, judge_agent
from kilo.doctor.judging_mesh import Store, judge_store
from kilo.doctor.probing_agent import check_key, check_leftovers, look_at_agent
from kilo.doctor.probing_kernel import check_kernel, check_programs, check_settings
from kilo.doctor.probing_mesh import check_clock, check_names, read_store
from kilo.doctor.probing_network import check_filters, check_ports, check_sizes, look_at_links
from kilo.mesh.model import Encapsulation, Snapshot
from kilo.mesh.overview import AgentView
from kilo.mesh.survey import Flags

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The host, as its agent was or will be told to join it to a mesh."""

    node: str
    """Its name in the store."""
    interface: str
    port: int
    """UDP, WireGuard's."""
    listen: str
    cni_path: Path
    store: BackendConfig
    find_flags: Callable[[Snapshot], Flags]
    agent: str
    """The address of its agent's HTTP."""
    ask: Callable[[str], AgentView | None]
    """What an agent there says of itself; blocks; ``KiloError`` says why none answers."""
    limit_seconds: float
    """For the store, and for a name."""


class Shared(Generic[T]):
    """What is looked at once, for several checks."""

    def __init__(self) -> None:
        self._done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    async def fill(self, work: Awaitable[T]) -> None:
        """Do the work; its failure is that of the checks that want it."""
        try:
            self._done.set_result(await work)
        except Exception as error:  # noqa: BLE001 - handed whole to those who wait
            self._done.set_exception(error)

    async def get(self) -> T:
        """Wait for it."""
        return await asyncio.shield(self._done)


async def examine(subject: Subject, *, check_seconds: float) -> dict[str, Outcome]:
    """Every check's name and what it came to, in the order in which to tell of them."""
    store, agent = Shared[Store](), Shared[Agent]()
    checks = list_checks(subject, store, agent)
    async with asyncio.TaskGroup() as group:
        reading = read_store(subject.store, subject.node, subject.find_flags, subject.limit_seconds)
        looking = look_at_agent(STATE, subject.agent, subject.ask)
        fillings = (
            group.create_task(store.fill(reading)),
            group.create_task(agent.fill(looking)),
        )
        outcomes = await run_checks(checks, limit_seconds=check_seconds)
        for filling in fillings:
            filling.cancel()
    return {check.name: outcome for check, outcome in zip(checks, outcomes, strict=True)}


def list_checks(subject: Subject, store: Shared[Store], agent: Shared[Agent]) -> list[Check]:
    """All of them."""
    return [
        Check(name="kernel", look=partial(_check_kernel, subject, store)),
        Check(name="programs", look=check_programs),
        Check(name="settings", look=partial(_check_settings, subject)),
        Check(name="firewall", look=partial(check_filters, subject.port)),
        Check(name="sizes", look=partial(_check_sizes, subject)),
        Check(name="ports", look=partial(_check_ports, subject, agent)),
        Check(name="clock", look=partial(_check_clock, store)),
        Check(name="names", look=partial(_check_names, subject, store)),
        Check(name="store", look=partial(_check_store, store)),
        Check(name="key", look=partial(check_key, KEY)),
        Check(name="leftovers", look=partial(_check_leftovers, subject, agent)),
        Check(name="agent", look=partial(_check_agent, agent)),
    ]


async def _check_kernel(subject: Subject, store: Shared[Store]) -> Outcome:
    survey = (await store.get()).survey
    encapsulates = subject.store.kind == "kubernetes"  # what its agents do unless told otherwise
    if survey is not None:
        encapsulates = survey.topology.settings.encapsulation is not Encapsulation.NEVER
    return await check_kernel(encapsulates=encapsulates)


async def _check_settings(subject: Subject) -> Outcome:
    return await check_settings(await look_at_links(), subject.interface)


async def _check_sizes(subject: Subject) -> Outcome:
    return await check_sizes(await look_at_links(), subject.interface, subject.cni_path)


async def _check_ports(subject: Subject, agent: Shared[Agent]) -> Outcome:
    is_there = bool(str(await agent.get()))
    return await check_ports(
        subject.interface, subject.port, subject.listen, agent_is_there=is_there
    )


async def _check_clock(store: Shared[Store]) -> Outcome:
    return await check_clock(await store.get())


async def _check_names(subject: Subject, store: Shared[Store]) -> Outcome:
    return await check_names(subject.node, await store.get(), subject.limit_seconds)


async def _check_store(store: Shared[Store]) -> Outcome:
    return judge_store(await store.get())


async def _check_leftovers(subject: Subject, agent: Shared[Agent]) -> Outcome:
    return await check_leftovers(subject.interface, KEY, await agent.get())


async def _check_agent(agent: Shared[Agent]) -> Outcome:
    return judge_agent(await agent.get())
