"""Encapsulation with traffic, where a kernel has IPIP: see ``encapsulated``."""

from __future__ import annotations

import pytest

from tests.kernel.vm.machine import Case, Outcomes
from tests.kernel.vm.suite import list_cases
from tests.lab import encapsulated


@pytest.mark.parametrize("case", list_cases(encapsulated), ids=lambda case: case.name)
def test_in_the_lab(case: Case, outcomes: Outcomes) -> None:
    assert outcomes.failures[case] == ""
