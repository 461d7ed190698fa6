"""The lock that keeps a second agent off a host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kilo.agentlock import hold_lock
from kilo.errors import ConfigError


@pytest.mark.parametrize("interface", ["kilo0", "kilo1"])
def test_a_second_agent_is_refused_whatever_its_interface(tmp_path: Path, interface: str) -> None:
    """Both would own the same routes and the same table, and write without end."""
    with (
        hold_lock(tmp_path, "kilo0"),
        pytest.raises(ConfigError) as refused,
        hold_lock(tmp_path, interface),
    ):
        pytest.fail("two agents hold the lock")
    assert str(refused.value) == (
        f"interface {interface}: an agent is running on this host already,"
        f" process {os.getpid()}, interface kilo0"
    )


def test_the_lock_is_free_again_when_its_holder_ends(tmp_path: Path) -> None:
    with hold_lock(tmp_path, "kilo0"):
        pass
    with hold_lock(tmp_path, "kilo1"):
        assert (tmp_path / "agent.lock").read_text() == f"process {os.getpid()}, interface kilo1"


def test_what_a_killed_agent_was_writing_is_swept_away_by_the_next(tmp_path: Path) -> None:
    for name in ("sysctls.tmp", "snapshot.json", "key"):
        (tmp_path / name).write_text("")
    with hold_lock(tmp_path, "kilo0"):
        names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["agent.lock", "key", "snapshot.json"]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    state = tmp_path / "file" / "state"
    with pytest.raises(ConfigError) as refused, hold_lock(state, "kilo0"):
        pytest.fail("there is no such directory")
    assert str(refused.value) == f"{state / 'agent.lock'}: Not a directory"
