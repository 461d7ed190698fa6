"""The long labs of a kernel that has IPIP: real pods in every way, and beside Cilium.

``make test`` leaves them out: emulated they take longer than all the rest. ``make emulated`` runs
them, in the virtual machine where this kernel cannot.
"""

from __future__ import annotations

import pytest

from tests.kernel.vm.machine import Case, Outcomes
from tests.kernel.vm.suite import list_cases
from tests.lab import beside_cilium, encapsulated_pods

CASES = [*list_cases(beside_cilium), *list_cases(encapsulated_pods)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}::{case.name}")
def test_in_the_lab(case: Case, outcomes: Outcomes) -> None:
    assert outcomes.failures[case] == ""
