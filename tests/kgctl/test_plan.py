"""``kgctl plan``: what documents would change, told before they are written."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kilo.backends.documents import (
    make_node_document,
    make_peer_document,
    make_report_document,
    make_settings_document,
)
from kilo.mesh.keys import PresharedKey
from kilo.mesh.model import Granularity, PartialSettings
from tests.builders import make_key, make_report, networks
from tests.kgctl.site import NODES, OFFICE, PHONE, Site


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The file of the documents that are planned."""
    return tmp_path / "new.yaml"


def write(path: Path, *documents: object) -> str:
    path.write_text(yaml.safe_dump_all(documents))
    return f"--filename={path}"


def test_what_is_so_already_changes_nothing(site: Site, new: Path) -> None:
    same = write(new, make_peer_document(PHONE), make_node_document("a1", NODES["a1"]))
    assert site.ask("plan", same) == (0, "nothing changes\n", "")


def test_a_new_peer_is_a_tunnel_and_routes_on_every_node(site: Site, new: Path) -> None:
    laptop = replace(PHONE, name="laptop", public_key=make_key("l"), preshared_key=None)
    laptop = replace(laptop, allowed_ips=networks("10.5.0.9/32"))
    said = site.ask("plan", write(new, make_peer_document(laptop)))
    assert said.status == 2
    lines = said.out.splitlines()
    peer = f"  + peer {make_key('l')} dev kilo0 allowed-ips 10.5.0.9/32"
    assert lines[:2] == ["node a1:", peer]
    assert "  + route 10.5.0.9/32 dev kilo0" in lines
    own = lines[lines.index("node a2:") + 1 : lines.index("node b1:")]
    assert "  + route 10.5.0.9/32 via 192.168.1.11 dev lan onlink" in own
    assert not any(line.startswith("  + peer") for line in own)
    assert lines[-1] == "3 of 3 nodes would change, 0 sessions are cut"


def test_nothing_is_written(site: Site, new: Path) -> None:
    before = {path: path.read_text() for path in site.directory.rglob("*.yaml")}
    site.ask("plan", write(new, make_peer_document(replace(PHONE, name="other"))))
    assert {path: path.read_text() for path in site.directory.rglob("*.yaml")} == before


def test_a_node_that_moves_cuts_the_sessions_that_it_no_longer_needs(site: Site, new: Path) -> None:
    moved = make_node_document("b1", replace(NODES["b1"], location="north"))
    said = site.ask("plan", write(new, moved))
    assert said.status == 2
    lines = said.out.splitlines()
    assert lines[0] == "node a1:"
    assert lines[lines.index("node a2:") - 1] == "  cuts the session with node b1"
    assert lines[-1] == "3 of 3 nodes would change, 3 sessions are cut"


def test_who_asks_about_some_nodes_is_told_of_those(site: Site, new: Path) -> None:
    moved = write(new, make_node_document("b1", replace(NODES["b1"], location="north")))
    said = site.ask("plan", moved, "--node=a2")
    assert [line for line in said.out.splitlines() if line.startswith("node")] == ["node a2:"]
    assert said.out.endswith("1 of 3 nodes would change, 0 sessions are cut\n")
    assert site.ask("plan", moved, "--node=zz").err == (
        "kgctl: node zz: there is no such node, neither in the store nor to come\n"
    )


def test_programs_get_it_as_json(site: Site, new: Path) -> None:
    moved = make_node_document("b1", replace(NODES["b1"], location="north"))
    told = json.loads(site.ask("plan", "-o", "json", write(new, moved)).out)
    assert told["changed"] is True
    assert [node["name"] for node in told["nodes"]] == ["a1", "a2", "b1"]
    assert told["nodes"][0]["cuts"] == ["node b1"]
    assert told["cutSessions"] == [
        ["node a1", "node b1"],
        ["node b1", "peer office"],
        ["node b1", "peer phone"],
    ]


def test_settings_count_as_agents_will_take_them(site: Site, new: Path) -> None:
    """Agents report the granularity of the settings there are: those go by the new ones."""
    full = make_settings_document(PartialSettings(granularity=Granularity.FULL))
    said = site.ask("plan", write(new, full))
    assert said.status == 2
    assert "node a2:" in said.out
    assert f"  + peer {make_key('a1')}" in said.out


def test_settings_do_not_count_where_agents_flags_say_otherwise(site: Site, new: Path) -> None:
    for name, address in (("a1", 11), ("a2", 12)):
        report = make_report(name, internal_ips=(f"192.168.1.{address}/24",))
        site.put_report(replace(report, granularity=Granularity.FULL))
    site.put_report(
        make_report("b1", internal_ips=("192.168.2.11/24",), granularity=Granularity.FULL)
    )
    location = make_settings_document(PartialSettings(granularity=Granularity.LOCATION))
    assert site.ask("plan", write(new, location)).status == 0


def test_a_claim_that_will_be_refused_is_told(site: Site, new: Path) -> None:
    greedy = replace(OFFICE, allowed_ips=networks("10.5.0.2/32", "10.2.1.0/25"))
    said = site.ask("plan", write(new, make_peer_document(greedy)))
    assert "Peer office: spec.allowedIPs 10.2.1.0/25 refused: it lies inside" in said.out


def test_a_node_that_nobody_reports_yet_is_told_apart(site: Site, new: Path) -> None:
    said = site.ask("plan", write(new, make_node_document("c1", NODES["a2"])))
    assert said.out.splitlines() == [
        "node c1: takes no part: no agent reports it, and no key is declared",
        "nothing changes",
    ]
    assert said.status == 0


def test_a_node_that_is_to_come_can_be_planned_with_its_report(site: Site, new: Path) -> None:
    report = make_report("c1", endpoint="198.51.100.31:1", internal_ips=("192.168.3.11/24",))
    documents = (
        make_node_document("c1", replace(NODES["a2"], location="west", pod_subnets=())),
        make_report_document(report, last_seen=int(time.time())),
    )
    said = site.ask("plan", write(new, *documents))
    assert said.out.splitlines()[-1] == "4 of 4 nodes would change, 0 sessions are cut"


def test_a_key_that_is_not_the_hosts_leaves_its_network_as_it_is(site: Site, new: Path) -> None:
    wrong = make_node_document("a1", replace(NODES["a1"], public_key=make_key("z")))
    said = site.ask("plan", write(new, wrong))
    assert f"node a1: Node a1: spec.publicKey {make_key('z')} is not this host's key" in said.out


def test_segments_that_do_not_fit_are_an_error(site: Site, new: Path) -> None:
    small = make_settings_document(PartialSettings(subnets=networks("10.4.0.0/31")))
    said = site.ask("plan", write(new, small))
    assert (said.status, said.out) == (1, "")
    assert "subnet 10.4.0.0/31 has 0 addresses" in said.err


def test_a_stream_is_planned(site: Site, new: Path) -> None:
    write(new, make_peer_document(replace(PHONE, allowed_ips=networks("10.5.0.77/32"))))
    with new.open() as stream:
        done = run_program(site, stream)
    assert done[0] == 2
    assert "  + route 10.5.0.77/32 dev kilo0" in done[1]


def run_program(site: Site, stream: io.TextIOWrapper) -> tuple[int, str]:
    """The real program, with its own standard input."""
    command = [sys.executable, "-m", "kilo.kgctl", "plan", "-f", "-", "--backend=file"]
    done = subprocess.run(
        [*command, f"--directory={site.directory}"],
        stdin=stream,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "words", [(), ("--filename=/nowhere.yaml",), ("extra", "-f", "x"), ("-x",)]
)
def test_what_cannot_be_told_is_1_and_never_2(site: Site, words: tuple[str, ...]) -> None:
    said = site.ask("plan", *words)
    assert (said.status, said.out) == (1, "")
    assert said.err


def test_documents_that_are_wrong_are_all_named(site: Site, new: Path) -> None:
    bad = make_peer_document(PHONE)
    bad["spec"] = {"publicKey": "x", "allowedIPs": []}
    said = site.ask("plan", write(new, bad, {"kind": "Other"}))
    assert (said.status, said.out) == (1, "")
    assert "document 1: Peer phone: spec.publicKey" in said.err
    assert "document 2" in said.err
    assert "nothing is foretold: 2 problems with the documents" in said.err


def test_no_preshared_key_is_shown(site: Site, new: Path) -> None:
    peer = replace(PHONE, name="other", public_key=make_key("other"))
    peer = replace(peer, allowed_ips=networks("10.5.0.9/32"))
    assert isinstance(peer.preshared_key, PresharedKey)
    said = site.ask("plan", write(new, make_peer_document(peer)))
    assert "preshared-key (hidden)" in said.out
    assert peer.preshared_key.reveal() not in said.out + said.err
