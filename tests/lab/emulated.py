"""The long lab of a kernel that has IPIP: real pods in every way.

``make test`` leaves it out: emulated it takes longer than all the rest. ``make emulated`` runs it,
in the virtual machine where this kernel cannot.
"""

from __future__ import annotations

import pytest

from tests.kernel.vm.machine import Case, Outcomes
from tests.kernel.vm.suite import list_cases
from tests.lab import encapsulated_pods


@pytest.mark.parametrize("case", list_cases(encapsulated_pods), ids=lambda case: case.name)
def test_in_the_lab(case: Case, outcomes: Outcomes) -> None:
    assert outcomes.failures[case] == ""
