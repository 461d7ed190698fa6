"""Which settings of its kernel a node changes, and what it says where it may not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from kilo.mesh.diff import diff
from kilo.mesh.host import HostFacts
from kilo.mesh.model import Encapsulation, Node, Settings, Snapshot
from kilo.mesh.plan import Agent, Knowledge, Plan, make_plan
from kilo.mesh.readiness import Heartbeat
from kilo.mesh.roaming import Observed
from kilo.mesh.state import DataplaneState, Sysctl
from kilo.mesh.sysctls import list_relevant, name_setting
from tests.builders import make_key
from tests.mesh.fleets import make_facts, make_node, nets, render_node, say

IPV4, IPV6 = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"
ALL, DEFAULT = "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.rp_filter"
KILO0, TUNL0 = "net.ipv4.conf.kilo0.rp_filter", "net.ipv4.conf.tunl0.rp_filter"
OFF = {IPV4: "0", IPV6: "0", ALL: "0", DEFAULT: "0"}
FACTS = make_facts(eth0="192.168.1.1/24 fd00:1::1/64")
LONE = make_node("a", internal="192.168.1.1/24 fd00:1::1/64")
PODS = replace(LONE, spec=replace(LONE.spec, pod_subnets=nets("10.2.1.0/24 fd00:a:0:1::/64")))
OTHER = make_node("b", internal="192.168.1.2/24 fd00:1::2/64")
LED = replace(OTHER, spec=replace(OTHER.spec, leader=True))
PRINTER = replace(LONE, spec=replace(LONE.spec, allowed_location_ips=nets("192.168.1.50/32")))


def make_host(sysctls: Mapping[str, str], fixed: tuple[str, ...] = ()) -> HostFacts:
    return replace(FACTS, sysctls=sysctls, fixed_sysctls=frozenset(fixed))


def render_sysctls(
    nodes: list[Node], sysctls: Mapping[str, str], settings: Settings | None = None
) -> list[str]:
    host = make_host(sysctls)
    return say(render_node("a", nodes, host=host, settings=settings or Settings()).sysctls)


def plan(node: Node, facts: HostFacts, *ours: Sysctl) -> Plan:
    knowledge = Knowledge(
        snapshot=Snapshot(nodes=(node,)),
        facts=facts,
        heartbeats={node.name: Heartbeat(stamp=1, seen_at=0.0)},
        observed=Observed(now=0.0),
    )
    agent = Agent(name="a", public_key=make_key("a"))
    return make_plan(agent, knowledge, DataplaneState(sysctls=frozenset(ours)))


def say_set(*names: str, value: str = "1") -> list[str]:
    return sorted(f"sysctl {name}={value}" for name in names)


# Forwarding.


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        pytest.param([LONE], [], id="nobody behind it"),
        pytest.param([PODS], [IPV4, IPV6], id="its pods, of both families"),
        pytest.param([LONE, OTHER], [IPV4, IPV6], id="it leads another node"),
        pytest.param([PRINTER], [IPV4], id="it leads to a printer, which has IPv4 only"),
        pytest.param([LONE, LED], [], id="another node leads it"),
        pytest.param([PODS, LED], [IPV4, IPV6], id="its pods, though another node leads it"),
    ],
)
def test_a_node_that_has_somebody_behind_it_forwards(
    nodes: list[Node], expected: list[str]
) -> None:
    assert render_sysctls(nodes, OFF) == say_set(*expected)


def test_forwarding_that_others_have_switched_on_stays_theirs() -> None:
    assert render_sysctls([PODS], OFF | {IPV4: "1"}) == say_set(IPV6)
    assert render_sysctls([PODS], OFF | {IPV4: "1", IPV6: "2"}) == []


def test_a_link_that_hears_routers_goes_on_hearing_them_once_the_host_is_one() -> None:
    heard = {name_setting(6, link, "accept_ra"): value for link, value in LISTENING.items()}
    found = render_sysctls([PODS], OFF | heard)
    kept = [*say_set("net.ipv6.conf.eth0/7.accept_ra", "net.ipv6.conf.wlan0.accept_ra", value="2")]
    assert found == sorted([*say_set(IPV4, IPV6), *kept])
    assert render_sysctls([PODS], OFF | heard | {IPV6: "1"}) == say_set(IPV4), "it was one already"


LISTENING = {"eth0.7": "1", "wlan0": "1", "eth1": "0", "eth2": "2"}


def test_links_listen_before_the_host_forwards_and_until_it_does_no_more() -> None:
    settings = {Sysctl(name=name, value="1") for name in (IPV4, IPV6)}
    settings |= {Sysctl(name=f"net.ipv6.conf.{one}.accept_ra", value="2") for one in ("a", "z")}
    state = DataplaneState(sysctls=frozenset(settings))

    there = [step.resource.key[0] for step in diff(DataplaneState(), state)]
    back = [step.resource.key[0] for step in diff(state, DataplaneState())]

    assert [name in (IPV4, IPV6) for name in there] == [False, False, True, True]
    assert [name in (IPV4, IPV6) for name in back] == [True, True, False, False]


def test_what_containers_made_is_not_listened_to_but_for_the_default_route() -> None:
    facts = make_facts(eth0="192.168.1.1/24", docker0="", veth7="", cni0="")
    facts = replace(facts, kinds={**facts.kinds, "docker0": "bridge"}, default_links=("veth7",))
    names = set(list_relevant(facts, ("kilo0",)))
    listening = {name for name in names if name.endswith("accept_ra")}
    assert listening == {"net.ipv6.conf.eth0.accept_ra", "net.ipv6.conf.veth7.accept_ra"}
    assert {IPV4, IPV6, ALL, DEFAULT, KILO0} <= names


# Reverse path filters.

NEIGHBOUR = make_node("b", internal="192.168.1.2/24")
STRICT, LOOSE = "1", "2"


@pytest.mark.parametrize(
    ("everywhere", "here", "expected"),
    [
        pytest.param("0", "0", [], id="off"),
        pytest.param("1", "0", [KILO0], id="strict on all"),
        pytest.param("0", "1", [KILO0], id="strict on this one"),
        pytest.param("1", "2", [], id="loose is more"),
        pytest.param("2", "1", [], id="loose on all is more"),
    ],
)
def test_a_leaders_link_does_not_filter_strictly(
    everywhere: str, here: str, expected: list[str]
) -> None:
    settings = OFF | {IPV4: "1", IPV6: "1", ALL: everywhere}
    assert render_sysctls([LONE], settings | {KILO0: here}) == say_set(*expected, value=LOOSE)
    assert render_sysctls([LONE], settings | {DEFAULT: here}) == say_set(*expected, value=LOOSE), (
        "a link that is yet to be made gets the default"
    )


def test_the_tunnel_does_not_filter_strictly_where_it_is_ours() -> None:
    settings = {IPV4: "1", IPV6: "1", ALL: STRICT, DEFAULT: STRICT}
    encapsulated = Settings(encapsulation=Encapsulation.ALWAYS)
    found = render_sysctls([LONE, LED], settings, encapsulated)
    assert found == say_set(TUNL0, value=LOOSE)
    busy = replace(make_host(settings), busy_tunnels=frozenset({"tunl0"}))
    assert not render_node("a", [LONE, LED], host=busy, settings=encapsulated).sysctls


# What may not be changed.


def test_what_cannot_be_set_is_a_warning_that_says_what_to_set() -> None:
    found = plan(PODS, make_host(OFF | {KILO0: STRICT}, fixed=(IPV4, IPV6, KILO0)))
    assert not found.desired.sysctls
    no_way = "cannot be reached through it"
    assert [warning.split(": ")[-1] for warning in found.warnings] == [
        f"10.2.1.0/24 {no_way}; set net.ipv4.ip_forward=1",
        f"fd00:a:0:1::/64 {no_way}; set net.ipv6.conf.all.forwarding=1",
        f"kilo0 drops packets whose answers would leave by another link; set {KILO0}=2",
    ]


def test_a_link_that_is_yet_to_be_made_may_be_changed_if_new_links_may() -> None:
    strict = OFF | {IPV4: "1", IPV6: "1", ALL: STRICT}
    assert plan(LONE, make_host(strict)).warnings == ()
    assert len(plan(LONE, make_host(strict, fixed=(DEFAULT,))).warnings) == 1


def test_a_host_forwards_no_ipv6_if_that_would_cost_it_its_default_route() -> None:
    listening = "net.ipv6.conf.eth0.accept_ra"
    found = plan(PODS, make_host(OFF | {listening: "1"}, fixed=(listening,)))
    assert say(found.desired.sysctls) == say_set(IPV4)
    (warning,) = found.warnings
    assert warning.endswith("set net.ipv6.conf.eth0.accept_ra=2, net.ipv6.conf.all.forwarding=1")


def test_what_is_ours_stays_while_nothing_needs_it_and_is_not_fought_over() -> None:
    ours = (Sysctl(name=IPV4, value="0"), Sysctl(name=KILO0, value=LOOSE))
    assert plan(LONE, make_host(OFF), *ours).desired.sysctls == set(ours)
    again = plan(PODS, make_host(OFF), *ours)
    assert {f"~ sysctl {IPV4}=1", f"+ sysctl {IPV6}=1"} <= set(map(str, again.changes))


# A host without IPv6.


def test_a_host_without_ipv6_does_without_on_its_own_link_and_is_told_whom_that_costs() -> None:
    facts = replace(make_facts(eth0="192.168.1.1/24"), families=frozenset({4}))
    far = make_node("z", location="far", internal="192.168.9.1/24 fd00:9::1/64")
    dual = Settings(subnets=nets("10.4.0.0/16 fd00:4::/64"))
    alone = make_node("a", internal="192.168.1.1/24")
    state = render_node("a", [alone, far], host=facts, settings=dual)
    assert say(state.addresses) == ["address 10.4.0.1/16 dev kilo0"]
    assert {route.destination.version for route in state.routes} == {4}
    assert "fd00:9::1/128" in str(next(iter(state.peers))), "another node may still send it some"
    no_ipv6 = replace(facts, sysctls={IPV4: "1"})
    assert plan(alone, no_ipv6).warnings == ()
    assert plan(PODS, no_ipv6).warnings == (
        "this node has no IPv6: fd00:a:0:1::/64 cannot be reached through it",
    )


# An MTU that does not fit.


@pytest.mark.parametrize(
    ("mtu", "endpoint", "warned"),
    [
        (1420, "198.51.100.2:1", False),
        (1440, "198.51.100.2:1", False),
        (1441, "198.51.100.2:1", True),
        (1420, "[2001:db8::2]:1", False),
        (1440, "[2001:db8::2]:1", True),
    ],
)
def test_an_mtu_that_does_not_fit_the_underlay_is_warned_of(
    mtu: int, endpoint: str, *, warned: bool
) -> None:
    other = make_node("z", location="far", internal="192.168.9.1/24", endpoint=endpoint)
    knowledge = Knowledge(
        snapshot=Snapshot(nodes=(LONE, other)),
        facts=FACTS,
        heartbeats={name: Heartbeat(stamp=1, seen_at=0.0) for name in ("a", "z")},
        observed=Observed(now=0.0),
    )
    agent = Agent(name="a", public_key=make_key("a"), flags={"mtu": mtu})
    found = make_plan(agent, knowledge, DataplaneState()).warnings
    assert [f"mtu {mtu}: " in warning for warning in found] == [True] * warned
