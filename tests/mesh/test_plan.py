"""One pass as a value: who wins over whom, and what a host cannot take part with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kilo.errors import ConfigError, MeshError
from kilo.mesh.host import HostFacts
from kilo.mesh.model import (
    Encapsulation,
    Endpoint,
    Granularity,
    Node,
    NodeSpec,
    PartialSettings,
    Settings,
    Snapshot,
)
from kilo.mesh.plan import (
    Agent,
    Knowledge,
    Plan,
    complete_settings,
    find_endpoint_names,
    make_plan,
)
from kilo.mesh.readiness import Heartbeat
from kilo.mesh.roaming import Observed
from kilo.mesh.state import DataplaneState, PeerStats
from kilo.mesh.topology import build_topology
from kilo.mesh.view import Compatibility, RenderOptions
from tests.builders import make_key
from tests.mesh.fleets import interfaces, make_facts, make_node, make_peer, nets, say

NOW = 1_700_000_000.0
AGENT = Agent(name="a", public_key=make_key("a"))
FACTS = make_facts(eth0="192.168.1.1/24", eth1="198.51.100.1/24")
NODE = make_node("a", location="east", internal="192.168.1.1/24")
OTHER = make_node("b", location="west", internal="192.168.2.1/24", keepalive=25)


def _know(snapshot: Snapshot, *, facts: HostFacts = FACTS) -> Knowledge:
    live = Heartbeat(stamp=1, seen_at=0.0)
    return Knowledge(
        snapshot=snapshot,
        facts=facts,
        heartbeats={node.name: live for node in snapshot.nodes},
        observed=Observed(now=NOW),
    )


def _plan(snapshot: Snapshot, *, facts: HostFacts = FACTS, agent: Agent = AGENT) -> Plan:
    return make_plan(agent, _know(snapshot, facts=facts), DataplaneState())


def test_a_host_nobody_declared_takes_part_with_what_it_found() -> None:
    plan = _plan(Snapshot())
    assert say(plan.changes) == [
        "+ address 10.4.0.1/16 dev kilo0",
        "+ barrier 10.4.0.0/16",
        "+ link kilo0 mtu 1420 up",
        f"+ wireguard kilo0 public-key {make_key('a')} listen-port 51820",
    ]
    report = plan.report
    assert (str(report.endpoint), say(report.internal_ips), say(report.wireguard_ips)) == (
        "198.51.100.1:51820",
        ["192.168.1.1/24"],
        ["10.4.0.1/16"],
    )
    assert report.granularity is Granularity.LOCATION


def test_what_the_host_finds_now_wins_over_what_the_store_says_it_reported() -> None:
    stale = make_node("a", endpoint="203.0.113.66:1", internal="192.168.66.1/24")
    plan = _plan(Snapshot(nodes=(stale,)))
    (segment,) = plan.topology.segments
    assert segment.allowed_ips == nets("10.4.0.1/32 192.168.1.1/32")


def test_applying_a_plan_leaves_nothing_to_plan() -> None:
    knowledge = _know(Snapshot(nodes=(NODE, OTHER), peers=(make_peer("p", "10.5.0.1/32"),)))
    desired = make_plan(AGENT, knowledge, DataplaneState()).desired
    assert len(make_plan(AGENT, knowledge, desired).changes) == 0


@pytest.mark.parametrize(
    ("stored", "flags", "expected"),
    [
        pytest.param({}, {}, Settings(), id="the defaults"),
        pytest.param({"port": 1}, {}, Settings(port=1), id="the store's win over the defaults"),
        pytest.param({"port": 1}, {"port": 2}, Settings(port=2), id="a flag wins over the store's"),
        pytest.param({"mtu": 1300}, {"mtu": None}, Settings(), id="even one that says automatic"),
        pytest.param(
            {"port": 1}, {"mtu": 1300}, Settings(port=1, mtu=1300), id="each setting for itself"
        ),
    ],
)
def test_settings_are(stored: PartialSettings, flags: PartialSettings, expected: Settings) -> None:
    agent = replace(AGENT, flags=flags)
    assert complete_settings(Snapshot(settings=stored), agent) == expected


def test_what_neither_flags_nor_the_store_say_is_the_agents_default() -> None:
    defaults = Settings(encapsulation=Encapsulation.ALWAYS)
    agent = replace(AGENT, defaults=defaults)
    assert complete_settings(Snapshot(), agent) == defaults
    stored = PartialSettings(encapsulation=Encapsulation.NEVER)
    assert complete_settings(Snapshot(settings=stored), agent) == Settings()


def test_a_host_without_any_address_cannot_take_part() -> None:
    with pytest.raises(ConfigError, match="no address to take part with"):
        _plan(Snapshot(), facts=make_facts(eth0="fe80::1/64"))


def test_a_host_without_any_address_takes_part_with_a_declared_endpoint() -> None:
    spec = NodeSpec(endpoint=Endpoint.parse("203.0.113.9:7"))
    snapshot = Snapshot(nodes=(replace(NODE, spec=spec, report=None),))
    plan = _plan(snapshot, facts=make_facts(eth0="fe80::1/64"))
    assert plan.report.endpoint is None
    assert say(plan.desired.devices) == [
        f"wireguard kilo0 public-key {make_key('a')} listen-port 7"
    ]


def test_a_host_that_has_just_lost_its_addresses_stays_with_what_it_last_reported() -> None:
    report = _plan(Snapshot()).report
    knowledge = replace(_know(Snapshot(), facts=HostFacts()), report=report)
    assert make_plan(AGENT, knowledge, DataplaneState()).report == report


def test_a_declared_key_that_is_not_this_hosts_stops_it() -> None:
    node = replace(NODE, spec=NodeSpec(public_key=make_key("other")))
    with pytest.raises(MeshError, match=r"Node a: spec\.publicKey .* is not this host's key"):
        _plan(Snapshot(nodes=(node,)))


@pytest.mark.parametrize("internal", [None, "192.168.1.1/24"], ids=["found only", "declared"])
def test_nodes_with_declared_keys_agree_though_each_reads_only_its_own_report(
    internal: str | None,
) -> None:
    """A directory copied to every host by git or Ansible: what an agent writes stays at home."""
    declared = {
        name: NodeSpec(
            location="east",
            public_key=make_key(name),
            endpoint=Endpoint.parse(f"198.51.100.{number}:51820"),
            internal_ips=interfaces(internal.replace("1/", f"{number}/")) if internal else None,
        )
        for number, name in enumerate("ab", start=1)
    }
    topologies = []
    for number, name in enumerate("ab", start=1):
        own = replace(make_node(name, internal=f"192.168.1.{number}/24"), spec=declared[name])
        others = [Node(name=other, spec=declared[other]) for other in "ab" if other != name]
        facts = make_facts(eth0=f"192.168.1.{number}/24")
        agent = Agent(name=name, public_key=make_key(name))
        nodes = tuple(sorted((own, *others), key=lambda node: node.name))
        topologies.append(_plan(Snapshot(nodes=nodes), facts=facts, agent=agent).topology)
    assert [
        [(segment.name, segment.leader.name, segment.allowed_ips) for segment in one.segments]
        for one in topologies[:1]
    ] == [
        [(segment.name, segment.leader.name, segment.allowed_ips) for segment in one.segments]
        for one in topologies[1:]
    ]
    assert len(topologies[0].segments) == (1 if internal else 2)


def test_silent_nodes_take_no_part() -> None:
    knowledge = replace(_know(Snapshot(nodes=(NODE, OTHER))), heartbeats={})
    plan = make_plan(AGENT, knowledge, DataplaneState())
    assert [node.name for node in plan.topology.nodes] == ["a"]


def test_the_others_are_told_where_a_device_behind_nat_is_seen_while_its_session_lives() -> None:
    seen = Endpoint.parse("203.0.113.50:1")
    for age, expected in ((10, ((make_key("b"), seen),)), (999, ())):
        stats = PeerStats(endpoint=seen, latest_handshake=NOW - age, received_bytes=0, sent_bytes=0)
        knowledge = replace(
            _know(Snapshot(nodes=(NODE, OTHER))),
            observed=Observed(now=NOW, stats={make_key("b"): stats}),
        )
        plan = make_plan(AGENT, knowledge, DataplaneState())
        assert plan.report.discovered_endpoints == expected


def test_the_endpoints_that_are_names_are_listed_with_their_owners() -> None:
    nodes = [make_node("a", endpoint="a.example.com:1"), make_node("b")]
    peers = [
        make_peer("p", "10.5.0.1/32", endpoint="p.example.com:1"),
        make_peer("q", "10.5.0.2/32"),
    ]
    assert find_endpoint_names(build_topology(nodes, peers, Settings())) == {
        "a.example.com": "Node a",
        "p.example.com": "Peer p",
    }


def test_cross_is_refused_where_an_agent_cannot_know_it() -> None:
    assert OTHER.report is not None
    with_pods = replace(OTHER.spec, pod_subnets=nets("10.2.2.0/24"))
    kilos = replace(OTHER, spec=with_pods, report=replace(OTHER.report, agent=""))
    own = replace(NODE, spec=replace(NODE.spec, pod_subnets=nets("10.2.1.0/24")))
    cross = PartialSettings(granularity=Granularity.CROSS)
    _plan(Snapshot(nodes=(own, OTHER), settings=cross))
    with pytest.raises(MeshError, match="granularity cross: the agent of Node b is Kilo's own"):
        _plan(Snapshot(nodes=(own, kilos), settings=cross))


def test_a_host_without_pod_subnet_beside_kilos_own_agents_is_told_what_it_lacks() -> None:
    assert OTHER.report is not None
    with_pods = replace(OTHER.spec, pod_subnets=nets("10.2.2.0/24"))
    kilos = replace(OTHER, spec=with_pods, report=replace(OTHER.report, agent=""))
    with pytest.raises(MeshError, match="Node a: has no pod subnet, without which"):
        _plan(Snapshot(nodes=(NODE, kilos)))


def test_the_report_says_which_agent_wrote_it() -> None:
    assert _plan(Snapshot(), agent=replace(AGENT, version="kg 9.9.9")).report.agent == "kg 9.9.9"


def test_beside_cilium_the_report_says_where_cilium_finds_the_host() -> None:
    facts = make_facts(eth0="192.168.1.1/24", cilium_host="fd00:2:1::7/128 10.2.1.77/32")
    beside = replace(AGENT, options=RenderOptions(compatibility=Compatibility.CILIUM))
    found = _plan(Snapshot(), facts=facts, agent=beside).report.cni_compatibility_ip
    assert str(found) == "10.2.1.77/32"
    assert _plan(Snapshot(), facts=facts).report.cni_compatibility_ip is None


def test_while_ciliums_link_is_away_the_report_says_where_cilium_found_the_host() -> None:
    beside = replace(AGENT, options=RenderOptions(compatibility=Compatibility.CILIUM))
    facts = make_facts(eth0="192.168.1.1/24", cilium_host="10.2.1.77/32")
    before = _plan(Snapshot(), facts=facts, agent=beside).report
    away = make_facts(eth0="192.168.1.1/24")
    knowledge = replace(_know(Snapshot(), facts=away), report=before)
    assert make_plan(beside, knowledge, DataplaneState()).report == before


@pytest.mark.parametrize(
    ("underlay", "private", "encapsulation", "fitting"),
    [
        pytest.param(1500, 1500, Encapsulation.NEVER, 1420, id="the tunnel between locations"),
        pytest.param(9000, 1500, Encapsulation.ALWAYS, 1480, id="that within the location"),
        pytest.param(9000, 1500, Encapsulation.NEVER, 1500, id="the link within the location"),
        pytest.param(1400, 9000, Encapsulation.ALWAYS, 1320, id="a smaller underlay"),
    ],
)
def test_pods_get_an_mtu_that_fits_every_link_their_packets_leave_by(
    underlay: int, private: int, encapsulation: Encapsulation, fitting: int
) -> None:
    facts = make_facts(eth1="198.51.100.1/24", eth0="192.168.1.1/24")
    facts = replace(facts, mtus={"eth0": private, "eth1": underlay, "kilo0": 1280, "other": 576})
    pods = replace(NODE, spec=replace(NODE.spec, pod_subnets=nets("10.2.1.0/24")))
    near = make_node("b", location="east", internal="192.168.1.2/24", pods="10.2.2.0/24")
    agent = replace(
        AGENT,
        options=RenderOptions(cni=True),
        defaults=replace(Settings(), encapsulation=encapsulation),
    )
    plan = _plan(Snapshot(nodes=(pods, near)), facts=facts, agent=agent)
    assert plan.pods is not None
    assert plan.pods.mtu == fitting
