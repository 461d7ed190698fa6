"""Pod subnets out of pools: never the same one twice, and for life.

Who holds what stands in keys ``PREFIX/subnets/10.2.3.0-24`` with ``{"node": NAME}`` in them. Such a
key and the node's declaration are written in one transaction, so a node has both or none, whenever
its agent dies. The key is the stronger: a node whose declaration is lost gets the same subnet back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

from kilo.backends.etcd.asks import delete, get_prefix, is_unchanged, put, transact
from kilo.backends.etcd.client import Client
from kilo.backends.etcd.keys import Keys
from kilo.backends.etcd.views import (
    Holding,
    View,
    encode_document,
    list_holdings,
    list_others,
    make_subnet_key,
    read_holdings,
    read_view,
)
from kilo.errors import BackendError
from kilo.mesh.model import NodeSpec, SubnetPool
from kilo.mesh.networkindex import NetworkIndex
from kilo.mesh.pools import find_free_part, is_part

MAX_ATTEMPTS = 50
"""Of one call. Of 200 nodes that ask at once for the parts of a pool of exactly 200, the unluckiest
was seen to need 8."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.5


async def provide_subnets(client: Client, keys: Keys, name: str) -> None:
    """Give the node, if it is declared, a pod subnet of each pool whose family it has none of.

    ``BackendError`` names a pool with nothing left; the node is given what there is of others.
    """
    for attempt in range(MAX_ATTEMPTS):
        view = await read_view(client, keys, name)
        if view.node.revision and not view.node.document and view.pools:
            raise BackendError(f"{keys.node(name)}: is no Node, so no pod subnet is declared in it")
        chosen, exhausted = choose_subnets(view, name, keys, attempt)
        if not chosen or await take_subnets(client, keys, name, view, chosen):
            if exhausted:
                raise BackendError(_describe_exhausted(exhausted))
            return
        await _pause(attempt)
    raise BackendError(
        f"Node {name}: no pod subnet after {MAX_ATTEMPTS} attempts: others were first"
    )


def _describe_exhausted(pools: Sequence[SubnetPool]) -> str:
    texts = (f"{pool.network}: no free /{pool.node_prefix_length} left" for pool in pools)
    return ", ".join(f"pod subnet pool {text}" for text in texts)


async def _pause(attempt: int) -> None:
    """A random time: who collided once should not do so again."""
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 10))
    await asyncio.sleep(random.uniform(0.0, longest))  # noqa: S311 - no secret


def choose_subnets(
    view: View, name: str, keys: Keys, attempt: int
) -> tuple[list[Holding], list[SubnetPool]]:
    """A subnet of each pool that the node lacks, and the pools that have none left.

    A new one's revision is 0. After a collision the search begins elsewhere: those who met are
    not to go on side by side.
    """
    seed = f"{name} {attempt}" if attempt else name
    taken = NetworkIndex((subnet, "") for subnet in view.others)
    for one in view.holdings:
        taken.add(one.subnet, one.node)
    chosen, exhausted = [], []
    for pool in view.lacking:
        held = next((h for h in view.holdings if h.node == name and is_part(pool, h.subnet)), None)
        free = None if held else find_free_part(pool, taken, seed=seed)
        if held:
            chosen.append(held)
        elif free:
            chosen.append(
                Holding(key=make_subnet_key(keys, free), revision=0, subnet=free, node=name)
            )
        else:
            exhausted.append(pool)
    return chosen, exhausted


async def take_subnets(
    client: Client, keys: Keys, name: str, view: View, chosen: Sequence[Holding]
) -> bool:
    """Write the holdings and the declaration; whether nothing had changed meanwhile."""
    key = keys.node(name)
    document = view.node.add_pod_subnets((one.subnet for one in chosen), key=key)
    answer = await client.call(
        transact(
            when=[
                is_unchanged(key, view.node.revision),
                # Parts of one pool are equal or apart. Those of a pool and of what became of it,
                # longer prefixes say, can overlap under different keys.
                is_unchanged(keys.settings, view.settings_revision),
                *(is_unchanged(one.key, one.revision) for one in chosen),
            ],
            then=[
                put(key, encode_document(document)),
                *(put(one.key, encode_document({"node": name})) for one in chosen),
                get_prefix(keys.nodes),
                get_prefix(keys.subnets),
            ],
        )
    )
    if not answer.succeeded:
        return False
    # An operator may have declared a subnet by hand since we looked, or set one aside. That is seen
    # here, at the very moment of the transaction; whoever does so later sees ours.
    nodes, holdings = (response.response_range.kvs for response in answer.responses[-2:])
    taken = NetworkIndex((subnet, "") for subnet in list_others(nodes, keys, name))
    for one in list_holdings(holdings, keys):
        if one.node != name:
            taken.add(one.subnet, one.node)
    if not any(taken.find_overlap(one.subnet) for one in chosen if not one.revision):
        return True
    await _give_back(client, keys, name, view, chosen, answer.header.revision)
    return False


async def _give_back(
    client: Client, keys: Keys, name: str, view: View, chosen: Sequence[Holding], revision: int
) -> None:
    """Undo what was written at that revision, unless somebody has changed it since."""
    written = [keys.node(name), *(one.key for one in chosen)]
    await client.call(
        transact(
            when=[is_unchanged(key, revision) for key in written],
            then=[
                put(keys.node(name), encode_document(view.node.document)),
                # What the node held before is its own for life.
                *(delete(one.key) for one in chosen if not one.revision),
            ],
        )
    )


async def release(client: Client, keys: Keys, name: str) -> None:
    """Take back what is declared of the node and all subnets that it holds, in one transaction.

    Absent is not an error.
    """
    for attempt in range(MAX_ATTEMPTS):
        node, held = await read_holdings(client, keys, name)
        gone = [keys.node(name), *(one.key for one in held)]
        answer = await client.call(
            transact(
                # A node that is given a subnet meanwhile is changed by that.
                when=[
                    is_unchanged(keys.node(name), node.revision),
                    *(is_unchanged(one.key, one.revision) for one in held),
                ],
                then=[delete(key) for key in gone],
            )
        )
        if answer.succeeded:
            return
        await _pause(attempt)
    raise BackendError(f"Node {name}: is changed all the time, so it cannot be forgotten")


async def complete_spec(client: Client, keys: Keys, name: str, spec: NodeSpec) -> NodeSpec:
    """The declaration with the subnets that the node holds, of families that it says nothing of."""
    node, held = await read_holdings(client, keys, name)
    versions = {subnet.version for subnet in spec.pod_subnets}
    # Of several of a family, which pools that were changed can leave behind, the one in use.
    held.sort(key=lambda one: one.subnet in node.spec.pod_subnets)
    kept = {h.subnet.version: h.subnet for h in held if h.subnet.version not in versions}
    return replace(spec, pod_subnets=(*spec.pod_subnets, *kept.values()))
