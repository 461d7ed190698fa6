"""The labs that the documentation shows are labs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kilo.lab import cluster, etcdstore, meshdir
from kilo.lab.cli import COMMANDS
from kilo.lab.spec import load_spec, parse_spec

ROOT = Path(__file__).parents[2]
LABS = sorted(path.parent for path in ROOT.glob("examples/**/lab.yaml"))


def test_there_are_examples() -> None:
    assert ROOT / "examples/file/three-clouds" in LABS


@pytest.mark.parametrize("directory", LABS, ids=lambda path: path.name)
def test_an_example_has_a_node_for_every_agent_and_nothing_wrong(directory: Path) -> None:
    spec = load_spec(directory / "lab.yaml")
    snapshot = meshdir.read_snapshot(directory / "mesh")
    assert snapshot.problems == ()
    assert {host.name for host in spec.hosts if host.agent} == {n.name for n in snapshot.nodes}
    assert {peer.name for peer in snapshot.peers} <= {host.peer for host in spec.hosts}


def test_the_lab_of_the_documentation_is_read() -> None:
    text = (ROOT / "docs/lab.md").read_text()
    document = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert [host.name for host in parse_spec("docs/lab.md", document).hosts] == [
        "oregon-1",
        "home-1",
        "laptop",
        "printer",
    ]


def test_every_command_of_the_lab_is_documented() -> None:
    text = (ROOT / "docs/lab.md").read_text()
    for command in COMMANDS.keys() - {"heal", "start", "restart"}:  # these stand beside others
        assert f"`kgctl lab {command}" in text
    words = {*cluster.ACTIONS, *etcdstore.ACTIONS}
    assert [word for word in words if f"`{word}`" not in text.replace("store ", "`")] == []
