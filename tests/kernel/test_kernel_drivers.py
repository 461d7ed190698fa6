"""The kernel's own WireGuard passes every test of ``test_wireguard``, and its IPIP ``ipip.py``'s.

The firewalls pass there what is cheap of ``test_firewalls``: that kernel's iptables has the legacy
tables as modules, and another nftables.
"""

from __future__ import annotations

import pytest

from tests.kernel import ipip, test_firewalls, test_wireguard
from tests.kernel.vm.machine import Case, Outcomes
from tests.kernel.vm.suite import list_cases

FIREWALLS = (
    "test_what_was_written_is_read_back",
    "test_others_rules_are_to_the_byte_what_they_were_before",
    "test_ipip_is_let_in_only_from_the_location",
)
CASES = [
    *list_cases(test_wireguard),
    *list_cases(ipip),
    *list_cases(test_firewalls, FIREWALLS),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_with_the_kernels_own_driver(case: Case, outcomes: Outcomes) -> None:
    assert outcomes.failures[case] == ""
