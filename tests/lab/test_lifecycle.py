"""A lab leaves nothing behind, however it ended; and says what it found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kilo.errors import ConfigError, LabError
from kilo.lab.box import find_inits
from kilo.lab.lab import Lab, take_down
from kilo.lab.machine import describe_machine, find_inhabitants, list_namespaces
from kilo.lab.storage import ROOT
from tests.lab.conftest import SITES, write_directory

BUILDER = """
import os, signal, sys
from pathlib import Path
from kilo.lab.lab import Lab

programs = int(sys.argv[3])

def die_before_program(event, _):
    global programs
    if event == "subprocess.Popen":
        programs -= 1
        if programs == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die_before_program)
Lab.up(Path(sys.argv[1]), name=sys.argv[2], agents=False)
"""


def build_and_die(directory: Path, name: str, programs: int) -> None:
    """Build a lab in a process that is killed before it starts its n-th program."""
    command = [sys.executable, "-c", BUILDER, str(directory), name, str(programs)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def assert_nothing_left(name: str, namespaces: set[str], before: dict[str, str]) -> None:
    assert find_inits(ROOT / name) == []
    assert find_inhabitants(namespaces) == []
    assert not (ROOT / name).exists()
    assert describe_machine() == before


def test_down_leaves_the_machine_as_it_was(directory: Path, name: str) -> None:
    before = describe_machine()
    with Lab.up(directory, name=name, agents=False) as lab:
        namespaces = list_namespaces(find_inits(lab.path))
        assert len(namespaces) == 8, "a fabric, three routers, four hosts"
        lab.host("oregon-1").box.popen(["sleep", "1000"])
        lab.host("oregon-1").box.spawn(["sleep", "1000"], log=lab.host("oregon-1").log)
        assert describe_machine() == before, "nothing is made outside, even while it is up"
    assert_nothing_left(name, namespaces, before)


@pytest.mark.parametrize("programs", [1, 2, 3, 4, 6, 9, 12, 15, 18, 21])
def test_down_finds_everything_after_its_builder_was_killed(
    directory: Path, name: str, programs: int
) -> None:
    before = describe_machine()
    build_and_die(directory, name, programs)
    namespaces = list_namespaces(find_inits(ROOT / name))
    assert take_down(name)
    assert_nothing_left(name, namespaces, before)
    assert not take_down(name), "there is nothing left to take down"
    with Lab.up(directory, name=name, agents=False) as lab:
        assert lab.host("oregon-2").succeeds(["fping", "192.168.1.11"])


def test_up_and_open_say_that_a_lab_was_left_half_built(directory: Path, name: str) -> None:
    build_and_die(directory, name, 6)
    half_built = rf"lab '{name}': was left half-built \(making .*\); 'kgctl lab down --name {name}'"
    with pytest.raises(LabError, match=half_built):
        Lab.up(directory, name=name, agents=False)
    with pytest.raises(LabError, match=half_built):
        Lab.open(name)


def test_up_says_that_a_lab_is_up_already_and_leaves_it_alone(directory: Path, name: str) -> None:
    lab = Lab.up(directory, name=name, agents=False)
    with pytest.raises(LabError, match=f"lab '{name}': is up"):
        Lab.up(directory, name=name, agents=False)
    assert Lab.open(name).host("oregon-2").succeeds(["fping", "192.168.1.11"])
    lab.down()
    lab.down()
    with pytest.raises(LabError, match="there is none"):
        Lab.open(name)


def test_a_lab_that_cannot_be_made_is_taken_down_again(tmp_path: Path, name: str) -> None:
    before = describe_machine()
    with pytest.raises(ConfigError, match="is not a directory; a lab needs DIR/mesh"):
        Lab.up(write_no_mesh(tmp_path), name=name)
    assert_nothing_left(name, set(), before)


def write_no_mesh(path: Path) -> Path:
    (path / "lab.yaml").write_text(SITES)
    return path


def test_two_labs_of_one_machine_do_not_meet(directory: Path, name: str) -> None:
    other = f"{name}-other"
    with Lab.up(directory, name=name, agents=False) as one:
        with Lab.up(directory, name=other, agents=False) as two:
            two.kill("oregon-1")
            assert one.host("oregon-2").succeeds(["fping", "192.168.1.11"])
        assert one.host("oregon-2").succeeds(["fping", "192.168.1.11"])


def test_the_lab_works_on_a_copy_of_the_mesh_with_keys_of_its_own(
    tmp_path: Path, name: str
) -> None:
    key = "OU9/xEWEsS+A8KH880l3X2wc/4BxZ1H7bQU8FJbq7F8="
    mesh = f"""
apiVersion: kilo.squat.ai/v1alpha1
kind: Peer
metadata: {{name: laptop}}
spec: {{publicKey: {key}, allowedIPs: [10.5.0.1/32]}}
---
apiVersion: kilo.squat.ai/v1alpha1
kind: Node
metadata: {{name: oregon-1}}
spec: {{publicKey: {key}}}
"""
    hosts = SITES.replace("agent: false", "peer: laptop")
    directory = write_directory(tmp_path / "lab", hosts, mesh)
    with Lab.up(directory, name=name, agents=False) as lab:
        assert (directory / "mesh/mesh.yaml").read_text() == mesh
        assert key not in (lab.mesh / "mesh.yaml").read_text()
        for host in ("oregon-1", "stranger"):
            public = lab.host(host).run(["sh", "-c", "wg pubkey < /var/lib/kilo/key"]).strip()
            assert public in (lab.mesh / "mesh.yaml").read_text()
            mode = lab.host(host).run(["stat", "-c", "%a", "/var/lib/kilo/key", "/var/lib/kilo"])
            assert mode.split() == ["600", "700"]


def test_what_a_caller_sets_for_its_own_agent_does_not_reach_the_hosts(
    sites: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KG_LOG_LEVEL", "nonsense")
    assert "KG_LOG_LEVEL" not in sites.host("oregon-1").run(["env"])
    assert os.environ["KG_LOG_LEVEL"] == "nonsense"
