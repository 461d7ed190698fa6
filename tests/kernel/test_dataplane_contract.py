"""The Linux dataplane keeps the contract on the real kernel, with a real WireGuard."""

from __future__ import annotations

from tests.dataplane.contract import DataplaneContract, establish, make_state
from tests.kernel.linux_host import LinuxHost


class TestLinuxKeepsTheContract(DataplaneContract):
    pass


async def test_another_dataplane_of_the_interface_finds_what_this_one_made(host: LinuxHost) -> None:
    await establish(host, make_state(host))

    assert await host.make_dataplane().read() == await host.dataplane.read()
