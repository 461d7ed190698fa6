"""The kernel's own WireGuard passes every test of ``test_wireguard``.

Where this kernel has it, those run in a process of their own; where it has none, in a virtual
machine that is booted once. Each test is reported here by its name.
"""

from __future__ import annotations

import pytest

from tests.kernel import test_wireguard
from tests.kernel.vm.machine import Outcomes, run_here, run_in_machine
from tests.kernel.wireguard_hosts import kernel_has_wireguard
from tests.kernel.wireguard_mesh import WANTED

NAMES = [name for name in vars(test_wireguard) if name.startswith("test_")]


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    folder = tmp_path_factory.mktemp("kernel-wireguard")
    run = run_here if kernel_has_wireguard() else run_in_machine
    found = run([test_wireguard.__file__], folder, {WANTED: "kernel"})
    assert found.failures.keys() == set(NAMES)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_wireguard_passes(name: str, outcomes: Outcomes) -> None:
    assert outcomes.failures[name] == ""
