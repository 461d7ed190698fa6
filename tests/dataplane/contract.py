"""What every Dataplane promises, once; run over memory here and over a real kernel in ``kernel``.

The host of the contract has a link ``eth0`` with 192.168.0.1/24 and fd00:192::1/64, forwards
nothing, and has no interface of ours yet.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Protocol

import pytest

from kilo.dataplane.base import ConsequenceError, Dataplane
from kilo.errors import DataplaneError
from kilo.keyfile import generate_private_key, public_key
from kilo.mesh.diff import Change, Changes, diff
from kilo.mesh.keys import PrivateKey, PublicKey
from kilo.mesh.model import Endpoint
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

OTHER_LINK = "eth0"
OTHER_ADDRESSES = (ip_interface("192.168.0.1/24"), ip_interface("fd00:192::1/64"))
REPAIR_SECONDS = 10.0
"""What is touched is noticed within two; on a machine that is busy, the device is polled less."""
MOST_REPORTS = 7
"""In the time of listening for them below: four a second, and the first."""
QUIET_SECONDS = 1.5
"""How long to listen before believing that nothing comes: more than one poll of the device."""


FORWARD = Sysctl(name="net.ipv4.ip_forward", value="1")


class Host(Protocol):
    """A Dataplane, and the hand of somebody who is not Kilo on the same host."""

    private_key: PrivateKey
    interface: str

    @property
    def dataplane(self) -> Dataplane: ...

    async def delete(self, resource: Resource) -> None: ...

    @property
    def has_tunnels(self) -> bool: ...

    async def set_down(self) -> None: ...

    async def read_sysctl(self, name: str) -> str | None: ...

    async def set_sysctl(self, name: str, value: str) -> None: ...

    async def add_route(self, route: Route, *, protocol: str) -> None: ...

    async def delete_route(self, route: Route) -> None: ...

    async def list_foreign_routes(self) -> frozenset[Route]: ...

    async def add_rule(self, rule: Rule) -> None: ...

    async def list_foreign_rules(self) -> frozenset[Rule]: ...


def make_key() -> PublicKey:
    return public_key(generate_private_key())


def make_route(
    host: Host,
    destination: str,
    gateway: str | None = None,
    *,
    source: str | None = None,
    table: int = 254,
) -> Route:
    return Route(
        destination=ip_network(destination),
        link=host.interface,
        gateway=ip_address(gateway) if gateway else None,
        onlink=gateway is not None,
        source=ip_address(source) if source else None,
        table=table,
    )


def make_state(host: Host) -> DataplaneState:
    """One of everything, of both families."""
    link = host.interface
    return DataplaneState(
        links=frozenset({Link(name=link, mtu=1420, up=True)}),
        devices=frozenset(
            {WireGuardDevice(link=link, public_key=public_key(host.private_key), listen_port=51820)}
        ),
        peers=frozenset({make_peer(host, "10.2.1.0/24", "fd00:2:1::/64", "10.4.0.2/32")}),
        addresses=frozenset(
            Address(link=link, interface=ip_interface(text))
            for text in ("10.4.0.1/16", "fd00:4::1/64")
        ),
        firewall=Firewall(
            known=frozenset(map(ip_network, ("10.2.0.0/16", "fd00:2::/48"))),
            masquerade_sources=frozenset({ip_network("10.5.0.1/32")}),
        ),
        barriers=frozenset(
            Barrier(destination=ip_network(text)) for text in ("10.2.1.0/24", "fd00:2:1::/64")
        ),
        routes=frozenset(
            {
                make_route(host, "10.2.1.0/24", "10.4.0.2", source="192.168.0.1"),
                make_route(host, "10.5.0.1/32"),
                make_route(host, "fd00:2:1::/64", "fd00:4::2", source="fd00:192::1"),
                make_route(host, "fd00:5::1/128"),
                make_route(host, "10.2.7.0/24", "10.4.0.2", table=1107),
                make_route(host, "192.168.9.0/24", "10.4.0.2"),
            }
        ),
        rules=frozenset(
            {
                Rule(
                    source=ip_network("10.2.1.0/24"),
                    destination=ip_network("192.168.0.2/32"),
                    table=1107,
                ),
                Rule(destination=ip_network("192.168.0.2/32"), input_link=link, table=1107),
                Rule(destination=ip_network("fd00:192::2/128"), table=1107),
            }
        ),
        sysctls=frozenset({FORWARD}),
    )


def make_peer(host: Host, *allowed_ips: str) -> WireGuardPeer:
    return WireGuardPeer(
        link=host.interface,
        public_key=make_key(),
        allowed_ips=frozenset(map(ip_network, allowed_ips)),
        endpoint=Endpoint(host="192.168.0.7", port=51820),
        keepalive_seconds=10,
    )


async def establish(host: Host, desired: DataplaneState) -> None:
    await host.dataplane.apply(diff(await host.dataplane.read(), desired))


async def expect_failures(host: Host, *steps: Change) -> list[str]:
    with pytest.raises(ExceptionGroup) as caught:
        await host.dataplane.apply(Changes(steps))
    assert all(isinstance(error, DataplaneError) for error in caught.value.exceptions)
    return [str(error) for error in caught.value.exceptions]


async def is_noticed(host: Host, touch: Change) -> bool:
    """Whether removing something of ours is reported in time, from a state that was read."""
    await host.dataplane.read()
    drift = host.dataplane.drift()
    assert touch.old is not None
    await host.delete(touch.old)
    try:
        async with asyncio.timeout(REPAIR_SECONDS):
            await anext(drift)
    except TimeoutError:
        return False
    return True


class DataplaneContract:
    """Inherited by a test class for each implementation; the fixture ``host`` is theirs."""

    async def test_on_a_fresh_host_nothing_is_ours(self, host: Host) -> None:
        assert await host.dataplane.read() == DataplaneState()
        assert await host.dataplane.observe() == {}

    async def test_what_was_applied_is_read_back_and_leaves_nothing_to_do(self, host: Host) -> None:
        desired = make_state(host)

        await establish(host, desired)

        assert await host.dataplane.read() == desired
        assert not diff(await host.dataplane.read(), desired)

    async def test_steps_that_are_already_carried_out_are_no_failures(self, host: Host) -> None:
        desired = make_state(host)
        changes = diff(await host.dataplane.read(), desired)
        await host.dataplane.apply(changes)

        await host.dataplane.apply(changes)

        assert await host.dataplane.read() == desired

    async def test_removing_everything_twice_leaves_what_was_before(self, host: Host) -> None:
        before = await host.list_foreign_routes()
        await establish(host, make_state(host))
        removal = diff(await host.dataplane.read(), DataplaneState())

        await host.dataplane.apply(removal)
        await host.dataplane.apply(removal)

        assert await host.dataplane.read() == DataplaneState()
        assert await host.list_foreign_routes() == before

    async def test_every_peer_is_observed(self, host: Host) -> None:
        desired = make_state(host)
        await establish(host, desired)

        stats = await host.dataplane.observe()

        assert stats.keys() == {peer.public_key for peer in desired.peers}
        assert {stat.latest_handshake for stat in stats.values()} == {0.0}

    async def test_the_facts_name_every_link_and_address_ours_included(self, host: Host) -> None:
        await establish(host, make_state(host))

        facts = await host.dataplane.facts()

        found = {(address.link, address.interface) for address in facts.addresses}
        assert {(OTHER_LINK, interface) for interface in OTHER_ADDRESSES} <= found
        assert (host.interface, ip_interface("10.4.0.1/16")) in found
        assert facts.mtus[host.interface] == 1420
        assert OTHER_LINK in facts.mtus

    async def test_a_route_is_replaced_in_place(self, host: Host) -> None:
        desired = make_state(host)
        await establish(host, desired)
        old = make_route(host, "10.2.1.0/24", "10.4.0.2", source="192.168.0.1")
        new = make_route(host, "10.2.1.0/24", "10.4.0.3")
        old6 = make_route(host, "fd00:2:1::/64", "fd00:4::2", source="fd00:192::1")
        new6 = make_route(host, "fd00:2:1::/64")

        await host.dataplane.apply(Changes((Change(old=old, new=new), Change(old=old6, new=new6))))

        assert (await host.dataplane.read()).routes == desired.routes - {old, old6} | {new, new6}

    async def test_a_change_of_a_route_that_has_gone_adds_it(self, host: Host) -> None:
        desired = make_state(host)
        await establish(host, desired)
        old = make_route(host, "10.5.0.1/32")
        new = make_route(host, "10.5.0.1/32", "10.4.0.9")
        await host.delete(old)

        await host.dataplane.apply(Changes((Change(old=old, new=new),)))

        assert new in (await host.dataplane.read()).routes

    async def test_an_address_is_replaced_without_harm_to_routes_and_others(
        self, host: Host
    ) -> None:
        before = make_state(host)
        await establish(host, before)
        after = replace(
            before,
            addresses=frozenset(
                Address(link=host.interface, interface=ip_interface(text))
                for text in ("10.4.0.2/16", "fd00:4::2/64")
            ),
            routes=frozenset({make_route(host, "10.2.1.0/24", "10.4.0.9")}),
        )

        changes = diff(await host.dataplane.read(), after)
        kept = [step for step in changes if not isinstance(step.resource, Route)]
        await host.dataplane.apply(Changes(tuple(kept)))

        found = await host.dataplane.read()
        assert found.addresses == after.addresses
        assert found.routes == before.routes

    async def test_a_link_that_goes_down_and_up_again_is_made_whole_by_one_pass(
        self, host: Host
    ) -> None:
        desired = make_state(host)
        await establish(host, desired)
        await host.set_down()
        assert await host.dataplane.read() != desired

        await establish(host, desired)

        assert await host.dataplane.read() == desired

    async def test_foreign_routes_are_neither_reported_nor_touched(self, host: Host) -> None:
        desired = make_state(host)
        await establish(host, desired)
        foreign = {
            make_route(host, "10.99.0.0/16", "10.4.0.9"),
            make_route(host, "10.2.1.0/24", table=77),
            make_route(host, "fd00:99::/64", "fd00:4::9"),
        }
        for route in foreign:
            await host.add_route(route, protocol="bird")
        before = await host.list_foreign_routes()
        assert await host.dataplane.read() == desired

        await establish(host, replace(desired, routes=frozenset()))

        assert not (await host.dataplane.read()).routes
        assert await host.list_foreign_routes() == before >= foreign

    async def test_a_foreign_route_of_a_key_of_ours_is_not_deleted(self, host: Host) -> None:
        await establish(host, make_state(host))
        ours = make_route(host, "10.5.0.1/32")
        await host.delete(ours)
        await host.add_route(ours, protocol="static")

        await host.dataplane.apply(Changes((Change(old=ours),)))

        assert ours in await host.list_foreign_routes()

    async def test_foreign_rules_are_neither_reported_nor_touched(self, host: Host) -> None:
        rule = Rule(destination=ip_network("192.168.0.2/32"), table=1107)
        await host.add_rule(rule)
        await establish(host, make_state(host))
        before = await host.list_foreign_rules()

        await establish(host, DataplaneState())

        assert await host.list_foreign_rules() == before >= {rule}

    async def test_a_same_route_of_another_owner_is_adopted(self, host: Host) -> None:
        desired = make_state(host)
        await establish(host, replace(desired, routes=frozenset()))
        for route in desired.routes:
            await host.add_route(route, protocol="static")
        assert not (await host.dataplane.read()).routes

        await establish(host, desired)

        assert await host.dataplane.read() == desired

    async def test_another_route_in_the_way_fails_its_step_and_no_other(self, host: Host) -> None:
        desired = make_state(host)
        await establish(host, replace(desired, routes=frozenset()))
        blocked = make_route(host, "10.5.0.1/32")
        blocked6 = make_route(host, "fd00:5::1/128")
        in_the_way = {
            make_route(host, "10.5.0.1/32", "10.4.0.99"),
            make_route(host, "fd00:5::1/128", "fd00:4::99"),
        }
        for route in in_the_way:
            await host.add_route(route, protocol="static")

        changes = diff(await host.dataplane.read(), desired)
        failures = await expect_failures(host, *changes)

        assert sorted(failures) == [f"+ {blocked}: File exists", f"+ {blocked6}: File exists"]
        assert (await host.dataplane.read()).routes == desired.routes - {blocked, blocked6}
        assert await host.list_foreign_routes() >= in_the_way

    async def test_a_foreign_route_that_took_our_place_is_not_replaced(self, host: Host) -> None:
        await establish(host, make_state(host))
        ours = make_route(host, "10.5.0.1/32")
        theirs = make_route(host, "10.5.0.1/32", "10.4.0.99")
        await host.delete(ours)
        await host.add_route(theirs, protocol="static")
        step = Change(old=ours, new=make_route(host, "10.5.0.1/32", "10.4.0.7"))

        assert await expect_failures(host, step) == [f"{step}: File exists"]
        assert theirs in await host.list_foreign_routes()

    async def test_the_kernels_own_route_to_a_subnet_is_not_adopted(self, host: Host) -> None:
        await establish(host, make_state(host))
        step = Change(new=make_route(host, "10.4.0.0/16", source="10.4.0.1"))

        assert await expect_failures(host, step) == [f"{step}: File exists"]

    @pytest.mark.parametrize(
        ("destination", "gateway", "onlink", "source", "reason"),
        [
            ("10.9.0.0/16", "10.99.0.1", False, None, "Network is unreachable"),
            ("fd00:9::/64", "fd00:99::1", False, None, "No route to host"),
            ("10.9.0.0/16", "10.4.0.1", True, None, "Invalid argument"),
            ("fd00:9::/64", "fd00:4::1", True, None, "Invalid argument"),
            ("10.9.0.0/16", None, False, "192.168.0.99", "Invalid argument"),
            ("fd00:9::/64", None, False, "fd00:192::99", "Invalid argument"),
        ],
    )
    async def test_a_route_that_cannot_work_is_refused(
        self,
        host: Host,
        destination: str,
        gateway: str | None,
        source: str | None,
        reason: str,
        *,
        onlink: bool,
    ) -> None:
        await establish(host, make_state(host))
        route = replace(make_route(host, destination, gateway, source=source), onlink=onlink)
        step = Change(new=route)

        assert await expect_failures(host, step) == [f"{step}: {reason}"]

    async def test_a_gateway_of_a_subnet_of_the_link_needs_no_onlink(self, host: Host) -> None:
        await establish(host, make_state(host))
        route = replace(make_route(host, "10.9.0.0/16", "10.4.0.7"), onlink=False)

        await host.dataplane.apply(Changes((Change(new=route),)))

        assert route in (await host.dataplane.read()).routes

    @pytest.mark.parametrize("destination", ["10.9.0.0/16", "fd00:9::/64"])
    async def test_a_route_over_a_link_that_is_down_is_refused(
        self, host: Host, destination: str
    ) -> None:
        await establish(host, make_state(host))
        await host.set_down()
        step = Change(new=make_route(host, destination))

        assert await expect_failures(host, step) == [f"{step}: Network is down"]

    async def test_what_needs_a_link_that_is_not_there_is_refused(self, host: Host) -> None:
        state = make_state(host)
        (link,) = state.links
        route = replace(make_route(host, "10.9.0.0/16"), link="nosuch0")
        address = Address(link=host.interface, interface=ip_interface("10.4.0.1/16"))
        steps = (
            Change(old=replace(link, mtu=1300), new=link),
            Change(new=address),
            Change(new=route),
        )

        failures = await expect_failures(host, *steps)

        assert failures == [f"{step}: No such device" for step in steps]

    async def test_an_mtu_that_no_link_can_have_is_refused(self, host: Host) -> None:
        (link,) = make_state(host).links
        await establish(host, DataplaneState(links=frozenset({link})))
        step = Change(old=link, new=replace(link, mtu=20))

        (failure,) = await expect_failures(host, step)

        assert failure.startswith(f"{step}: Invalid argument")

    async def test_the_link_takes_everything_on_it_along(self, host: Host) -> None:
        desired = make_state(host)
        await establish(host, desired)
        (link,) = desired.links

        await host.dataplane.apply(Changes((Change(old=link),)))

        found = await host.dataplane.read()
        assert found == DataplaneState(
            firewall=desired.firewall,
            barriers=desired.barriers,
            rules=desired.rules,
            sysctls=desired.sysctls,
        )

    async def test_what_was_to_be_on_a_link_that_cannot_be_made_fails_as_a_consequence(
        self, host: Host
    ) -> None:
        desired = make_state(host)
        (link,) = desired.links
        broken = replace(desired, links=frozenset({replace(link, mtu=20)}))

        with pytest.raises(ExceptionGroup) as caught:
            await host.dataplane.apply(diff(await host.dataplane.read(), broken))

        told = [e for e in caught.value.exceptions if not isinstance(e, ConsequenceError)]
        assert [str(error).partition(" mtu")[0] for error in told] == [f"+ link {link.name}"]

    async def test_a_setting_is_as_it_was_before_once_it_is_not_ours_any_more(
        self, host: Host
    ) -> None:
        desired = make_state(host)
        await establish(host, desired)
        assert await host.read_sysctl(FORWARD.name) == "1"
        assert (await host.dataplane.facts()).sysctls[FORWARD.name] == "0", "as others have it"

        await establish(host, replace(desired, sysctls=frozenset()))

        assert await host.read_sysctl(FORWARD.name) == "0"
        assert (await host.dataplane.read()).sysctls == frozenset()

    async def test_a_setting_that_somebody_changes_back_is_still_ours_to_put_right(
        self, host: Host
    ) -> None:
        desired = make_state(host)
        await establish(host, desired)
        await host.set_sysctl(FORWARD.name, "0")
        assert (await host.dataplane.read()).sysctls == {replace(FORWARD, value="0")}

        await establish(host, desired)

        assert await host.read_sysctl(FORWARD.name) == "1"

    async def test_a_setting_that_somebody_made_as_we_need_it_is_theirs(self, host: Host) -> None:
        await host.set_sysctl(FORWARD.name, "1")

        assert (await host.dataplane.read()).sysctls == frozenset()
        assert (await host.dataplane.facts()).sysctls[FORWARD.name] == "1"

    async def test_a_tunnel_is_made_changed_noticed_and_removed(self, host: Host) -> None:
        if not host.has_tunnels:
            pytest.skip("this kernel has no IPIP; ipip.py is run on one that has")
        addresses = frozenset({ip_interface("10.2.7.1/32")})
        tunnel = Tunnel(name="tunl0", mtu=1480, addresses=addresses)
        route = replace(make_route(host, "10.2.8.0/24", "192.168.0.2"), link=tunnel.name)
        made = DataplaneState(tunnels=frozenset({tunnel}), routes=frozenset({route}))

        await establish(host, made)
        assert await host.dataplane.read() == made
        facts = await host.dataplane.facts()
        assert (facts.mtus["tunl0"], facts.kinds["tunl0"]) == (1480, "ipip")
        assert facts.busy_tunnels == frozenset(), "our own is not somebody else's"

        changed = replace(made, tunnels=frozenset({replace(tunnel, mtu=1380)}))
        await establish(host, changed)
        assert await host.dataplane.read() == changed
        assert await is_noticed(host, Change(old=tunnel))
        await establish(host, made)
        assert await host.dataplane.read() == made
        await establish(host, DataplaneState())
        assert await host.dataplane.read() == DataplaneState()
        step = Change(new=route)
        assert await expect_failures(host, step) in (
            [f"{step}: No such device"],  # or the kernel's own, back as it was
            [f"{step}: Network is down"],
        )

    async def test_an_allowed_ip_given_to_another_peer_moves(self, host: Host) -> None:
        desired = make_state(host)
        await establish(host, desired)
        (peer,) = desired.peers
        thief = make_peer(host, "10.2.1.0/24")

        await host.dataplane.apply(Changes((Change(new=thief),)))

        left = peer.allowed_ips - thief.allowed_ips
        assert (await host.dataplane.read()).peers == {replace(peer, allowed_ips=left), thief}

    async def test_a_peer_is_changed_only_where_something_is_wanted(self, host: Host) -> None:
        desired = make_state(host)
        await establish(host, desired)
        (peer,) = desired.peers
        wanted = replace(peer, endpoint=None, keepalive_seconds=25)

        await host.dataplane.apply(Changes((Change(old=peer, new=wanted),)))

        assert (await host.dataplane.read()).peers == {replace(peer, keepalive_seconds=25)}

    @pytest.mark.parametrize("kind", [Route, Rule, Address, WireGuardPeer, Firewall, Link])
    async def test_what_somebody_deletes_is_noticed(self, host: Host, kind: type) -> None:
        desired = make_state(host)
        await establish(host, desired)
        for resource in desired.resources():
            if isinstance(resource, kind):
                assert await is_noticed(host, Change(old=resource)), resource
                await establish(host, desired)

    async def test_a_link_set_down_is_noticed(self, host: Host) -> None:
        await establish(host, make_state(host))
        drift = host.dataplane.drift()

        await host.set_down()

        async with asyncio.timeout(REPAIR_SECONDS):
            await anext(drift)

    @pytest.mark.parametrize(
        ("destination", "gateway"), [("10.5.0.1/32", "10.4.0.99"), ("fd00:5::1/128", "fd00:4::99")]
    )
    async def test_a_foreign_route_put_in_the_place_of_ours_is_noticed(
        self, host: Host, destination: str, gateway: str
    ) -> None:
        await establish(host, make_state(host))
        await host.dataplane.read()
        drift = host.dataplane.drift()

        await host.add_route(make_route(host, destination, gateway), protocol="static")

        async with asyncio.timeout(REPAIR_SECONDS):
            await anext(drift)

    async def test_what_others_do_with_their_own_wakes_nobody(self, host: Host) -> None:
        await establish(host, make_state(host))
        await host.dataplane.read()
        drift = host.dataplane.drift()

        for number in range(50):
            route = make_route(host, f"10.99.{number}.0/24")
            await host.add_route(route, protocol="bird")
            await host.add_route(route, protocol="bird")
            await host.delete_route(route)
        await host.add_rule(Rule(destination=ip_network("10.99.0.0/16"), table=77))

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(QUIET_SECONDS):
                await anext(drift)

    async def test_a_burst_is_reported_a_few_times_only(self, host: Host) -> None:
        routes = [make_route(host, f"10.98.{number}.0/24") for number in range(200)]
        desired = make_state(host)
        await establish(host, replace(desired, routes=desired.routes | {*routes}))
        drift = host.dataplane.drift()
        for route in routes:
            await host.delete(route)

        reports = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUIET_SECONDS):
                async for _ in drift:
                    reports += 1

        assert 1 <= reports <= MOST_REPORTS

    async def test_what_we_do_ourselves_wakes_nobody(self, host: Host) -> None:
        desired = make_state(host)
        await establish(host, desired)
        peer = WireGuardPeer(
            link=host.interface,
            public_key=make_key(),
            allowed_ips=frozenset({ip_network("10.97.0.1/32")}),
        )
        assert desired.firewall is not None
        more = replace(
            desired,
            peers=desired.peers | {peer},
            routes=desired.routes | {make_route(host, "10.97.0.0/24")},
            barriers=desired.barriers | {Barrier(destination=ip_network("10.97.0.0/16"))},
            firewall=replace(desired.firewall, known=frozenset({ip_network("10.97.0.0/16")})),
        )
        actual = await host.dataplane.read()
        drift = host.dataplane.drift()

        await host.dataplane.apply(diff(actual, more))

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(QUIET_SECONDS):
                await anext(drift)
        # Nor does it make anybody deaf.
        for touched in {*more.resources()} - {*desired.resources()}:
            assert await is_noticed(host, Change(old=touched)), touched
            await establish(host, more)

    async def test_closing_ends_every_watch_and_may_be_repeated(self, host: Host) -> None:
        drift = host.dataplane.drift()

        await host.dataplane.close()
        await host.dataplane.close()

        with pytest.raises(StopAsyncIteration):
            await anext(drift)
