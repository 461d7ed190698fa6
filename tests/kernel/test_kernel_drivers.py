"""The kernel's own WireGuard passes the tests of ``test_wireguard``, its IPIP those of ``ipip``."""

from __future__ import annotations

import pytest

from tests.kernel import ipip, test_wireguard
from tests.kernel.vm.machine import Case, Outcomes
from tests.kernel.vm.suite import list_cases

CASES = [*list_cases(test_wireguard), *list_cases(ipip)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_with_the_kernels_own_driver(case: Case, outcomes: Outcomes) -> None:
    assert outcomes.failures[case] == ""
