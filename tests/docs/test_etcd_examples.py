"""What docs/etcd.md and examples/etcd say of the etcd backend is true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kilo.agentflags import REGISTRATION_FLAGS
from kilo.backends.documents import read_document
from kilo.storeflags import STORE_FLAGS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "etcd"
PAGES = (ROOT / "docs/etcd.md", EXAMPLES / "README.md")


@pytest.mark.parametrize(
    ("file", "kind"), [("settings", "Settings"), ("node", "Node"), ("peer", "Peer")]
)
def test_each_example_is_a_document_under_the_key_that_pages_put_it_at(
    file: str, kind: str
) -> None:
    reading = read_document(json.loads((EXAMPLES / f"{file}.json").read_text()), source=file)
    (found,) = reading.found
    assert (found.kind, reading.problems) == (kind, [])
    key = "settings" if kind == "Settings" else f"{kind.lower()}s/{found.name}"
    for page in PAGES:
        (written,) = re.findall(rf"put /kilo/(\S+) < \S*{file}.json", page.read_text())
        assert written == key


def test_every_flag_of_the_backend_and_of_registration_is_documented() -> None:
    text = PAGES[0].read_text()
    flags = [flag.name for flag in STORE_FLAGS if flag.name.startswith("etcd-")]
    flags += [flag.name for flag in REGISTRATION_FLAGS]
    assert len(flags) > 10
    assert [name for name in flags if f"`--{name}" not in text] == []


def test_the_roles_that_are_written_about_are_those_that_are_made() -> None:
    script = (EXAMPLES / "roles.sh").read_text()
    written = {role for page in PAGES for role in re.findall(r"`(kilo-[a-z]+)", page.read_text())}
    assert {role.rstrip("-") for role in written} <= set(re.findall(r"kilo-[a-z]+", script))
    assert written
