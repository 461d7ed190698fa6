"""Where a store with processes of its own stands in a lab, and who gets there; pure.

It is a machine on the first public network, or several, at addresses that nobody else has. Hosts
reach them over the networks of ``lab.yaml``, behind NATs too, and are cut off from them with these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_interface

from kilo.errors import ConfigError
from kilo.lab.spec import Attachment, HostSpec, LabSpec, Network, gateway_of
from kilo.lab.wiring import choose_uplink
from kilo.mesh.model import IPAddress, IPNetwork


def add_store(spec: LabSpec, machines: Iterable[str]) -> LabSpec:
    """The same networks with the store's machines among the hosts, as the last ones.

    Their names begin with ``@``, as no host's does. Raises ``ConfigError`` if there is no place
    for one, or a host with an agent that cannot get there.
    """
    for name in machines:
        spec = replace(spec, hosts=(*spec.hosts, _make_machine(spec, name)))
    return spec


def _make_machine(spec: LabSpec, name: str) -> HostSpec:
    network = next((network for network in spec.networks if network.public), None)
    if network is None:
        raise ConfigError("lab.yaml: networks: none is public, where the store could stand")
    subnet = network.subnets[0]
    address = _choose_address(spec, network, subnet)
    place = Attachment(
        network=network.name, interfaces=(ip_interface(f"{address}/{subnet.prefixlen}"),)
    )
    for host in spec.hosts:
        if host.agent and not _leads_to(spec, host, place):
            raise ConfigError(
                f"lab.yaml: hosts.{host.name}: has no way to network {network.name!r}, where the"
                f" store stands at {address}"
            )
    return HostSpec(name=name, attachments=(place,), agent=False)


def find_store_address(spec: LabSpec, machine: str) -> IPAddress:
    """Where a machine of the store is, in a lab that ``add_store`` made."""
    return next(host for host in spec.hosts if host.name == machine).addresses[0]


def _choose_address(spec: LabSpec, network: Network, subnet: IPNetwork) -> IPAddress:
    """The highest one that is free; not the last, which is IPv4's broadcast address."""
    taken = {gateway_of(subnet).ip}
    taken |= {address for host in spec.hosts for address in host.addresses}
    taken |= {i.ip for other in spec.networks if other.nat for i in other.nat.interfaces}
    lowest = int(subnet.network_address)
    for number in range(int(subnet.broadcast_address) - 1, lowest, -1):
        address = ip_address(number)
        if address not in taken:
            return address
    raise ConfigError(
        f"lab.yaml: networks.{network.name}.subnets: '{subnet}' has no address left for the store"
    )


def _leads_to(spec: LabSpec, host: HostSpec, place: Attachment) -> bool:
    """Whether a host's packets get there: over a link of its own, or out through NATs."""
    family = place.interfaces[0].version
    near = any(link.network == place.network and _speaks(link, family) for link in host.attachments)
    return near or _leads_out_to(spec, choose_uplink(spec, host), place)


def _leads_out_to(spec: LabSpec, link: Attachment | None, place: Attachment) -> bool:
    """Whether a link's network masquerades, as often as needed, into the network of the place."""
    seen: set[str] = set()
    while link and link.network not in seen and _speaks(link, place.interfaces[0].version):
        if link.network == place.network:
            return True
        seen.add(link.network)
        nat = spec.network(link.network).nat
        link = Attachment(network=nat.behind, interfaces=nat.interfaces) if nat else None
    return False


def _speaks(link: Attachment, family: int) -> bool:
    return any(interface.version == family for interface in link.interfaces)
