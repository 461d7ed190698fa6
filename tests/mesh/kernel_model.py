"""A kernel as strict about order as the real one, for the tests of ``diff``: a route needs its
link up, what WireGuard sends needs its peer, and an allowed IP has one owner at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from kilo.mesh.diff import Change, Changes
from kilo.mesh.model import IPAddress, IPNetwork
from kilo.mesh.state import (
    Address,
    Barrier,
    DataplaneState,
    Firewall,
    Link,
    Resource,
    Route,
    Rule,
    Sysctl,
    Tunnel,
    WireGuardDevice,
    WireGuardPeer,
)

Identity = tuple[object, ...]


def identify(resource: Resource) -> Identity:
    """What a resource is, among all kinds."""
    return (type(resource).__name__, *resource.key)


def replay(state: DataplaneState, changes: Changes) -> Iterator[DataplaneState]:
    """The state after each step; ``AssertionError`` for a step that a kernel would refuse."""
    held = {identify(resource): resource for resource in state.resources()}
    for change in changes:
        _check(held, change)
        if isinstance(change.new, WireGuardPeer):
            _take_allowed_ips(held, change.new)
        if change.new is None:
            del held[identify(change.resource)]
        else:
            held[identify(change.resource)] = change.new
        yield gather(held.values())


def _check(held: Mapping[Identity, Resource], change: Change) -> None:
    present = held.get(identify(change.resource))
    if change.old is None:
        assert present is None, f"{change}: exists already"
    elif isinstance(change.old, WireGuardPeer):
        assert isinstance(present, WireGuardPeer), f"{change}: no such peer"
    else:
        assert present == change.old, f"{change}: is not what was seen"
    assert change.old != change.new, f"{change}: changes nothing"


def _take_allowed_ips(held: dict[Identity, Resource], taker: WireGuardPeer) -> None:
    """WireGuard takes an allowed IP from whoever has it."""
    for identity, other in list(held.items()):
        if isinstance(other, WireGuardPeer) and other.link == taker.link:
            held[identity] = replace(other, allowed_ips=other.allowed_ips - taker.allowed_ips)


def gather(resources: Iterable[Resource]) -> DataplaneState:
    """A state of loose resources."""
    items = list(resources)
    return DataplaneState(
        links=frozenset(i for i in items if isinstance(i, Link)),
        devices=frozenset(i for i in items if isinstance(i, WireGuardDevice)),
        peers=frozenset(i for i in items if isinstance(i, WireGuardPeer)),
        addresses=frozenset(i for i in items if isinstance(i, Address)),
        firewall=next((i for i in items if isinstance(i, Firewall)), None),
        routes=frozenset(i for i in items if isinstance(i, Route)),
        barriers=frozenset(i for i in items if isinstance(i, Barrier)),
        rules=frozenset(i for i in items if isinstance(i, Rule)),
        tunnels=frozenset(i for i in items if isinstance(i, Tunnel)),
        sysctls=frozenset(i for i in items if isinstance(i, Sysctl)),
    )


def find_route(state: DataplaneState, address: IPAddress, table: int = 254) -> Route | None:
    """The route of the longest prefix."""
    matching = (r for r in state.routes if r.table == table and address in r.destination)
    return max(matching, key=lambda route: route.destination.prefixlen, default=None)


def find_peer(state: DataplaneState, address: IPAddress) -> WireGuardPeer | None:
    """The WireGuard peer whose allowed IPs hold the longest prefix around an address."""
    matching = (
        (network.prefixlen, str(peer.public_key), peer)
        for peer in state.peers
        for network in peer.allowed_ips
        if address in network
    )
    return max(matching, default=(0, "", None), key=lambda match: match[:2])[2]


def sample(network: IPNetwork) -> IPAddress:
    """An address in the middle of a network."""
    return network[network.num_addresses // 2]


def list_unreachable(state: DataplaneState, link: str) -> list[Route]:
    """The routes into a WireGuard link that has no peer for them: their packets are lost."""
    return [
        route
        for route in state.routes
        if route.link == link and find_peer(state, sample(route.destination)) is None
    ]
