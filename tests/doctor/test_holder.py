"""Who holds the agents' lock: the kernel's list of locks names files by device and number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOLD_ONE = """
import fcntl, os, sys
from pathlib import Path
from kilo.doctor.probing_agent import find_holder

held, free = map(Path, sys.argv[1:])
for state in (held, free):
    (state / "agent.lock").write_text(f"agent of {state.name}")
with open(held / "agent.lock") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print(os.stat(held / "agent.lock").st_ino == os.stat(free / "agent.lock").st_ino)
    print(repr(find_holder(held)), repr(find_holder(free)))
print(repr(find_holder(held)))
"""
OVERLAY = """
mount -t tmpfs none free; mkdir free/a free/b free/c
mount -t overlay none -o lowerdir=free/a,upperdir=free/b,workdir=free/c held
"""


def look(tmp_path: Path, mounts: str) -> list[str]:
    """What ``HOLD_ONE`` prints where ``mounts`` have made its two directories."""
    for name in ("held", "free"):
        (tmp_path / name).mkdir()
    words = [sys.executable, "-c", HOLD_ONE, str(tmp_path / "held"), str(tmp_path / "free")]
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-ec", f'{mounts}\nexec "$@"', "bash", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_lock_on_another_device_is_none_of_ours_though_the_number_is_the_same(
    tmp_path: Path,
) -> None:
    mounts = "mount -t tmpfs none held; mount -t tmpfs none free"
    assert look(tmp_path, mounts) == ["True", "'agent of held' ''", "''"]


@pytest.mark.parametrize(
    "mounts",
    [
        "",
        "mount --bind $(mktemp -d -p .) held",
        OVERLAY,
    ],
    ids=["one device", "bound", "overlay"],
)
def test_the_lock_is_found_whatever_the_state_directory_is_on(tmp_path: Path, mounts: str) -> None:
    assert look(tmp_path, mounts)[1:] == ["'agent of held' ''", "''"]
