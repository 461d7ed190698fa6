"""Our routes and barriers, listed again and again while they and the links change."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from kilo.dataplane.barriers import apply_barriers
from kilo.dataplane.nlsocket import run_with_socket
from kilo.dataplane.ownroutes import OwnRoutes
from kilo.dataplane.routes import apply_routes
from kilo.mesh.diff import Change
from kilo.mesh.state import Barrier, Route
from tests.kernel.namespace import Namespace

ROUTE = Route(
    destination=ip_network("10.2.1.0/24"),
    link="kilo0",
    gateway=ip_address("10.4.0.2"),
    onlink=True,
)
BARRIER = Barrier(destination=ROUTE.destination)


@pytest.fixture
def link(netns: Namespace) -> str:
    netns.add_veth("kilo0", "other0")
    netns.ip("address", "add", "10.4.0.1/16", "dev", "kilo0")
    return "kilo0"


async def change_route(step: Change) -> None:
    assert await run_with_socket(lambda netlink: apply_routes(netlink, [step])) == []


async def test_every_listing_is_what_is_there_now(link: str, netns: Namespace) -> None:
    routes = OwnRoutes()
    assert await run_with_socket(routes.read) == (frozenset(), frozenset())

    await change_route(Change(new=ROUTE))
    barrier = Change(new=BARRIER)
    assert await run_with_socket(lambda netlink: apply_barriers(netlink, [barrier])) == []
    for _ in range(2):
        assert await run_with_socket(routes.read) == (frozenset({ROUTE}), frozenset({BARRIER}))

    moved = replace(ROUTE, gateway=ip_address("10.4.0.3"))
    await change_route(Change(old=ROUTE, new=moved))
    assert await run_with_socket(routes.read) == (frozenset({moved}), frozenset({BARRIER}))

    await change_route(Change(old=moved))
    assert await run_with_socket(routes.read) == (frozenset(), frozenset({BARRIER}))


async def test_a_link_that_is_called_otherwise_now_has_its_routes_under_that_name(
    link: str, netns: Namespace
) -> None:
    routes = OwnRoutes()
    await change_route(Change(new=ROUTE))
    assert await run_with_socket(routes.read) == (frozenset({ROUTE}), frozenset())

    netns.ip("link", "set", link, "name", "kilo9")
    renamed = replace(ROUTE, link="kilo9")
    assert await run_with_socket(routes.read) == (frozenset({renamed}), frozenset())

    netns.ip("link", "delete", "kilo9")
    assert await run_with_socket(routes.read) == (frozenset(), frozenset())
