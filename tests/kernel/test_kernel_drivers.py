"""The kernel's own WireGuard passes every test of ``test_wireguard``, and its IPIP ``ipip.py``'s.

Where this kernel has both, those run in a process of their own; else in a virtual machine that
is booted once. Each test is reported here by its name.
"""

from __future__ import annotations

import pytest

from tests.kernel import ipip, test_wireguard
from tests.kernel.vm.machine import Outcomes, run_here, run_in_machine
from tests.kernel.wireguard_hosts import kernel_has
from tests.kernel.wireguard_mesh import WANTED

MODULES = (test_wireguard, ipip)
NAMES = [name for module in MODULES for name in vars(module) if name.startswith("test_")]


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    folder = tmp_path_factory.mktemp("kernel-drivers")
    run = run_here if kernel_has("wireguard") and kernel_has("ipip") else run_in_machine
    files = [str(module.__file__) for module in MODULES]
    found = run(files, folder, {WANTED: "kernel"})
    assert found.failures.keys() == set(NAMES)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_with_the_kernels_own_driver(name: str, outcomes: Outcomes) -> None:
    assert outcomes.failures[name] == ""
