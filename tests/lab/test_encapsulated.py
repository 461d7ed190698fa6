"""Encapsulation with traffic: where this kernel has no IPIP, in a virtual machine of its own."""

from __future__ import annotations

import pytest

from tests.kernel.vm.machine import Outcomes, run_here, run_in_machine
from tests.kernel.wireguard_hosts import kernel_has
from tests.lab import encapsulated

NAMES = [name for name in vars(encapsulated) if name.startswith("test_")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    folder = tmp_path_factory.mktemp("encapsulated")
    run = run_here if kernel_has("wireguard") and kernel_has("ipip") else run_in_machine
    found = run([str(encapsulated.__file__)], folder, {})
    assert found.failures.keys() == set(NAMES)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_in_the_lab(name: str, outcomes: Outcomes) -> None:
    assert outcomes.failures[name] == ""
