"""Routes by the thousand, and beside what others may have put into the same tables."""

from __future__ import annotations

import select
import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import IO

import pytest

from kilo.dataplane.nlsocket import BATCH_MESSAGES, run_with_socket
from kilo.dataplane.ownroutes import OwnRoutes
from kilo.dataplane.routes import apply_routes
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.state import Route
from tests.kernel.namespace import Namespace

MANY = 3000
LIMIT_SECONDS = 5.0
"""A hundred times what it takes; one message at a time would take as long as that."""


@pytest.fixture
def link(netns: Namespace) -> str:
    netns.add_veth("kilo0", "other0")
    netns.ip("address", "add", "10.4.0.1/16", "dev", "kilo0")
    return "kilo0"


def make_routes(count: int, gateway: str = "10.4.0.2") -> list[Route]:
    first = int(ip_address("10.16.0.0"))
    return [
        Route(
            destination=ip_network((first + 256 * number, 24)),
            link="kilo0",
            gateway=ip_address(gateway),
            onlink=True,
        )
        for number in range(count)
    ]


async def apply(*steps: Change, yielding: Collection[str] = ()) -> list[DataplaneError]:
    return await run_with_socket(lambda netlink: apply_routes(netlink, steps, yielding=yielding))


def make_addition(route: Route) -> Change:
    return Change(new=route)


async def read() -> frozenset[Route]:
    routes, _ = await run_with_socket(OwnRoutes().read)
    return routes


async def test_thousands_are_added_read_changed_and_removed_at_once(link: str) -> None:
    old, new = make_routes(MANY), make_routes(MANY, gateway="10.4.0.3")
    started_at = time.monotonic()

    assert await apply(*(Change(new=route) for route in old)) == []
    assert await read() == frozenset(old)
    assert await apply(*(Change(old=a, new=b) for a, b in zip(old, new, strict=True))) == []
    assert await read() == frozenset(new)
    assert await apply(*(Change(old=route) for route in new)) == []
    assert await read() == frozenset()
    assert time.monotonic() - started_at < LIMIT_SECONDS


async def test_in_a_large_batch_exactly_the_bad_ones_fail(netns: Namespace, link: str) -> None:
    routes = make_routes(2 * BATCH_MESSAGES + 10)
    bad = [routes[0], routes[BATCH_MESSAGES - 1], routes[BATCH_MESSAGES], routes[-1]]
    for route in bad:
        netns.ip("route", "add", "blackhole", str(route.destination))

    failures = await apply(*(Change(new=route) for route in routes))

    assert sorted(map(str, failures)) == sorted(f"+ {route}: File exists" for route in bad)
    assert await read() == frozenset(routes) - frozenset(bad)


async def test_routes_that_we_never_write_are_not_ours_though_they_bear_our_number(
    netns: Namespace, link: str
) -> None:
    ours = ("proto", "107")
    netns.ip("route", "add", "blackhole", "10.16.0.0/24", *ours)
    netns.ip("route", "add", "10.16.1.0/24", "dev", link, "metric", "5", *ours)
    hop = ("nexthop", "via", "10.4.0.2", "dev", link)
    netns.ip("route", "add", "10.16.2.0/24", *ours, *hop, *hop[:2], "10.4.0.3", *hop[3:])
    netns.ip("-6", "route", "add", "fd00:16::/64", "dev", link, "metric", "5", *ours)

    assert await read() == frozenset()


async def test_what_bears_our_number_and_is_in_the_way_is_replaced(
    netns: Namespace, link: str
) -> None:
    (route,) = make_routes(1)
    netns.ip("route", "add", "blackhole", str(route.destination), "proto", "107")

    assert await apply(Change(new=route)) == []
    assert await read() == {route}


async def test_routes_over_the_link_of_a_network_that_runs_beside_ours_give_way(
    netns: Namespace, link: str
) -> None:
    netns.add_veth("flannel.1", "other1")
    routes = make_routes(3)
    theirs, through, kernels = (str(route.destination) for route in routes)
    netns.ip("route", "add", theirs, "via", "10.2.9.0", "dev", "flannel.1", "onlink")
    netns.ip("route", "add", through, "dev", "other1")
    netns.ip("route", "add", kernels, "dev", "flannel.1", "proto", "kernel")

    failures = await apply(*map(make_addition, routes), yielding={"flannel.1"})

    assert list(map(str, failures)) == [f"+ {route}: File exists" for route in routes[1:]]
    assert await read() == {routes[0]}


async def test_routes_of_ciliums_give_way_though_they_bear_the_kernels_number(
    netns: Namespace, link: str
) -> None:
    netns.add_veth("cilium_vxlan", "other1")
    (route,) = make_routes(1)
    way = ("via", "10.2.1.77", "dev", "cilium_vxlan", "onlink", "proto", "kernel")
    netns.ip("route", "add", str(route.destination), *way)

    assert list(map(str, await apply(make_addition(route)))) == [f"+ {route}: File exists"]
    assert await apply(make_addition(route), yielding={"cilium_vxlan"}) == []
    assert await read() == {route}


async def test_where_none_runs_beside_ours_they_do_not(netns: Namespace, link: str) -> None:
    netns.add_veth("flannel.1", "other1")
    (route,) = make_routes(1)
    netns.ip("route", "add", str(route.destination), "dev", "flannel.1")

    assert list(map(str, await apply(make_addition(route)))) == [f"+ {route}: File exists"]


async def test_a_table_with_a_large_number_is_as_good_as_any(link: str) -> None:
    routes = [
        Route(destination=ip_network(text), link=link, table=4_000_000_000)
        for text in ("0.0.0.0/0", "::/0")
    ]

    assert await apply(*(Change(new=route) for route in routes)) == []
    assert await read() == frozenset(routes)
    assert await apply(*(Change(old=route) for route in routes)) == []
    assert await read() == frozenset()


async def test_a_route_that_leads_elsewhere_by_now_is_not_removed(link: str) -> None:
    (route,) = make_routes(1)
    (elsewhere,) = make_routes(1, gateway="10.4.0.3")
    await apply(Change(new=elsewhere))

    assert await apply(Change(old=route)) == []
    assert await read() == {elsewhere}


async def test_a_replacement_is_one_event_that_deletes_nothing(netns: Namespace, link: str) -> None:
    (old,), (new,) = make_routes(1), make_routes(1, gateway="10.4.0.3")
    await apply(Change(new=old))
    with watch_routes(netns) as events:
        await apply(Change(old=old, new=new))

        assert events.readline().split()[:3] == [str(old.destination), "via", "10.4.0.3"]


@contextmanager
def watch_routes(netns: Namespace) -> Iterator[IO[str]]:
    """The lines of a monitor that is known to listen: it has told of what we keep repeating."""
    command = ("stdbuf", "-oL", "ip", "monitor", "route")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as monitor:
        events = monitor.stdout
        assert events is not None
        try:
            while not select.select([events], [], [], 0.05)[0]:
                netns.ip("route", "replace", "10.99.0.0/24", "dev", "kilo0")
            while select.select([events], [], [], 0.2)[0]:
                events.readline()
            yield events
        finally:
            monitor.kill()
