"""``kgctl graph``: the mesh that agents have made of the store, fit for Graphviz."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import replace

import pytest

from kilo.backends.documents import make_node_document, make_report_document
from kilo.mesh.model import Granularity, PartialSettings
from tests.builders import interfaces, make_report, make_spec, networks
from tests.kgctl.site import Said, Site

needs_circo = pytest.mark.skipif(shutil.which("circo") is None, reason="no Graphviz here")


def draw(graph: Said) -> str:
    """The picture, by the real circo; fails if it has anything to complain of."""
    assert graph.status == 0, graph.err
    done = subprocess.run(
        ["circo", "-Tsvg"], input=graph.out, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stderr == ""
    return done.stdout


def list_segments(graph: Said) -> list[str]:
    """The names of the clusters that are segments."""
    lines = (line.strip() for line in graph.out.splitlines())
    prefix = 'subgraph "cluster_location_'
    return [line.removeprefix(prefix).removesuffix('" {') for line in lines if prefix in line]


@needs_circo
def test_the_graph_is_drawn_by_circo(site: Site) -> None:
    picture = draw(site.ask("graph"))
    for name in ("a1", "a2", "b1", "peer:phone", "peer:office", "10.4.0.0/16"):
        assert f">{name}<" in picture


def test_flags_before_the_command_count_too(site: Site) -> None:
    directory = f"--directory={site.directory}"
    before = site.run("--backend", "file", directory, "--mesh-granularity=full", "graph")
    assert before == site.ask("graph", "--mesh-granularity=full")
    assert list_segments(before) == ["node:a1", "node:a2", "node:b1"]


def test_a_flag_that_no_command_knows_is_refused_before_the_command(site: Site) -> None:
    said = site.run("--fancy", "graph")
    assert (said.status, said.err) == (2, "kgctl: before the command: unknown flag --fancy\n")


def test_the_granularity_is_the_one_that_agents_report(site: Site) -> None:
    for name in ("a1", "a2", "b1"):
        site.put_report(make_report(name, granularity=Granularity.FULL))
    assert list_segments(site.ask("graph")) == ["node:a1", "node:a2", "node:b1"]
    told = site.ask("graph", "--mesh-granularity=location")
    assert list_segments(told) == ["location:north", "location:south"]


def test_where_agents_disagree_most_decide_and_the_others_are_named(site: Site) -> None:
    site.put_report(make_report("a2", granularity=Granularity.FULL))
    said = site.ask("graph")
    assert list_segments(said) == ["location:north", "location:south"]
    assert "Node a2: its agent goes by granularity full, most by location" in said.err


def test_the_subnet_is_the_one_that_leaders_report(site: Site) -> None:
    site.put_report(replace(make_report("a1"), wireguard_ips=interfaces("10.4.128.1/24")))
    assert 'label="10.4.128.0/24";' in site.ask("graph").out
    assert 'label="10.4.7.0/24";' in site.ask("graph", "--subnet=10.4.7.0/24").out


def test_settings_of_the_store_count_where_no_agent_says_otherwise(site: Site) -> None:
    site.put_settings(PartialSettings(subnets=networks("10.4.64.0/20")))
    assert 'label="10.4.64.0/20";' in site.ask("graph").out


def test_a_silent_node_is_not_drawn(site: Site) -> None:
    site.put_report(make_report("a2", internal_ips=("192.168.1.12/24",)), age_seconds=300)
    assert '"a2"' not in site.ask("graph").out


def test_a_store_in_which_nobody_writes_any_more_is_shown_as_it_was(site: Site) -> None:
    for name in ("a1", "a2", "b1"):
        site.put_report(make_report(name), age_seconds=7200)
    said = site.ask("graph")
    assert list_segments(said) == ["location:north", "location:south"]
    assert "no node was seen in the last 720" in said.err


def test_a_broken_document_is_named_and_the_rest_is_drawn(site: Site) -> None:
    site.put("peers/bad.yaml", {"apiVersion": "kilo.squat.ai/v1alpha1", "kind": "Peer"})
    said = site.ask("graph")
    assert (said.status, "peers/bad.yaml" in said.err) == (0, True)
    assert '"peer:phone"' in said.out


def test_a_directory_that_is_not_there_is_one_line(empty_site: Site) -> None:
    said = empty_site.run("graph", "--backend=file", f"--directory={empty_site.directory}/no")
    assert (said.status, said.out, len(said.err.splitlines())) == (1, "", 1)
    assert f"{empty_site.directory}/no" in said.err


def test_more_segments_than_addresses_is_one_line(site: Site) -> None:
    said = site.ask("graph", "--subnet=10.4.0.0/31")
    assert (said.status, said.out) == (1, "")
    assert "subnet 10.4.0.0/31" in said.err


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (3, ""),
        (40, "kgctl: circo takes very long for 780 lines; twopi does not\n"),
        (320, "kgctl: 51040 lines are too many for a picture; an agent shows the mesh at /\n"),
    ],
)
def test_what_is_hard_to_draw_is_told_and_printed_all_the_same(
    empty_site: Site, size: int, told: str
) -> None:
    names = [f"n{number}" for number in range(size)]
    specs = (make_node_document(name, make_spec(location=name)) for name in names)
    now = int(time.time())
    reports = (make_report_document(make_report(name), last_seen=now) for name in names)
    empty_site.put("all.yaml", *specs, *reports)
    said = empty_site.ask("graph")
    assert (said.status, said.err) == (0, told)
    assert said.out.count(" -> ") == size * (size - 1) // 2
    assert said.out.endswith("}\n")
