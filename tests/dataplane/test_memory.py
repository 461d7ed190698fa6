"""The Dataplane made of dicts keeps the contract, and does what only it can."""

from __future__ import annotations

from ipaddress import ip_network
from types import MappingProxyType

import pytest

from kilo.dataplane.memory import MemoryDataplane
from kilo.errors import DataplaneError
from kilo.keyfile import generate_private_key
from kilo.mesh.diff import Change, Changes
from kilo.mesh.host import HostAddress, HostFacts
from kilo.mesh.model import Endpoint
from kilo.mesh.state import DataplaneState, Firewall, Link, PeerStats, Resource, Route, Rule
from tests.dataplane.contract import (
    FORWARD,
    OTHER_ADDRESSES,
    OTHER_LINK,
    DataplaneContract,
    establish,
    make_route,
    make_state,
)


class MemoryHost:
    def __init__(self) -> None:
        facts = HostFacts(
            addresses=tuple(
                HostAddress(link=OTHER_LINK, interface=interface) for interface in OTHER_ADDRESSES
            ),
            default_links=(OTHER_LINK,),
            mtus=MappingProxyType({OTHER_LINK: 1500}),
            kinds=MappingProxyType({OTHER_LINK: ""}),
            sysctls=MappingProxyType({FORWARD.name: "0"}),
        )
        self.interface = "kilo0"
        self.private_key = generate_private_key()
        self.dataplane = MemoryDataplane(interface=self.interface, facts=facts)

    async def delete(self, resource: Resource) -> None:
        self.dataplane.remove(resource)

    @property
    def has_tunnels(self) -> bool:
        return True

    async def read_sysctl(self, name: str) -> str | None:
        return self.dataplane.read_sysctl(name)

    async def set_sysctl(self, name: str, value: str) -> None:
        self.dataplane.set_sysctl(name, value)

    async def set_down(self) -> None:
        (link,) = (await self.dataplane.read()).links
        down = Link(name=link.name, mtu=link.mtu, up=False)
        self.dataplane.interfere(Change(old=link, new=down))

    async def add_route(self, route: Route, *, protocol: str) -> None:
        self.dataplane.add_foreign_route(route, protocol=protocol)

    async def delete_route(self, route: Route) -> None:
        self.dataplane.remove_foreign_route(route)

    async def list_foreign_routes(self) -> frozenset[Route]:
        return self.dataplane.list_foreign_routes()

    async def add_rule(self, rule: Rule) -> None:
        self.dataplane.add_foreign_rule(rule)

    async def list_foreign_rules(self) -> frozenset[Rule]:
        return self.dataplane.list_foreign_rules()


@pytest.fixture
def host() -> MemoryHost:
    return MemoryHost()


class TestMemoryKeepsTheContract(DataplaneContract):
    pass


async def test_it_starts_from_a_given_state(host: MemoryHost) -> None:
    state = make_state(host)

    assert await MemoryDataplane(state).read() == state


async def test_every_step_that_was_carried_out_is_counted_and_kept(host: MemoryHost) -> None:
    await establish(host, make_state(host))
    before = host.dataplane.writes
    route = make_route(host, "10.9.0.0/16")

    await host.dataplane.apply(Changes((Change(new=route),)))

    assert host.dataplane.writes == before + 1
    assert str(host.dataplane.applied[-1]) == f"+ {route}"


async def test_a_refusal_that_was_asked_for_lasts_until_it_is_lifted(host: MemoryHost) -> None:
    await establish(host, make_state(host))
    step = Change(new=make_route(host, "10.9.0.0/16"))
    host.dataplane.refuse("route 10.9.0.0/16", reason="No buffer space available")

    with pytest.raises(ExceptionGroup) as caught:
        await host.dataplane.apply(Changes((step,)))
    host.dataplane.relent()
    await host.dataplane.apply(Changes((step,)))

    assert str(caught.value.exceptions[0]) == f"{step}: No buffer space available"


async def test_it_can_be_unreadable_for_a_while(host: MemoryHost) -> None:
    host.dataplane.become_unreadable("netlink: no answer in 10 s")
    with pytest.raises(DataplaneError, match="no answer"):
        await host.dataplane.read()

    host.dataplane.relent()

    assert await host.dataplane.read() == DataplaneState()


async def test_where_a_peer_was_heard_from_is_its_endpoint(host: MemoryHost) -> None:
    await establish(host, make_state(host))
    (peer,) = (await host.dataplane.read()).peers
    seen = Endpoint(host="203.0.113.9", port=4711)
    stats = PeerStats(endpoint=seen, latest_handshake=1.0, received_bytes=2, sent_bytes=3)

    host.dataplane.set_stats(peer.public_key, stats)

    (found,) = (await host.dataplane.read()).peers
    assert found.endpoint == seen
    assert await host.dataplane.observe() == {peer.public_key: stats}


async def test_networks_that_overlap_make_no_firewall(host: MemoryHost) -> None:
    overlapping = frozenset({ip_network("10.2.0.0/16"), ip_network("10.2.1.0/24")})
    step = Change(new=Firewall(known=overlapping))

    with pytest.raises(ExceptionGroup) as caught:
        await host.dataplane.apply(Changes((step,)))

    assert str(caught.value.exceptions[0]) == f"{step}: File exists"
