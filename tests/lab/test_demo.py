"""The demonstration holds: every pair in every granularity, after a death, with a new peer."""

from __future__ import annotations

import subprocess
import sys

LIMIT_SECONDS = 360


def test_the_demonstration_ends_well_and_in_time() -> None:
    command = [sys.executable, "-m", "kilo.kgctl", "lab", "demo"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything held" in done.stdout
