"""``kgctl delete``: what goes, what stays, and what is no error."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kilo.backends.documents import make_node_document, make_peer_document
from kilo.mesh.model import NodeSpec, PartialSettings
from tests.builders import make_key, make_peer
from tests.kgctl.site import Site


def list_names(site: Site, kinds: str = "nodes,peers,settings,reports") -> list[str]:
    return site.ask("get", kinds, "-o", "name").out.split()


def test_what_is_named_is_deleted_and_nothing_else(site: Site) -> None:
    site.put_settings(PartialSettings(port=51821))
    assert site.ask("delete", "peer", "phone") == (0, 'peer "phone" deleted\n', "")
    said = site.ask("delete", "node/a1", "peer/office")
    assert said == (0, 'node "a1" deleted\npeer "office" deleted\n', "")
    assert list_names(site) == ["node/a2", "node/b1", "settings", "report/a2", "report/b1"]
    assert site.ask("delete", "settings") == (0, "settings deleted\n", "")
    assert list_names(site, "settings") == []


def test_of_a_node_declaration_and_report_go(site: Site) -> None:
    site.ask("delete", "nodes", "a1", "b1")
    assert list_names(site, "nodes,reports") == ["node/a2", "report/a2"]


def test_what_is_not_there_is_an_error_unless_told_otherwise(site: Site) -> None:
    said = site.ask("delete", "peer", "squat", "phone")
    assert said == (1, 'peer "phone" deleted\n', 'kgctl: peer "squat" is not there\n')
    assert site.ask("delete", "settings") == (1, "", "kgctl: settings is not there\n")
    assert site.ask("delete", "peer", "squat", "--ignore-not-found") == (0, "", "")


def test_what_documents_name_is_deleted(site: Site, tmp_path: Path) -> None:
    given = tmp_path / "given.yaml"
    documents = [make_peer_document(make_peer("phone")), make_node_document("b1", NodeSpec())]
    given.write_text(yaml.safe_dump_all(documents))
    said = site.ask("delete", "-f", str(given))
    assert said == (0, 'peer "phone" deleted\nnode "b1" deleted\n', "")
    assert list_names(site, "nodes,peers") == ["node/a1", "node/a2", "peer/office"]


def test_one_wrong_document_keeps_all_from_being_deleted(site: Site, tmp_path: Path) -> None:
    given = tmp_path / "given.yaml"
    given.write_text(yaml.safe_dump(make_peer_document(make_peer("phone"))) + "---\nkind: Pod\n")
    before = list_names(site)
    said = site.ask("delete", "-f", str(given))
    assert (said.status, said.out) == (1, "")
    assert said.err.splitlines()[-1].startswith("kgctl: nothing is deleted: ")
    assert list_names(site) == before


def test_what_stands_among_others_is_left_and_stops_only_itself(site: Site) -> None:
    site.put("crowd.yaml", *(make_peer_document(make_peer(name)) for name in ("ann", "tom")))
    said = site.ask("delete", "peer", "ann", "phone")
    assert (said.status, said.out) == (1, 'peer "phone" deleted\n')
    assert "crowd.yaml: Peer ann stands there among others: edit that file by hand" in said.err
    assert "peer/ann" in list_names(site)


def test_a_broken_object_is_not_said_to_be_deleted_while_it_stands(site: Site) -> None:
    broken = make_peer_document(make_peer("bad")) | {"spec": {"publicKey": str(make_key("bad"))}}
    site.put("bad.yaml", broken)
    said = site.ask("delete", "peer", "bad")
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith("kgctl: peer/bad: is still there, and must be removed by hand: bad.")


@pytest.mark.parametrize(
    "words",
    [(), ("peer",), ("report", "a1"), ("settings", "mesh"), ("peer", "phone", "-f", "x.yaml")],
)
def test_words_that_make_no_command_end_with_2_and_delete_nothing(
    site: Site, words: tuple[str, ...]
) -> None:
    before = list_names(site)
    said = site.ask("delete", *words)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("kgctl delete: ")
    assert list_names(site) == before
