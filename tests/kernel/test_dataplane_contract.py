"""The Linux dataplane keeps the contract on the real kernel, with a real WireGuard."""

from __future__ import annotations

from kilo.dataplane.linux import LinuxDataplane
from kilo.dataplane.nftables import NFTables
from tests.dataplane.contract import DataplaneContract, establish, make_state
from tests.kernel.linux_host import LinuxHost


class TestLinuxKeepsTheContract(DataplaneContract):
    pass


async def test_the_interface_it_made_is_known_as_made(host: LinuxHost) -> None:
    before = host.dataplane.created_link
    await establish(host, make_state(host))
    adopter = LinuxDataplane(host.interface, wireguard=host.wireguard, firewall=NFTables())

    found = await adopter.read()

    assert found == await host.dataplane.read()
    assert (before, host.dataplane.created_link, adopter.created_link) == (False, True, False)
