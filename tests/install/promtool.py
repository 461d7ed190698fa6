"""Prometheus' own checker."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from tests.install.machine import ROOT


@functools.cache
def find_promtool() -> str:
    """Its path; it is fetched if it is not there yet."""
    tool = subprocess.run([ROOT / "tools/promtool"], stdout=subprocess.PIPE, text=True, check=True)
    return tool.stdout.strip()


def lint_metrics(text: str) -> str:
    """What it says of metrics in the text format, by its naming rules; empty if nothing."""
    assert text, "no metrics"
    done = subprocess.run(
        [find_promtool(), "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def check_rules(file: Path) -> str:
    """The output of its unit tests; they must pass."""
    done = subprocess.run(
        [find_promtool(), "test", "rules", file.name],
        cwd=file.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
