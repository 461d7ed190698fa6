"""``kgctl apply``: what is written, what is refused, and what people are told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kilo.backends.documents import (
    make_node_document,
    make_peer_document,
    make_report_document,
    make_settings_document,
)
from kilo.mesh.model import Granularity, NodeSpec, PartialSettings
from tests.builders import make_key, make_peer, make_preshared_key, make_report, networks
from tests.kgctl.site import PHONE, Site

OREGON = NodeSpec(location="oregon", pod_subnets=networks("10.2.1.0/24"))
SQUAT = make_peer("squat", preshared=True)
SETTINGS = PartialSettings(granularity=Granularity.FULL)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A file that holds one object of each kind."""
    path = tmp_path / "given.yaml"
    path.write_text(
        yaml.safe_dump_all(
            [
                make_node_document("c1", OREGON),
                make_peer_document(SQUAT),
                make_settings_document(SETTINGS),
            ]
        )
    )
    return path


def list_files(directory: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_objects_are_created_then_unchanged_then_configured(empty_site: Site, given: Path) -> None:
    first = empty_site.ask("apply", "-f", str(given))
    assert first == (0, "node/c1 created\npeer/squat created\nsettings created\n", "")
    again = empty_site.ask("apply", "-f", str(given))
    assert again.out == "node/c1 unchanged\npeer/squat unchanged\nsettings unchanged\n"
    given.write_text(yaml.safe_dump(make_peer_document(make_peer("squat", "10.5.0.9/32"))))
    assert empty_site.ask("apply", "-f", str(given)).out == "peer/squat configured\n"
    written = yaml.safe_load((empty_site.directory / "peers/squat.yaml").read_text())
    assert written == make_peer_document(make_peer("squat", "10.5.0.9/32"))


def test_what_is_unchanged_is_not_written(empty_site: Site, given: Path) -> None:
    empty_site.ask("apply", "-f", str(given))
    paths = list(empty_site.directory.rglob("*.yaml"))
    before = [path.stat().st_ino for path in paths]
    empty_site.ask("apply", "-f", str(given))
    assert [path.stat().st_ino for path in paths] == before


def test_a_dry_run_says_the_same_and_writes_nothing(empty_site: Site, given: Path) -> None:
    said = empty_site.ask("apply", "--dry-run", "-f", str(given))
    assert said.out.splitlines() == [
        "node/c1 created (dry run)",
        "peer/squat created (dry run)",
        "settings created (dry run)",
    ]
    assert list_files(empty_site.directory) == {}


def test_one_wrong_document_is_named_and_nothing_at_all_is_written(
    empty_site: Site, given: Path
) -> None:
    bad = make_peer_document(make_peer("bad")) | {"spec": {"publicKey": "x", "allowedIPs": []}}
    typo = make_node_document("c2", OREGON)
    typo["spec"] = {"locaton": "oregon"}
    given.write_text(given.read_text() + "---\n" + yaml.safe_dump_all([bad, typo]))
    said = empty_site.ask("apply", "-f", str(given))
    assert (said.status, said.out) == (1, "")
    peer, node, summary = said.err.splitlines()
    assert peer.startswith(
        f"kgctl: {given}, document 4: Peer bad: spec.publicKey: 'x' is not base64"
    )
    assert node.startswith(f"kgctl: {given}, document 5: Node c2: spec.locaton: 'oregon' is not a ")
    assert summary == "kgctl: nothing is written: 2 problems with the documents"
    assert list_files(empty_site.directory) == {}


def test_a_bad_preshared_key_is_not_told(empty_site: Site, given: Path) -> None:
    secret = make_preshared_key("squat").reveal()
    given.write_text(given.read_text().replace(secret, secret[:-2]))
    said = empty_site.ask("apply", "-f", str(given))
    assert said.status == 1
    assert "Peer squat: spec.presharedKey:" in said.err
    assert secret[:-2] not in said.err


def test_what_agents_and_clusters_write_is_refused_with_a_hint(
    empty_site: Site, given: Path
) -> None:
    report = make_report_document(make_report("c1"), last_seen=None)
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "k1"}}
    given.write_text(yaml.safe_dump_all([report, node]))
    said = empty_site.ask("apply", "-f", str(given))
    assert said.status == 1
    first, second, _ = said.err.splitlines()
    assert first.endswith("NodeReport c1: kind: 'NodeReport' is written by agents only")
    assert "Node k1: apiVersion: 'v1' is the cluster's: use kubectl for it" in second
    assert list_files(empty_site.directory) == {}


def test_an_object_that_stands_twice_in_the_documents_is_refused(
    empty_site: Site, given: Path
) -> None:
    said = empty_site.ask("apply", "-f", str(given), "-f", str(make_copy(given)))
    assert said.status == 1
    assert "Peer squat: metadata.name: 'squat' is not the first" in said.err


def make_copy(path: Path) -> Path:
    other = path.with_name("copy.yaml")
    other.write_text(path.read_text())
    return other


def test_a_directory_is_read_at_any_depth_and_lists_are_taken_apart(
    empty_site: Site, tmp_path: Path
) -> None:
    below = tmp_path / "many" / "deeper"
    below.mkdir(parents=True)
    items = [make_peer_document(make_peer(name)) for name in ("ann", "tom")]
    (below / "peers.json").write_text(
        json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    )
    (below.parent / "README.txt").write_text("nothing of ours")
    (below.parent / "node.yml").write_text(yaml.safe_dump(make_node_document("c1", OREGON)))
    said = empty_site.ask("apply", "-f", str(below.parent))
    assert said == (0, "peer/ann created\npeer/tom created\nnode/c1 created\n", "")


def test_standard_input_and_pipes_are_read(empty_site: Site, given: Path) -> None:
    words = [sys.executable, "-m", "kilo.kgctl", "apply", "-f", "-", "--backend=file"]
    done = subprocess.run(
        [*words, f"--directory={empty_site.directory}"],
        input=given.read_bytes(),
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == b"node/c1 created\npeer/squat created\nsettings created\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "given.yaml: cannot be read: No such file or directory"),
        ("", "given.yaml: is empty: it holds no document"),
        ("a: [", "given.yaml, document 1: is not YAML: "),
        ("\0", "given.yaml, document 1: is not YAML: "),
    ],
)
def test_a_file_that_holds_nothing_usable_is_one_line(
    empty_site: Site, given: Path, text: str | None, message: str
) -> None:
    if text is None:
        given.unlink()
    else:
        given.write_text(text)
    said = empty_site.ask("apply", "-f", str(given))
    assert said.status == 1
    assert message in said.err
    assert "Traceback" not in said.err


def test_what_the_store_refuses_stops_only_itself(site: Site, given: Path) -> None:
    peers = [make_peer_document(make_peer(name)) for name in ("ann", "tom")]
    site.put("crowd.yaml", *peers)
    given.write_text(
        yaml.safe_dump_all([make_peer_document(make_peer("ann", "10.5.0.9/32")), *peers[1:]])
        + f"---\n{given.read_text()}"
    )
    said = site.ask("apply", "-f", str(given))
    assert said.status == 1
    assert said.out.splitlines()[:2] == ["peer/tom unchanged", "node/c1 created"]
    assert said.err == (
        f"kgctl: peer/ann: {site.directory}/crowd.yaml: Peer ann stands there among others:"
        " edit that file by hand\n"
    )


def test_a_peer_that_was_too_wrong_to_be_read_is_configured(site: Site, given: Path) -> None:
    broken = make_peer_document(make_peer("squat")) | {"spec": {"publicKey": str(make_key("x"))}}
    site.put("peers/squat.yaml", broken)
    said = site.ask("apply", "-f", str(given))
    assert "peer/squat configured" in said.out
    assert site.ask("get", "peer", "squat").err == ""


def test_what_get_prints_without_secrets_cannot_take_a_preshared_key_away(
    site: Site, given: Path
) -> None:
    for secrets, status in (((), 1), (("--show-secrets",), 0)):
        given.write_text(site.ask("get", "peer", "phone", "-o", "yaml", *secrets).out)
        assert site.ask("apply", "-f", str(given)).status == status
        written = yaml.safe_load((site.directory / "peers/phone.yaml").read_text())
        assert written == make_peer_document(PHONE)


@pytest.mark.parametrize("words", [(), ("-f",), ("-f", "x", "y"), ("--backend=fil", "-f", "x")])
def test_words_that_make_no_command_end_with_2(site: Site, words: tuple[str, ...]) -> None:
    said = site.run("apply", *words)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("kgctl apply: ")


def test_help_shows_examples_and_the_flags_of_the_store(site: Site) -> None:
    said = site.run("apply", "--help")
    assert said.status == 0
    assert "  kgctl apply -f peer.yaml\n" in said.out
    assert "--filename FILE|DIR|-" in said.out
    assert "--etcd-endpoints" in said.out


def test_a_directory_that_is_not_there_is_one_line(site: Site, given: Path) -> None:
    said = site.run("apply", "-f", str(given), "--backend=file", "--directory=/nowhere/at/all")
    assert said == (1, "", "kgctl: /nowhere/at/all: No such file or directory\n")
