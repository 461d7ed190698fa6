"""The agent's program: flags -> configuration -> wiring. A composition root, and nothing else."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kilo import __version__
from kilo.agentflags import FLAG_SET, AgentConfig, parse_agent_flags
from kilo.agentlock import KEY, STATE, hold_lock
from kilo.backends.base import Backend
from kilo.backends.opening import open_store
from kilo.completion import write_completion
from kilo.dataplane.base import Dataplane
from kilo.dataplane.cni import CNIFile
from kilo.dataplane.firewall import HostFirewall
from kilo.dataplane.linux import LinuxDataplane
from kilo.dataplane.wireguard import WireGuard
from kilo.dataplane.wireguard_search import find_interfaces
from kilo.dryrun import plan_once
from kilo.engine import HAND_OVER_SECONDS, Engine
from kilo.errors import ConfigError, KiloError, flatten_errors
from kilo.http import StatusServer
from kilo.keyfile import (
    generate_private_key,
    load_or_create_private_key,
    load_private_key,
    public_key,
)
from kilo.lastgood import SnapshotFile
from kilo.log import configure, register_secret
from kilo.mesh.diff import diff
from kilo.mesh.keys import PrivateKey
from kilo.mesh.plan import Agent
from kilo.mesh.state import DataplaneState
from kilo.mesh.view import (
    CILIUM_HOST,
    CILIUM_OVERLAYS,
    FLANNEL_LINK,
    Compatibility,
    RenderOptions,
)
from kilo.onlookers import measure_for_onlookers
from kilo.servicemanager import ServiceManager, catch_signals
from kilo.status import Status
from kilo.webhookflags import OWN_FLAGS, WebhookConfig, parse_webhook_flags

CLOSE_SECONDS = 5.0
COLLECTIONS = (20_000, 10, 10)
"""Python's own looks for garbage in cycles after 700 objects: a pass makes a hundred thousand, next
to none of them in cycles, and a sixth of its time went by there."""
STUCK_SECONDS = 120.0
"""The drivers give up much sooner; a host that is merely busy must not lose its agent."""
COMPLETED = replace(
    FLAG_SET,
    flags=(*FLAG_SET.flags, *(flag for flag in OWN_FLAGS if FLAG_SET.find(flag.name) is None)),
)
"""What shells complete: the flags of ``kg webhook`` among them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``kg``; the exit status: 0, or 1 with one line on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return dispatch(words)
    except KeyboardInterrupt:
        return 130
    except (KiloError, ExceptionGroup) as error:
        causes = flatten_errors(error)
        if not all(isinstance(cause, KiloError) for cause in causes):
            raise  # a bug, which its traceback will find
        for cause in causes:
            print(f"kg: {cause}", file=sys.stderr)
        return 1


def dispatch(words: list[str]) -> int:
    """The command that the words ask for."""
    if words[:1] == ["webhook"]:
        return asyncio.run(run_webhook(parse_webhook_flags(words[1:], os.environ)))
    config = parse_agent_flags(words, os.environ)
    if config.command == "version":
        print(f"kg {__version__}")
        return 0
    if config.command == "completion":
        print(write_completion(COMPLETED, config.shell), end="")
        return 0
    if config.command == "public-key":
        print(public_key(load_or_create_private_key(KEY)))
        return 0
    configure(config.log_level, stream=sys.stderr if config.prints else sys.stdout)
    if config.command == "uninstall":
        return asyncio.run(uninstall(config))
    return asyncio.run(dry_run(config) if config.dry_run else run_agent(config))


async def run_agent(config: AgentConfig) -> int:
    """Work until SIGTERM or SIGINT."""
    gc.set_threshold(*COLLECTIONS)
    with hold_lock(STATE, config.interface):
        status = Status(name=config.name, interface=config.interface)
        async with open_site(config, load_or_create_private_key) as site:
            engine = Engine(
                site.agent,
                site.backend,
                site.dataplane,
                status,
                SnapshotFile(),
                pods=open_cni(config),
                clean_up=config.clean_up,
            )
            server = StatusServer(config.listen, status)
            server.start()
            manager = ServiceManager(os.environ)
            stop = catch_signals()
            try:
                async with asyncio.TaskGroup() as group:
                    telling = group.create_task(
                        manager.follow(lambda: status.not_ready, lambda: is_stuck(status))
                    )
                    measuring = group.create_task(
                        measure_for_onlookers(server.document, site.dataplane, status)
                    )
                    await engine.run(stop)
                    telling.cancel()
                    measuring.cancel()
            finally:
                server.stop()
    return 0


def is_stuck(status: Status) -> bool:
    """Whether a pass lasts for longer than any should."""
    began_at = status.pass_began_at
    return began_at is not None and time.monotonic() - began_at > STUCK_SECONDS


def open_cni(config: AgentConfig) -> CNIFile | None:
    """The pods' configuration; None where it is somebody else's."""
    return CNIFile(config.cni_path, config.cni_template) if config.options.cni else None


def find_yielding(options: RenderOptions) -> frozenset[str]:
    """The links whose routes give way to ours.

    Flannel and Cilium have routes to all pods, over their own links and unencrypted; those to other
    locations must be ours. Their own way to them would be the underlay's.
    """
    match options.compatibility:
        case Compatibility.FLANNEL:
            return frozenset({FLANNEL_LINK})
        case Compatibility.CILIUM:
            return CILIUM_OVERLAYS | {CILIUM_HOST}
        case _:
            return frozenset()


async def run_webhook(config: WebhookConfig) -> int:
    """Judge Peers until SIGTERM or SIGINT."""
    # Imported here: an agent needs none of it, and starts on machines with little memory.
    from kilo.webhook import serve_webhook  # noqa: PLC0415 - imported only when asked for

    configure(config.log_level)
    async with open_store(config.backend) as backend:
        await serve_webhook(config, backend, catch_signals())
    return 0


async def dry_run(config: AgentConfig) -> int:
    """Print what would be changed now."""
    async with open_site(config, find_key) as site:
        plan, snapshot = await plan_once(site.agent, site.backend, site.dataplane)
    for line in (*snapshot.problems, *plan.topology.refusals, *plan.warnings):
        print(f"kg: {line}", file=sys.stderr)
    print(plan.changes or "nothing to change")
    return 0


async def uninstall(config: AgentConfig) -> int:
    """Undo everything that any agent of this host has done to its network; keep the key."""
    with hold_lock(STATE, config.interface):
        # Any key will do, for none is set: a host can be cleaned though its own key is broken.
        async with open_dataplane(config, generate_private_key()) as dataplane:
            actual = await dataplane.read()
            changes = diff(actual, DataplaneState())
            strays = [name for name in await find_own_interfaces() if name != config.interface]
            removals = [*map(str, changes), *(f"- link {name}" for name in strays)]
            print("\n".join(removals) or "nothing to remove")
            if config.dry_run:
                return 0
            SnapshotFile().remove()
            # First, as at a clean-up: whoever sends through this node finds another way meanwhile.
            if await withdraw(config) and actual.peers:
                await asyncio.sleep(HAND_OVER_SECONDS)
            await dataplane.apply(changes)
            for name in strays:
                await WireGuard(name, generate_private_key()).delete()
    return 0


async def find_own_interfaces() -> list[str]:
    """Those that any agent of this host has made; none where its key is lost."""
    try:
        return await find_interfaces(load_private_key(KEY))
    except (ConfigError, FileNotFoundError):
        return []


async def withdraw(config: AgentConfig) -> bool:
    """Take the node's report back, and whether that could be done: a store that is away, or that
    this release does not know, does not keep the host from being clean.
    """
    try:
        async with asyncio.timeout(CLOSE_SECONDS), open_store(config.backend) as backend:
            await backend.withdraw(config.name)
    except (KiloError, TimeoutError) as error:
        reason = str(error) or f"no answer in {CLOSE_SECONDS:.0f} s"
        print(f"kg: report of {config.name} not withdrawn: {reason}", file=sys.stderr)
        return False
    return True


def find_key(path: Path) -> PrivateKey:
    """The host's key, or one for this moment only, where nothing may be written."""
    try:
        return load_private_key(path)
    except FileNotFoundError:
        return generate_private_key()


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The store and the kernel that an agent stands between."""

    agent: Agent
    backend: Backend
    dataplane: Dataplane


@asynccontextmanager
async def open_site(
    config: AgentConfig, load_key: Callable[[Path], PrivateKey]
) -> AsyncIterator[Site]:
    """The store and the kernel, closed at the end.

    The store comes first: who asks for one that there is not should not be left with a key.
    """
    async with open_store(config.backend) as backend:
        key = load_key(KEY)
        register_secret(key)
        agent = Agent(
            name=config.name,
            public_key=public_key(key),
            options=config.options,
            policy=config.policy,
            flags=config.settings,
            defaults=config.defaults,
            version=f"kg {__version__}",
        )
        async with open_dataplane(config, key) as dataplane:
            yield Site(agent=agent, backend=backend, dataplane=dataplane)


@asynccontextmanager
async def open_dataplane(config: AgentConfig, key: PrivateKey) -> AsyncIterator[Dataplane]:
    """The kernel of the host."""
    dataplane = LinuxDataplane(
        config.interface,
        wireguard=WireGuard(config.interface, key, create=config.create_interface),
        firewall=HostFirewall(config.firewall),
        tunnel=config.options.tunnel,
        hostname=config.name,
        yielding=find_yielding(config.options),
    )
    try:
        yield dataplane
    finally:
        await dataplane.close()


if __name__ == "__main__":
    sys.exit(main())
