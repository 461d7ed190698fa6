"""``kgctl cluster link`` between two directories, and what a link makes of two meshes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kilo.kgctl.clusterflags import CLUSTER_FLAGS, MIRRORED, TO_FLAGS
from kilo.kgctl.clustermirror import (
    LINK_LABEL,
    NoMirrorError,
    ServiceName,
    diff_objects,
    make_mirror,
)
from kilo.mesh.model import NodeReport, NodeSpec, PartialSettings
from tests.builders import make_key, make_peer, make_report, make_spec, networks
from tests.kgctl.site import PHONE, Said, Site, fill
from tests.kgctl.site import REPORTS as NORTH_REPORTS

SOUTH: Mapping[str, NodeSpec] = {
    "c1": make_spec(location="south", pod_subnets=networks("10.7.1.0/24")),
    "c2": make_spec(location="south", pod_subnets=networks("10.7.2.0/24")),
}
REPORTS = (
    make_report("c1", endpoint="203.0.113.31:51820", internal_ips=("192.168.7.11/24",)),
    make_report("c2", endpoint="203.0.113.32:51820", internal_ips=("192.168.7.12/24",)),
)
SETTINGS = PartialSettings(subnets=networks("10.6.0.0/16"), service_cidrs=networks("10.53.0.0/16"))


@pytest.fixture
def north(site: Site) -> Site:
    """The mesh of ``tests.kgctl.site``."""
    return site


@pytest.fixture
def south(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    """Another mesh, which has nothing in common with it."""
    directory = tmp_path / "other"
    directory.mkdir()
    other = Site(directory, capsys)
    fill(other, nodes=SOUTH, reports=REPORTS, peers=())
    other.put_settings(SETTINGS)
    return other


def make_third(directory: Path, capsys: pytest.CaptureFixture[str], **others: Any) -> Site:
    """A mesh of one node, ``d1``, which has nothing in common with either unless told."""
    third = Site(directory, capsys)
    directory.mkdir()
    known = {"pods": "10.8.1.0/24", "subnet": "10.9.0.0/16", "host": "192.168.8.1/24"} | others
    nodes = {"d1": make_spec(location="east", pod_subnets=networks(known["pods"]))}
    report: NodeReport = make_report("d1", internal_ips=(known["host"],))
    fill(third, nodes=nodes, reports=(report,), peers=())
    third.put_settings(PartialSettings(subnets=networks(known["subnet"])))
    return third


def run(north: Site, south: Site, verb: str, *words: str) -> Said:
    """``kgctl cluster`` with both."""
    return north.ask(
        "cluster", verb, "--to-backend=file", f"--to-directory={south.directory}", *words
    )


def link(north: Site, south: Site, *words: str) -> Said:
    return run(north, south, "link", "--once", *words)


def read_peer(site: Site, name: str) -> dict[str, Any]:
    document = yaml.safe_load((site.directory / "peers" / f"{name}.yaml").read_text())
    return dict(document["spec"])


def list_peers(site: Site) -> list[str]:
    return sorted(path.stem for path in (site.directory / "peers").glob("*.yaml"))


def test_each_mesh_gets_a_peer_for_every_location_of_the_other(north: Site, south: Site) -> None:
    said = link(north, south)
    assert (said.status, said.err) == (0, "")
    assert list_peers(north) == ["link.default.south", "office", "phone"]
    assert list_peers(south) == ["link.default.north", "link.default.south"]
    assert read_peer(south, "link.default.north") == {
        "publicKey": str(make_key("a1")),
        "allowedIPs": [
            "10.2.1.0/24", "10.2.2.0/24", "10.4.0.1/32", "192.168.1.11/32", "192.168.1.12/32",
            "192.168.9.9/32",
        ],
        "endpoint": {"dnsOrIP": {"ip": "198.51.100.11"}, "port": 51820},
    }  # fmt: skip
    assert read_peer(south, "link.default.south")["persistentKeepalive"] == 25


def test_services_are_behind_one_leader_and_stay_there_until_it_has_gone(
    north: Site, south: Site
) -> None:
    link(north, south, "--service-cidr=10.43.0.0/16")
    assert "10.43.0.0/16" in read_peer(south, "link.default.north")["allowedIPs"]
    assert "10.43.0.0/16" not in read_peer(south, "link.default.south")["allowedIPs"]
    assert "10.53.0.0/16" in read_peer(north, "link.default.south")["allowedIPs"]
    for name in ("a1", "a2"):
        (north.directory / f"reports/{name}.yaml").unlink()
    link(north, south, "--service-cidr=10.43.0.0/16")
    assert list_peers(south) == ["link.default.south"]
    assert "10.43.0.0/16" in read_peer(south, "link.default.south")["allowedIPs"]
    fill(north)
    link(north, south, "--service-cidr=10.43.0.0/16")
    assert "10.43.0.0/16" in read_peer(south, "link.default.south")["allowedIPs"]
    assert "10.43.0.0/16" not in read_peer(south, "link.default.north")["allowedIPs"]


def test_a_second_start_writes_nothing(north: Site, south: Site) -> None:
    assert link(north, south).out.count("+ peer link.default.") == 3
    assert link(north, south) == Said(0, "", "")


def test_another_leader_takes_the_place_of_the_first_in_the_same_peer(
    north: Site, south: Site
) -> None:
    link(north, south)
    south.put_node("c2", replace(SOUTH["c2"], leader=True))
    said = link(north, south)
    assert said.out.startswith(f"~ peer link.default.south ({north.directory}): {make_key('c2')} ")
    assert said.out.count("\n") == 1
    assert read_peer(north, "link.default.south")["publicKey"] == str(make_key("c2"))


def test_a_dry_run_says_what_a_run_does_and_writes_nothing(north: Site, south: Site) -> None:
    foretold = link(north, south, "--dry-run")
    assert list_peers(south) == []
    assert foretold.out == link(north, south).out.replace("\n", " (dry run)\n")


def test_unlinking_takes_away_what_that_link_has_made_and_nothing_else(
    north: Site, south: Site
) -> None:
    link(north, south)
    mine = make_peer("link.other.mine", "10.5.9.9/32")
    north.put_peer(mine)
    said = run(north, south, "unlink")
    assert (said.status, said.err) == (0, "")
    assert list_peers(north) == ["link.other.mine", "office", "phone"]
    assert list_peers(south) == []


def test_a_broken_peer_of_the_link_is_told_of_when_it_is_unlinked(north: Site, south: Site) -> None:
    link(north, south)
    document = {"apiVersion": "kilo.squat.ai/v1alpha1", "kind": "Peer"}
    for name in ("link.default.broken", "link.other.broken"):
        metadata = {"name": name}
        south.put(f"peers/{name}.yaml", document | {"metadata": metadata, "spec": {}})
    said = run(north, south, "unlink")
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert said.err.startswith(f"kgctl: {south.directory}: ")
    assert "Peer link.default.broken: " in said.err
    assert list_peers(north) == ["office", "phone"]
    assert list_peers(south) == ["link.default.broken", "link.other.broken"]


@pytest.mark.parametrize(("here", "there"), [("", "to-"), ("to-", "")])
def test_an_end_is_unlinked_though_the_other_cannot_be_opened(
    north: Site, south: Site, here: str, there: str
) -> None:
    link(north, south)
    gone = north.directory / "gone.conf"
    said = north.run(
        "cluster",
        "unlink",
        f"--{here}backend=file",
        f"--{here}directory={south.directory}",
        f"--{there}backend=kubernetes",
        f"--{there}kubeconfig={gone}",
    )
    assert list_peers(south) == []
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert str(gone) in said.err


def test_links_of_different_names_do_not_touch_each_other(north: Site, south: Site) -> None:
    link(north, south, "--name=one")
    assert link(north, south, "--name=two").status == 1
    run(north, south, "unlink", "--name=two")
    assert list_peers(south) == ["link.one.north", "link.one.south"]


def test_where_nobody_is_ready_peers_stay(north: Site, south: Site) -> None:
    link(north, south)
    for name in SOUTH:
        (south.directory / f"reports/{name}.yaml").unlink()
    said = link(north, south)
    assert (said.status, said.out) == (0, "")
    assert f"{south.directory}: no node is ready there, and its peers stay as they are" in said.err
    assert "link.default.south" in list_peers(north)


OVERLAPS: list[tuple[NodeSpec, PartialSettings, str]] = [
    (
        replace(SOUTH["c1"], pod_subnets=networks("10.2.0.0/16")),
        SETTINGS,
        "{a}: pod subnet 10.2.1.0/24 of node a1 overlaps pod subnet 10.2.0.0/16 of node c1 of {c}",
    ),
    (
        SOUTH["c1"],
        PartialSettings(subnets=networks("10.4.128.0/17")),
        "{a}: Kilo subnet 10.4.0.0/16 overlaps Kilo subnet 10.4.128.0/17 of {c}",
    ),
    (
        SOUTH["c1"],
        PartialSettings(subnets=networks("10.6.0.0/16"), service_cidrs=networks("10.2.0.0/18")),
        "{a}: pod subnet 10.2.1.0/24 of node a1 overlaps service CIDR 10.2.0.0/18 of {c}",
    ),
    (
        replace(SOUTH["c1"], allowed_location_ips=networks("192.168.9.0/24")),
        SETTINGS,
        (
            "{a}: allowed location IP 192.168.9.9/32 of node a1 overlaps allowed location IP"
            " 192.168.9.0/24 of node c1 of {c}"
        ),
    ),
    (
        replace(SOUTH["c1"], allowed_location_ips=networks("192.168.1.0/24")),
        SETTINGS,
        (
            "{c}: allowed location IP 192.168.1.0/24 of node c1 overlaps internal IP 192.168.1.11"
            " of node a1 of {a}"
        ),
    ),
    (
        replace(SOUTH["c1"], allowed_location_ips=networks("10.5.0.0/24")),
        SETTINGS,
        (
            "{c}: allowed location IP 10.5.0.0/24 of node c1 overlaps allowed IP 10.5.0.1/32 of"
            " peer phone of {a}"
        ),
    ),
]


@pytest.mark.parametrize(("spec", "settings", "line"), OVERLAPS)
def test_what_overlaps_is_refused_in_one_line_that_names_both(
    north: Site, south: Site, spec: NodeSpec, settings: PartialSettings, line: str
) -> None:
    south.put_node("c1", spec)
    south.put_settings(settings)
    said = link(north, south)
    assert (said.status, said.out, said.err.count("\n")) == (1, "", 1)
    assert line.format(a=north.directory, c=south.directory) in said.err
    assert list_peers(south) == []


def test_what_a_peer_of_the_other_has_is_in_the_way_too(north: Site, south: Site) -> None:
    south.put_peer(make_peer("office", "10.2.3.0/25"))
    said = link(north, south)
    assert said.status == 1
    assert said.err == (
        f"kgctl: {north.directory}: pod subnet 10.2.3.0/24 of node b1 overlaps allowed IP"
        f" 10.2.3.0/25 of peer office of {south.directory}\n"
    )


def test_networks_around_an_endpoint_of_the_other_are_refused(north: Site, south: Site) -> None:
    south.put_node("c1", replace(SOUTH["c1"], allowed_location_ips=networks("198.51.100.0/24")))
    said = link(north, south)
    assert said.status == 1
    assert (
        f"{south.directory}: allowed location IP 198.51.100.0/24 of node c1 overlaps endpoint"
        f" 198.51.100.11:51820 of node a1 of {north.directory}" in said.err
    )


def test_hosts_with_the_same_private_address_are_left_out_and_told_of(
    north: Site, south: Site
) -> None:
    same = make_report("c1", endpoint="203.0.113.31:51820", internal_ips=("192.168.1.11/24",))
    south.put_report(same)
    said = link(north, south)
    assert said.status == 0
    assert "192.168.1.11/32" not in read_peer(south, "link.default.north")["allowedIPs"]
    assert "192.168.1.12/32" in read_peer(south, "link.default.north")["allowedIPs"]
    assert (
        f"{north.directory}: internal IP 192.168.1.11 of node a1 is not reached through the link:"
        f" {south.directory} has it as internal IP 192.168.1.11 of node c1\n" in said.err
    )


def test_hosts_whose_address_a_peer_of_the_other_has_are_left_out_and_told_of(
    north: Site, south: Site
) -> None:
    there = make_report("c1", endpoint="203.0.113.31:51820", internal_ips=("192.168.77.5/24",))
    south.put_report(there)
    said = link(north, south)
    assert said.status == 0
    assert said.err == (
        f"kgctl: {south.directory}: internal IP 192.168.77.5 of node c1 is not reached through the"
        f" link: {north.directory} has it as allowed IP 192.168.77.0/24 of peer office\n"
    )
    allowed = read_peer(north, "link.default.south")["allowedIPs"]
    assert "192.168.77.5/32" not in allowed
    assert {"192.168.7.12/32", "10.7.1.0/24"} <= set(allowed)


def test_of_two_links_the_first_keeps_an_address_that_hosts_of_both_have(
    north: Site, south: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link(north, south, "--name=one")
    third = make_third(tmp_path / "third", capsys, host="192.168.7.11/24")
    said = link(north, third, "--name=two")
    assert said.status == 0
    assert "has it as allowed IP 192.168.7.11/32 of peer link.one.south\n" in said.err
    assert "192.168.7.11/32" in read_peer(north, "link.one.south")["allowedIPs"]
    assert "192.168.7.11/32" not in read_peer(north, "link.two.east")["allowedIPs"]
    for other, name in ((south, "one"), (third, "two")):
        again = link(north, other, f"--name={name}")
        assert (again.status, again.out) == (0, "")


def test_a_node_that_was_registered_by_hand_stands_in_the_way(north: Site, south: Site) -> None:
    south.put_peer(replace(PHONE, name="a1", public_key=make_key("a1")))
    said = link(north, south)
    assert said.status == 1
    assert said.err == (
        f"kgctl: peer a1 of {south.directory} is node a1 of {north.directory}, and not this link's"
        " making: kgctl delete peer a1\n"
    )


def test_a_name_that_is_taken_by_another_link_is_refused(
    north: Site, south: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link(north, south)
    third = make_third(tmp_path / "third", capsys)
    said = link(north, third)
    assert (said.status, said.out) == (1, "")
    assert f"{north.directory}: link default is there already, and with another mesh" in said.err
    assert link(north, third, "--name=third").status == 0


def test_a_name_is_taken_though_the_other_mesh_is_numbered_alike(
    north: Site, south: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link(north, south)
    held = read_peer(north, "link.default.south")
    third = make_third(tmp_path / "third", capsys, pods="10.7.1.0/24", subnet="10.6.0.0/16")
    for one, other in ((north, third), (third, north)):
        said = link(one, other)
        assert (said.status, said.out, said.err.count("\n")) == (1, "", 1)
        assert f"{north.directory}: link default is there already, and with another" in said.err
    assert list_peers(north) == ["link.default.south", "office", "phone"]
    assert read_peer(north, "link.default.south") == held
    assert list_peers(third) == []


@pytest.mark.parametrize("renewed", ["south", "north"])
def test_a_linked_mesh_is_followed_though_all_its_keys_are_new(
    north: Site, south: Site, renewed: str
) -> None:
    link(north, south)
    site, other = (south, north) if renewed == "south" else (north, south)
    for report in REPORTS if renewed == "south" else NORTH_REPORTS:
        site.put_report(replace(report, public_key=make_key(f"new {report.name}")))
    said = link(north, south)
    assert (said.status, said.err) == (0, "")
    first = {"south": "c1", "north": "a1"}[renewed]
    made = read_peer(other, f"link.default.{renewed}")
    assert made["publicKey"] == str(make_key(f"new {first}"))


def test_words_that_make_no_link_are_told_in_one_line(north: Site, south: Site) -> None:
    cases = {
        ("join", "--to-backend=file", "--to-directory=x"): "'join': is not one of link, unlink",
        ("link",): "--to-kubeconfig: is missing, or another --to- flag: the other mesh",
        ("link", "--to-directory=x"): "--to-kubeconfig: is missing: there is no default",
        ("link", "--to-backend=file", f"--to-directory={north.directory}"): "is named twice",
        ("link", "--name=A b"): "--name 'A b': is not a link's name",
        ("link", "--service=web"): "--service 'web': is not NAMESPACE/NAME of a Service",
    }
    for words, expected in cases.items():
        said = north.ask("cluster", *words)
        assert (said.status, said.err.count("\n")) == (2, 1), words
        assert expected in said.err
    said = run(north, south, "link", "--service=shop/web")
    assert said.status == 2
    assert "holds no Services such as shop/web: that is no cluster" in said.err


# What is written about it.

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clusters.md").read_text()


def test_its_flags_are_documented() -> None:
    own = [flag.name for flag in CLUSTER_FLAGS if flag not in (*TO_FLAGS, *MIRRORED)]
    assert len(own) == 6
    assert [name for name in own if f"`--{name}" not in PAGE] == []


def test_the_rights_that_are_written_about_are_those_that_are_shipped() -> None:
    documents = yaml.safe_load_all((ROOT / "examples/kubernetes/link.yaml").read_text())
    rules = [rule for document in documents for rule in document.get("rules", ())]
    shipped = {rule["resources"][0]: set(rule["verbs"]) for rule in rules}
    shipped["kilo-settings"] = shipped.pop("configmaps")
    rows = re.findall(r"^\| .*`([a-z][a-z-]+)` \| ([a-z, ]+)", PAGE, re.MULTILINE)
    assert {name: set(verbs.strip().split(", ")) for name, verbs in rows} == shipped


# Services, as documents.

WEB = ServiceName("shop", "web")
SOURCE: dict[str, Any] = {
    "metadata": {"namespace": "shop", "name": "web", "labels": {"app": "web"}},
    "spec": {
        "type": "NodePort",
        "clusterIP": "10.43.0.7",
        "clusterIPs": ["10.43.0.7"],
        "selector": {"app": "web"},
        "ports": [
            {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30080},
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"},
        ],
    },
}
CIDRS = networks("10.43.0.0/16", "fd00:43::/112")


def source(**spec: object) -> dict[str, Any]:
    return SOURCE | {"spec": SOURCE["spec"] | spec}


def test_a_mirror_has_the_ports_and_the_cluster_ip_and_no_selector() -> None:
    service, piece = make_mirror("one", WEB, source(), CIDRS)
    ports = [
        {"name": "http", "port": 80, "protocol": "TCP"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]
    assert service["spec"] == {"type": "ClusterIP", "ports": ports}
    assert service["metadata"]["labels"] == {LINK_LABEL: "one"}
    assert (piece["addressType"], piece["ports"]) == ("IPv4", ports)
    assert [one["addresses"] for one in piece["endpoints"]] == [["10.43.0.7"]]
    assert piece["metadata"]["labels"]["kubernetes.io/service-name"] == "web"


def test_a_service_of_both_families_has_a_slice_of_each() -> None:
    both = source(clusterIPs=["10.43.0.7", "fd00:43::7"])
    service, *pieces = make_mirror("one", WEB, both, CIDRS)
    assert service["spec"]["ipFamilyPolicy"] == "PreferDualStack"
    assert [piece["addressType"] for piece in pieces] == ["IPv4", "IPv6"]
    assert len({piece["metadata"]["name"] for piece in pieces}) == 2


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (None, "is not there"),
        (source(clusterIP="None", clusterIPs=["None"]), "is headless"),
        (source(type="ExternalName", clusterIP="", clusterIPs=[]), "is of type ExternalName"),
        (source(clusterIP="10.44.0.7", clusterIPs=["10.44.0.7"]), "name them by --service-cidr"),
        (
            SOURCE | {"metadata": {"labels": {LINK_LABEL: "two"}}},
            "is itself a mirror of another",
        ),
    ],
    ids=["absent", "headless", "external", "elsewhere", "mirror"],
)
def test_what_cannot_be_mirrored_is_named(document: dict[str, Any] | None, reason: str) -> None:
    with pytest.raises(NoMirrorError, match=reason):
        make_mirror("one", WEB, document, CIDRS)


def test_what_a_server_fills_in_is_no_difference_and_a_port_is() -> None:
    service, piece = make_mirror("one", WEB, source(), CIDRS)
    held = service | {"spec": service["spec"] | {"clusterIP": "10.53.0.9", "sessionAffinity": "x"}}
    filled = [port | {"targetPort": port["port"]} for port in service["spec"]["ports"]]
    held["spec"]["ports"] = filled
    assert list(diff_objects("b", [service, piece], [held, piece])) == []
    filled[0]["port"] = 8080
    (change,) = diff_objects("b", [service, piece], [held, piece])
    assert str(change) == "~ Service shop/web (b)"
    assert list(map(str, diff_objects("b", [], [held, piece]))) == [
        "- EndpointSlice shop/web-link-ipv4 (b)",
        "- Service shop/web (b)",
    ]
