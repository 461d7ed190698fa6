"""``kgctl get``: tables and documents of what a store holds."""

from __future__ import annotations

import json

import pytest
import yaml

from kilo.backends.documents import make_node_document, make_peer_document, read_document
from kilo.kgctl.printing import describe_age, draw_table
from kilo.mesh.model import Granularity, PartialSettings
from tests.builders import make_key, make_peer, make_preshared_key, make_report
from tests.kgctl.site import NODES, OFFICE, PHONE, Site

SECRET = make_preshared_key("phone").reveal()


def test_nodes_are_a_table_of_what_counts_aligned_as_kubectls(site: Site) -> None:
    site.put_report(
        make_report("a2", endpoint="192.168.1.12:51820", internal_ips=("192.168.1.12/24",)),
        age_seconds=200,
    )
    (site.directory / "reports/b1.yaml").unlink()
    said = site.ask("get", "nodes")
    assert (said.status, said.err) == (0, "")
    heading, *rows = [line.split("   ") for line in said.out.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert [cell.strip() for cell in heading if cell.strip()] == [
        "NAME", "LOCATION", "ENDPOINT", "INTERNAL-IP", "POD SUBNETS", "LEADER", "LAST SEEN",
    ]  # fmt: skip
    assert cells[1] == [
        "a2", "north", "192.168.1.12:51820", "192.168.1.12/24", "10.2.2.0/24", "<none>", "3m ago",
    ]  # fmt: skip
    assert cells[2] == [
        "b1", "south", "203.0.113.21:51821", "<none>", "10.2.3.0/24", "<none>", "<none>",
    ]  # fmt: skip
    columns = {line.index("10.2.") for line in said.out.splitlines() if "10.2." in line}
    assert columns == {said.out.splitlines()[0].index("POD SUBNETS")}


def test_a_table_of_peers_never_shows_a_preshared_key(site: Site) -> None:
    said = site.ask("get", "peers", "--show-secrets")
    assert said.out == draw_table(
        ("NAME", "PUBLIC KEY", "ALLOWED IPS", "ENDPOINT"),
        [
            ("office", str(make_key("office")), "10.5.0.2/32,192.168.77.0/24", ""),
            ("phone", str(make_key("phone")), "10.5.0.1/32,fd00:5::1/128", ""),
        ],
    ) + "\n"  # fmt: skip
    assert SECRET not in said.out


def test_documents_are_those_of_the_one_schema(site: Site) -> None:
    one = site.ask("get", "node", "a1", "-o", "yaml")
    assert yaml.safe_load(one.out) == make_node_document("a1", NODES["a1"])
    many = json.loads(site.ask("get", "nodes", "-o", "json").out)
    assert (many["apiVersion"], many["kind"]) == ("v1", "List")
    assert many["items"] == [make_node_document(name, NODES[name]) for name in sorted(NODES)]


def test_all_of_a_kind_is_a_list_even_if_it_is_one_or_none(empty_site: Site) -> None:
    empty_site.put_peer(OFFICE)
    assert yaml.safe_load(empty_site.ask("get", "peers", "-o", "yaml").out)["items"] == [
        make_peer_document(OFFICE)
    ]
    none = empty_site.ask("get", "nodes", "-o", "yaml")
    assert yaml.safe_load(none.out)["items"] == []
    assert (none.status, none.err) == (0, "kgctl: no nodes\n")


def test_a_preshared_key_is_in_documents_only_if_it_is_asked_for(site: Site) -> None:
    said = site.ask("get", "peers", "-o", "yaml")
    assert SECRET not in said.out + said.err
    assert said.err == (
        "kgctl: peer/phone: its preshared key is withheld; --show-secrets shows it\n"
    )
    shown = site.ask("get", "peer", "phone", "-o", "json", "--show-secrets")
    assert (json.loads(shown.out), shown.err) == (make_peer_document(PHONE), "")


def test_a_document_with_a_withheld_key_is_none_that_can_be_taken_for_whole(site: Site) -> None:
    said = site.ask("get", "peer", "phone", "-o", "yaml")
    reading = read_document(yaml.safe_load(said.out), source="")
    assert (reading.found, [one.field for one in reading.problems]) == ([], ["spec.presharedKey"])


def test_reports_and_settings_are_shown_too(site: Site) -> None:
    site.put_settings(PartialSettings(granularity=Granularity.FULL, port=51821))
    assert site.ask("get", "settings").out.splitlines() == [
        "SETTING       VALUE",
        "granularity   full",
        "port          51821",
    ]
    report = yaml.safe_load(site.ask("get", "report", "a1", "-o", "yaml").out)
    assert report["spec"]["publicKey"] == str(make_key("a1"))
    heading, first, *_ = site.ask("get", "reports").out.splitlines()
    assert heading.split()[0] == "NAME"
    assert first.split()[:3] == ["a1", str(make_key("a1")), "198.51.100.11:51820"]


def test_several_kinds_at_once_are_several_tables_or_one_list(site: Site) -> None:
    tables = site.ask("get", "nodes,peers").out.split("\n\n")
    assert [table.split()[0] for table in tables] == ["NAME", "NAME"]
    items = yaml.safe_load(site.ask("get", "nodes,peers", "-o", "yaml").out)["items"]
    assert [item["kind"] for item in items] == ["Node"] * 3 + ["Peer"] * 2


def test_names_are_words_that_get_and_delete_take_again(site: Site) -> None:
    names = site.ask("get", "peers,nodes", "-o", "name").out.split()
    assert names == ["node/a1", "node/a2", "node/b1", "peer/office", "peer/phone"]
    assert site.ask("get", *names, "-o", "name").out.split() == names


def test_a_name_that_is_not_there_is_an_error_and_the_others_are_shown(site: Site) -> None:
    said = site.ask("get", "peer", "squat", "office")
    assert said.status == 1
    assert [line.split()[0] for line in said.out.splitlines()] == ["NAME", "office"]
    assert said.err == 'kgctl: peer "squat" is not there\n'
    alone = site.ask("get", "peer", "squat", "-o", "yaml")
    assert (alone.status, alone.out) == (1, "")


def test_what_is_wrong_in_the_store_is_told_beside(site: Site) -> None:
    document = make_peer_document(make_peer("bad"))
    site.put("bad.yaml", document | {"spec": {"publicKey": str(make_key("bad"))}})
    said = site.ask("get", "peers", "-o", "name")
    assert (said.status, said.out) == (0, "peer/office\npeer/phone\n")
    assert said.err == (
        "kgctl: bad.yaml, document 1: Peer bad: spec.allowedIPs: is missing; the Peer is left out\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "an argument is missing; usage: kgctl get KIND"),
        (("pods",), "'pods': is not one of node, peer, settings, report"),
        (("settings", "mesh"), "settings 'mesh': a mesh has one Settings object, without a name"),
        (("node/",), "'node/': is not KIND/NAME"),
        (("nodes,peers", "a1"), "'nodes,peers' 'a1': a name is of one kind"),
        (("nodes", "-o", "xml"), "--output 'xml': possible values are table, name, yaml, json"),
        (("nodes", "--kubeconfig=x", "--backend=file"), "--kubeconfig 'x': is for --backend=kube"),
    ],
)
def test_words_that_make_no_command_are_one_line_and_end_with_2(
    site: Site, words: tuple[str, ...], message: str
) -> None:
    said = site.run("get", *words)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(f"kgctl get: {message}")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (2e6, "23d")],
)
def test_ages_are_short_and_never_below_zero(seconds: float, text: str) -> None:
    assert describe_age(seconds) == text
