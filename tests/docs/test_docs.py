"""What is written for people is true: examples load, flags exist, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kilo.agentflags import FLAG_SET, FLAGS
from kilo.backends.documents import KINDS, read_document
from kilo.backends.file.backend import FileBackend
from kilo.lab.spec import load_spec
from kilo.webhookflags import WEBHOOK_FLAGS

ROOT = Path(__file__).parents[2]
PAGES = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")))
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/file/*/mesh"))


def list_blocks(page: Path, language: str) -> Iterator[str]:
    text = page.read_text()
    for match in re.finditer(rf"^( *)```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        yield "\n".join(line.removeprefix(match[1]) for line in match[2].splitlines())


def list_documents() -> list[tuple[str, object]]:
    return [
        (page.name, document)
        for page in PAGES
        for block in list_blocks(page, "yaml")
        for document in yaml.safe_load_all(block)
        if isinstance(document, dict) and "apiVersion" in document
    ]


def test_there_is_documentation_to_check() -> None:
    assert len(list_documents()) >= 5
    assert EXAMPLES


@pytest.mark.parametrize(("page", "document"), list_documents())
def test_every_document_shown_can_be_read(page: str, document: object) -> None:
    assert not read_document(document, source=page).problems


@pytest.mark.parametrize("directory", EXAMPLES, ids=lambda path: path.name)
async def test_every_example_loads_without_a_problem(directory: Path) -> None:
    load_spec(directory / "lab.yaml")
    backend = FileBackend(directory / "mesh")
    snapshot = await backend.snapshot()
    await backend.close()
    assert snapshot.nodes
    assert not snapshot.problems


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_flag_of_kg_that_is_written_about_exists(page: Path) -> None:
    calls = re.findall(r"`kg ([^`]*)`|^kg (.*)$", page.read_text(), re.MULTILINE)
    flags = {flag for call in calls for flag in re.findall(r"--([a-z-]+)", " ".join(call))}
    known = {flag.name for flag in (*FLAGS, *WEBHOOK_FLAGS)}
    assert flags <= known | {"help"}


# Spec section 2, and our own.
KILO_FLAGS = (
    "backend clean-up clean-up-interface cni cni-path compatibility create-interface encapsulate"
    " hostname interface internal-cidr iptables-forward-rules kubeconfig master listen local"
    " log-level mesh-granularity mtu port prioritise-private-addresses resync-period service-cidr"
    " subnet topology-label version"
)


def test_the_agent_knows_every_flag_of_kilo() -> None:
    assert set(KILO_FLAGS.split()) <= {flag.name for flag in FLAGS}


def test_help_shows_every_flag() -> None:
    text = FLAG_SET.format_help(100)
    assert [flag.name for flag in FLAGS if f"--{flag.name}" not in text or not flag.help] == []


def test_every_flag_of_the_webhook_is_documented() -> None:
    text = (ROOT / "docs/webhook.md").read_text()
    assert [flag.name for flag in WEBHOOK_FLAGS if f"--{flag.name}" not in text] == []


def test_every_field_of_every_kind_is_documented() -> None:
    text = (ROOT / "docs/files.md").read_text()
    written = {"Node", "Peer", "Settings"}  # the agent writes NodeReports, nobody else does
    fields = {field.name for kind in written for field in KINDS[kind].fields}
    assert [name for name in sorted(fields) if not re.search(rf"\b{name}\b", text)] == []


def test_every_module_has_its_place_in_the_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    modules = {path.stem for path in (ROOT / "kilo").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "kilo").glob("*/__init__.py")}
    named = {name for name in modules | packages if re.search(rf"\b{name}\b", text)}
    assert named == modules | packages


def test_every_target_of_make_that_is_written_about_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {t for page in PAGES for t in re.findall(r"`make ([a-z]+)`", page.read_text())}
    assert targets
    assert [
        target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)
    ] == []


FOREIGN_CLIENTS = ("kubernetes", "etcd3", "grpc", "aiohttp", "iptc")


def test_the_file_backend_loads_no_other_stores_client() -> None:
    program = (
        "import sys, kilo.kg, kilo.backends.file.backend\n"
        f"print([name for name in {FOREIGN_CLIENTS!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
