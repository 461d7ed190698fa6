"""Many nodes that register themselves: as tasks of one process, or as a process to be killed.

``python -m tests.backends.etcdfleet URL PREFIX NAME...`` registers those nodes, and ends when each
has its pod subnets.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import IPv4Network

from kilo.backends.etcd.client import Client
from kilo.backends.etcd.config import EtcdConfig
from kilo.backends.etcd.endpoints import read_prefix
from kilo.backends.etcd.keys import Keys
from kilo.backends.etcd.registration import Registrar
from kilo.errors import BackendError
from kilo.log import configure
from kilo.mesh.model import NodeSpec
from kilo.retrying import back_off

NODES, BY_HAND = 200, 56
POOL = IPv4Network("10.2.0.0/16")
"""In parts of /24: 256. So many are declared by hand that there are just enough for the nodes."""
CLIENTS = 8
"""Of one process: each has a connection of its own."""


def list_names() -> list[str]:
    return [f"node-{number}" for number in range(NODES)]


def list_by_hand() -> list[IPv4Network]:
    """Scattered over the pool, some of them several parts wide or less than one."""
    wide = [IPv4Network("10.2.64.0/21"), IPv4Network("10.2.128.0/22")]  # 8 and 4 parts
    single = [IPv4Network((0x0A020000 + (number << 8), 24)) for number in range(0, 64, 2)]
    narrow = [IPv4Network((0x0A02C007 + (number << 8), 32)) for number in range(12)]
    assert 8 + 4 + len(single) + len(narrow) == BY_HAND
    return [*wide, *single, *narrow]


async def register(client: Client, keys: Keys, name: str) -> None:
    """Until the node has what it is to have, as an agent does that publishes."""
    registrar = Registrar(client, keys, NodeSpec(location=f"location of {name}"))
    for failures in range(1, 20):
        try:
            await registrar.ensure(name)
            await registrar.provide(name)
        except BackendError as error:
            last = error
            await asyncio.sleep(back_off(failures))
        else:
            return
    raise last


async def register_all(
    config: EtcdConfig, names: Sequence[str], *, cancelled: random.Random | None = None
) -> int:
    """All at once; with ``cancelled`` most are interrupted at random moments, and begin anew.

    How many were interrupted in the midst of it.
    """
    keys = Keys(read_prefix(config.prefix))
    clients = [Client(config) for _ in range(CLIENTS)]
    interrupted = 0

    async def run(number: int, name: str) -> None:
        nonlocal interrupted
        client = clients[number % CLIENTS]
        if cancelled:
            try:
                async with asyncio.timeout(cancelled.uniform(0.0, 6.0)):
                    await register(client, keys, name)
            except TimeoutError:
                interrupted += 1
        await register(client, keys, name)

    async with asyncio.TaskGroup() as group:
        for number, name in enumerate(names):
            group.create_task(run(number, name))
    for client in clients:
        await client.close()
    return interrupted


def start_process(config: EtcdConfig, names: Sequence[str]) -> subprocess.Popen[bytes]:
    words = [*config.endpoints, config.prefix, *names]
    return subprocess.Popen([sys.executable, "-m", "tests.backends.etcdfleet", *words])


def run_processes(config: EtcdConfig, names: Sequence[str], chance: random.Random) -> int:
    """All nodes in eight processes, each killed and started anew until it is left to end.

    How many were killed in the midst of it.
    """
    shares = [names[number::8] for number in range(8)]
    running = {number: start_process(config, share) for number, share in enumerate(shares)}
    to_kill = {number: chance.randrange(1, 4) for number in running}
    killed = 0
    while running:
        number = chance.choice(list(running))
        process = running[number]
        try:
            status = process.wait(chance.uniform(0.1, 2.0))
        except subprocess.TimeoutExpired:
            if to_kill[number]:
                to_kill[number] -= 1
                process.kill()
                process.wait()
                killed += 1
                running[number] = start_process(config, shares[number])
        else:
            assert status == 0
            del running[number]
    return killed


def main(words: Sequence[str]) -> None:
    url, prefix, *names = words
    configure("warn")
    asyncio.run(register_all(EtcdConfig(endpoints=(url,), prefix=prefix), names))


if __name__ == "__main__":
    main(sys.argv[1:])
