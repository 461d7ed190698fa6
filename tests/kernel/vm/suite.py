"""What a kernel with WireGuard and IPIP is needed for: run once, for all that asks for it.

Where this kernel has both, the tests run in a process of their own; else in a virtual machine that
is booted once a session. Each is reported by its name, by whoever asks for its outcome.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.kernel.vm.machine import ROOT, Case, Outcomes, Tell, run_here, run_in_machine
from tests.kernel.wireguard_hosts import kernel_has
from tests.kernel.wireguard_mesh import WANTED

FIXTURE = "outcomes"
"""What asks for an outcome has this fixture, and the parameter ``case``."""


def list_cases(module: ModuleType) -> list[Case]:
    """The tests of a module."""
    file = str(Path(str(module.__file__)).relative_to(ROOT))
    return [Case(file, name) for name in vars(module) if name.startswith("test_")]


def select_cases(session: pytest.Session) -> list[Case]:
    """Those whose outcome is asked for by the tests that were selected, in their order."""
    asked = [
        item.callspec.params["case"]
        for item in session.items
        if isinstance(item, pytest.Function) and FIXTURE in item.fixturenames
    ]
    return list(dict.fromkeys(case for case in asked if isinstance(case, Case)))


def run_cases(cases: list[Case], folder: Path, tell: Tell) -> Outcomes:
    """Their outcomes. Raises ``NoTestsRanError`` if they could not be run."""
    run = run_here if kernel_has("wireguard") and kernel_has("ipip") else run_in_machine
    outcomes = run(cases, folder, {WANTED: "kernel"}, tell)
    assert outcomes.failures.keys() == set(cases)
    return outcomes
