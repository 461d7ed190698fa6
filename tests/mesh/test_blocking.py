"""When an operator is told of chains that drop what is forwarded, and what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kilo.mesh.diff import diff
from kilo.mesh.host import ForwardDrop
from kilo.mesh.model import Node, Snapshot
from kilo.mesh.plan import Agent, Knowledge, make_plan
from kilo.mesh.readiness import Heartbeat
from kilo.mesh.roaming import Observed
from kilo.mesh.state import DataplaneState
from kilo.mesh.view import RenderOptions
from tests.builders import make_key
from tests.mesh.fleets import make_host, make_node

DOCKER = ForwardDrop(
    chain="chain FORWARD of table ip filter", families=frozenset({4}), overruled=True
)
FIREWALLD = replace(DOCKER, chain="chain filter_FORWARD of table inet firewalld", overruled=False)
WITH_PODS = make_node("a", internal="192.168.1.1/24", pods="10.2.1.0/24")
ALONE = make_node("a", internal="192.168.1.1/24")
MAY_NOT = (
    " drops forwarded packets unless one of its rules accepts them:"
    " 10.2.1.0/24 may not be reached through this node; "
)
IN_VAIN = "accept them there, for rules of other tables cannot"


def list_warnings(node: Node, drop: ForwardDrop, *, forward_rules: bool) -> list[str]:
    knowledge = Knowledge(
        snapshot=Snapshot(nodes=(node,)),
        facts=replace(make_host(node), forward_drops=(drop,)),
        heartbeats={node.name: Heartbeat(stamp=1, seen_at=0.0)},
        observed=Observed(now=0.0),
    )
    options = RenderOptions(forward_rules=forward_rules)
    agent = Agent(name="a", public_key=make_key("a"), options=options)
    plan = make_plan(agent, knowledge, DataplaneState())
    assert diff(DataplaneState(), plan.desired), "a warning, and the pass goes on"
    return [warning for warning in plan.warnings if warning.startswith("chain ")]


def test_where_rules_of_ours_would_be_asked_the_flag_is_named() -> None:
    (warning,) = list_warnings(WITH_PODS, DOCKER, forward_rules=False)
    assert warning == f"{DOCKER.chain}{MAY_NOT}give --iptables-forward-rules"
    assert list_warnings(WITH_PODS, DOCKER, forward_rules=True) == []


@pytest.mark.parametrize("asked", [False, True])
def test_where_no_rule_of_ours_is_asked_the_place_is_named(*, asked: bool) -> None:
    (warning,) = list_warnings(WITH_PODS, FIREWALLD, forward_rules=asked)
    assert warning == f"{FIREWALLD.chain}{MAY_NOT}{IN_VAIN}"


def test_who_has_nobody_to_forward_for_is_not_warned() -> None:
    assert list_warnings(ALONE, DOCKER, forward_rules=False) == []
    ipv6 = replace(DOCKER, families=frozenset({6}))
    assert list_warnings(WITH_PODS, ipv6, forward_rules=False) == []
