"""Beside Cilium, where a kernel has IPIP: see ``beside_cilium``."""

from __future__ import annotations

import pytest

from tests.kernel.vm.machine import Case, Outcomes
from tests.kernel.vm.suite import list_cases
from tests.lab import beside_cilium


@pytest.mark.parametrize("case", list_cases(beside_cilium), ids=lambda case: case.name)
def test_in_the_lab(case: Case, outcomes: Outcomes) -> None:
    assert outcomes.failures[case] == ""
