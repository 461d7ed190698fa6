"""Shells that complete ``kgctl``'s lines: each is really started, and its Tab pressed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kilo.kgctl.completing import PATIENCE, list_lines
from kilo.kgctl.shells import SHELLS
from tests.kgctl.site import Site
from tests.kgctl.terminal import KGCTL, LIMIT_SECONDS, Terminal


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``kgctl`` in it, and the scripts of all shells."""
    directory = tmp_path_factory.mktemp("programs")
    program = directory / "kgctl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m kilo.kgctl "$@"\n')
    program.chmod(0o755)
    for shell in SHELLS:
        (directory / shell).write_text(run(["completion", shell]))
    return directory


def run(words: list[str], environ: Mapping[str, str] | None = None) -> str:
    """What ``kgctl`` prints; it must end with 0 and complain of nothing."""
    done = subprocess.run(
        [*KGCTL, *words],
        env=os.environ | dict(environ or {}),
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_SECONDS,
    )
    assert done.stderr == ""
    return done.stdout


def point_at(site: Site) -> dict[str, str]:
    """The environment in which the site is the store, on a machine however slow."""
    return {"KG_BACKEND": "file", "KG_DIRECTORY": str(site.directory), PATIENCE: "60"}


def offer(*words: str) -> list[str]:
    """What may stand in the place of the last word."""
    return [line.partition("\t")[0] for line in list_lines(words)]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["sta"], ["status"]),
        (["co"], ["completion", "connect"]),
        (["get", ""], ["nodes", "peers", "settings", "reports"]),
        (["get", "nodes", ""], ["a1", "a2", "b1"]),
        (["get", "node/"], ["node/a1", "node/a2", "node/b1"]),
        (["get", "reports", "a"], ["a1", "a2"]),
        (["delete", "peer", "office", ""], ["phone"]),
        (["showconf", ""], ["node", "peer"]),
        (["showconf", "peer", "p"], ["phone"]),
        (["showconf", "peer", "phone", ""], []),
        (["why", "a1", ""], ["a2", "b1", "office", "phone"]),
        (["why", "peer/"], ["peer/office", "peer/phone"]),
        (["connect", ""], ["office", "phone"]),
        (["plan", "--node", ""], ["a1", "a2", "b1"]),
        (["plan", "--node=b"], ["--node=b1"]),
        (["status", "-o", ""], ["text", "json"]),
        (["status", "--output=j"], ["--output=json"]),
        (["why", "--as"], ["--ask", "--ask-port"]),
        (["--backend", "file", "gr"], ["graph"]),
        (["--backend=file", "why", "b"], ["b1"]),
        (["apply", "-f", ""], [":files"]),
        (["get", "--directory=x"], [":files"]),
        (["lab", "che"], ["check"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["cluster", ""], ["link", "unlink"]),
        (["delete", ""], ["node", "peer", "settings"]),
        (["nonsense", ""], []),
    ],
)
def test_what_may_come_next_is_offered(
    site: Site, monkeypatch: pytest.MonkeyPatch, words: list[str], offered: list[str]
) -> None:
    for name, value in point_at(site).items():
        monkeypatch.setenv(name, value)
    assert offer(*words) == offered


def test_the_store_that_the_line_names_is_asked(site: Site, tmp_path: Path) -> None:
    words = ["__complete", "get", "--directory", str(site.directory), "nodes", "b"]
    elsewhere = {**point_at(site), "KG_DIRECTORY": str(tmp_path / "none")}
    assert run(words, elsewhere) == "b1\tnode\n"


@pytest.mark.parametrize("kind", ["file", "etcd", "kubernetes"])
def test_a_store_that_is_not_there_is_no_complaint(tmp_path: Path, kind: str) -> None:
    words = ["__complete", "get", "nodes", f"--backend={kind}", ""]
    environ = {"HOME": str(tmp_path), "KUBECONFIG": "", "KG_DIRECTORY": str(tmp_path / "none")}
    assert run(words, {**environ, "KG_ETCD_ENDPOINTS": "http://127.0.0.1:9"}) == ""


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port at which connections are taken, and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("kind", ["etcd", "kubernetes"])
def test_a_store_that_says_nothing_ends_it_all_the_same(deaf: int, kind: str) -> None:
    """It takes connections, so nothing but the clock tells that it is of no use."""
    address = f"http://127.0.0.1:{deaf}"
    flag = f"--etcd-endpoints={address}" if kind == "etcd" else f"--master={address}"
    assert run(["__complete", f"--backend={kind}", flag, "get", "nodes", ""]) == ""


SETUPS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], ""),
    "zsh": (["zsh", "-f", "-i"], "autoload -Uz compinit; compinit -u -D; "),
}


@pytest.mark.parametrize("shell", SETUPS)
@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("kgctl sta\t", "kgctl status"),
        ("kgctl get node b\t", "kgctl get node b1"),
        ("kgctl status --output=j\t", "kgctl status --output=json"),
        ("kgctl apply -f /etc/hostn\t", "kgctl apply -f /etc/hostname"),
    ],
)
def test_a_tab_completes_the_line(
    site: Site, programs: Path, shell: str, typed: str, shown: str
) -> None:
    words, setup = SETUPS[shell]
    if shutil.which(shell) is None:
        pytest.fail(f"{shell} is not installed; make test installs it")
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "$ "}
    with Terminal(words, {**os.environ, **path, **point_at(site)}) as terminal:
        terminal.type(f"{setup}source {programs / shell}; echo rea''dy\n")
        terminal.read_until("ready")
        terminal.type(typed)
        terminal.read_until(shown)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("kgctl sta", {"status"}),
        ("kgctl get node b", {"b1"}),
        ("kgctl status --output=j", {"--output=json"}),
        ("kgctl apply -f /etc/hostn", {"/etc/hostname"}),
        ("kgctl get --directory=/etc/hostn", {"--directory=/etc/hostname"}),
    ],
)
def test_fish_completes_the_line(site: Site, programs: Path, line: str, found: set[str]) -> None:
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(programs)}
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {programs}/fish; complete -C '{line}'"],
        env={**os.environ, **path, **point_at(site)},
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_SECONDS,
    )
    assert {one.partition("\t")[0] for one in done.stdout.splitlines()} == found
