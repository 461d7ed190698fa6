"""The mesh in DOT."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from kilo.mesh.graph import draw_graph
from kilo.mesh.model import Granularity, Settings
from kilo.mesh.topology import Topology, build_topology
from tests.mesh.fleets import make_node, make_peer, nets

NODES = [
    make_node("a", location="east", internal="192.168.1.1/24", pods="10.2.1.0/24"),
    make_node("b", location="east", internal="192.168.1.2/24"),
    make_node("c", location="west", endpoint="203.0.113.3:51820", internal="192.168.2.1/24"),
]
PEERS = [make_peer("p", "10.5.0.1/32", endpoint="203.0.113.9:7")]
GOLDEN = r"""digraph kilo {
  label="10.4.0.0/16";
  labelloc=t;
  outputorder=nodesfirst;
  overlap=false;
  subgraph "cluster_location_location:east" {
    label="location:east";
    style="dashed,rounded";
    "a" [label="location:east\na\n10.2.1.0/24\n192.168.1.1\n10.4.0.1\n198.51.100.1:51820", rank=1, shape=ellipse];
    "b" [label="location:east\nb\n192.168.1.2", shape=ellipse];
    "a" -> "b" [dir=both];
  }
  subgraph "cluster_location_location:west" {
    label="location:west";
    style="dashed,rounded";
    "c" [label="location:west\nc\n192.168.2.1\n10.4.0.2\n203.0.113.3:51820", rank=1, shape=ellipse];
  }
  "a" -> "c" [dir=both];
  subgraph "cluster_peers" {
    label="peers";
    style="dashed,rounded";
    "peer:p" [label="p\n10.5.0.1/32\n203.0.113.9:7", shape=ellipse];
  }
  "a" -> "peer:p" [dir=both, style=dashed];
  "c" -> "peer:p" [dir=both, style=dashed];
}
"""  # noqa: E501 - a golden text cannot be wrapped

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")


def _run_dot(topology: Topology, kind: str) -> str:
    result = subprocess.run(
        ["dot", f"-T{kind}"],
        input=draw_graph(topology),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "Warning" not in result.stderr
    assert "syntax" not in result.stderr
    return result.stdout


def test_the_graph_shows_locations_leaders_and_peers() -> None:
    assert draw_graph(build_topology(NODES, PEERS, Settings())) == GOLDEN


def test_several_kilo_subnets_are_all_on_the_label() -> None:
    settings = Settings(subnets=nets("10.4.0.0/16 fd00:4::/64"))
    assert 'label="10.4.0.0/16, fd00:4::/64";' in draw_graph(build_topology(NODES, (), settings))


def test_with_cross_neighbours_are_joined_by_a_dotted_line() -> None:
    text = draw_graph(build_topology(NODES, (), Settings(granularity=Granularity.CROSS)))
    edges = [line.strip() for line in text.splitlines() if "->" in line]
    assert edges == [
        '"a" -> "b" [dir=both, style=dotted, arrowhead=none, arrowtail=none];',
        '"a" -> "c" [dir=both];',
        '"b" -> "c" [dir=both];',
    ]


@needs_dot
def test_an_empty_mesh_is_a_graph() -> None:
    assert "<svg" in _run_dot(build_topology((), (), Settings()), "svg")


HOSTILE = ['a"b', "a\\", 'a\\"', "a\nb", "a;}{", "a->b", "<b>a</b>", "&amp;", "a:b", "größe", "\\N"]


@needs_dot
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_drawn_and_not_obeyed(name: str) -> None:
    nodes = [
        make_node(name, location=name, internal="192.168.1.1/24"),
        make_node("other", location="other", internal="192.168.2.1/24"),
    ]
    topology = build_topology(nodes, [make_peer(name, "10.5.0.1/32", key="peer")], Settings())
    drawn = json.loads(_run_dot(topology, "json0"))
    objects = drawn["objects"]
    clusters = [o for o in objects if o["name"].startswith("cluster_")]
    assert (len(objects) - len(clusters), len(clusters)) == (3, 3)
    assert len(drawn["edges"]) == 3
    assert "<svg" in _run_dot(topology, "svg")


@needs_dot
def test_a_node_and_a_peer_of_one_name_are_two() -> None:
    nodes = [make_node("x", internal="192.168.1.1/24")]
    topology = build_topology(nodes, [make_peer("x", "10.5.0.1/32", key="peer")], Settings())
    drawn = json.loads(_run_dot(topology, "json0"))
    assert {o["name"] for o in drawn["objects"]} >= {"x", "peer:x"}
