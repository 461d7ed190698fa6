"""The wheel, installed by itself: clients of stores are there only where they were asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from shutil import copytree, ignore_patterns
from zipfile import ZipFile

import pytest

from kilo import __version__
from kilo.backends.opening import CLIENTS
from kilo.kgctl import COMMANDS
from tests.install.machine import ROOT

MESH = ROOT / "examples" / "file" / "three-clouds" / "mesh"
SOURCES = ("LICENSE", "README.md", "pyproject.toml")
COMMAND_SECONDS = 300.0
HOST = """
ip link add eth0 type veth peer name peer0
ip link set eth0 up
ip address add 192.168.1.11/24 dev eth0
ip route add default via 192.168.1.1
exec "$@"
"""
"""A kernel that has an address and nothing else."""
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing that an earlier build left in the tree gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    copytree(ROOT / "kilo", folder / "source/kilo", ignore=ignore_patterns("__pycache__"))
    for name in SOURCES:
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip(["wheel", "--no-deps", "--wheel-dir", folder, folder / "source"])
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel and what it cannot do without."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip(["--python", environment / "bin/python", "install", "--no-deps", wheel])
    packages = environment / "lib" / PYTHON / "site-packages"
    for name in collect_needed(read_metadata(wheel).get_all("Requires-Dist", [])):
        for path in list_top_level(name):
            (packages / path.name).symlink_to(path)
    return environment / "bin"


def pip(words: list[str | Path]) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def read_metadata(wheel: Path) -> Message:
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def collect_needed(requirements: list[str]) -> set[str]:
    """The distributions that are needed without any extra, and those that they need in turn."""
    names, waiting = set[str](), list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if "extra ==" in requirement or name in names:
            continue
        try:
            waiting += distribution(name).requires or []
        except PackageNotFoundError:
            continue  # for another platform or Python
        names.add(name)
    return names


def list_top_level(name: str) -> Iterator[Path]:
    """The folders and files of an installed distribution beside which others' stand."""
    found = distribution(name)
    parts = {file.parts[0] for file in found.files or ()}
    for part in sorted(parts - {"..", "__pycache__"}):
        yield Path(str(found.locate_file(part)))


def run(programs: Path, *words: str, prefix: tuple[str, ...] = ()) -> tuple[int, str, str]:
    program, *rest = words
    done = subprocess.run(
        [*prefix, programs / program, *rest],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        cwd="/",
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_it_has_every_file_of_the_package(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("kilo/")}
    source = wheel.parent / "source"
    there = {str(path.relative_to(source)) for path in (source / "kilo").rglob("*.*")}
    assert packed == {name for name in there if not (source / name).is_dir()}


def test_the_clients_of_stores_are_extras(wheel: Path) -> None:
    metadata = read_metadata(wheel)
    assert metadata["Name"] == "kilo-mesh"
    extras = {"all", "dev", "etcd", "kubernetes", "legacy-iptables", "qr"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    needed = collect_needed(metadata.get_all("Requires-Dist", []))
    assert needed >= {"cryptography", "structlog"}
    assert not needed & {"aiohttp", "etcd3", "grpcio", "kubernetes", "protobuf"}


def test_a_mesh_in_a_directory_needs_no_client(programs: Path) -> None:
    assert run(programs, "kg", "--version") == (0, f"kg {__version__}\n", "")
    store = ("--backend=file", f"--directory={MESH}")
    status, shown, _ = run(programs, "kgctl", "get", "nodes", "-o", "name", *store)
    assert status == 0
    assert "node/" in shown
    name = shown.splitlines()[0].removeprefix("node/")
    command = ("kg", "--dry-run", f"--hostname={name}", *store)
    status, shown, complaint = run(
        programs, *command, prefix=("unshare", "--net", "sh", "-ec", HOST, "sh")
    )
    assert status == 0, complaint
    assert "+ link kilo0" in shown


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_can_be_asked_for_help_without_a_client(programs: Path, command: str) -> None:
    status, shown, complaint = run(programs, "kgctl", command, "--help")
    assert (status, complaint) == (0, "")
    assert command in shown


@pytest.mark.parametrize("program", ["kg", "kgctl get nodes", "kg webhook"])
@pytest.mark.parametrize("kind", sorted(CLIENTS))
def test_a_store_without_its_client_is_one_line_that_says_what_to_install(
    programs: Path, kind: str, program: str
) -> None:
    if program == "kg webhook" and kind == "etcd":
        program = "kgctl status"  # a webhook is a cluster's
    store = f"--backend={kind}" if program != "kg webhook" else "--cert-file=x --key-file=x"
    status, shown, complaint = run(programs, *program.split(), *store.split())
    assert status == 1
    assert shown == ""
    assert re.fullmatch(
        rf"\S+: --backend={kind}: the package \w+ is not installed;"
        rf" pip install 'kilo-mesh\[{kind}\]' brings it\n",
        complaint,
    )
