"""What ``wg-quick`` and the apps for phones and laptops take: WireGuard's INI, and what the host
of the device needs besides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kilo.mesh.host import DEFAULT_MTU
from kilo.mesh.keys import PrivateKey
from kilo.mesh.model import Peer
from kilo.mesh.topology import Topology
from kilo.mesh.wgconf import find_peer, make_peer_conf, render_conf


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What the mesh does not know of the peer's device."""

    mtu: int | None = None
    """Bytes; None: the mesh's, or what fits Ethernet."""
    dns: Sequence[str] = ()
    """Addresses of resolvers, and domains to search."""
    private_key: PrivateKey | None = field(default=None, repr=False)
    """None: only the device has it, and it is filled in there."""


def render_quick_conf(topology: Topology, peer_name: str, device: Device) -> str:
    """The text for the peer. ``MeshError`` if no peer of that name takes part."""
    conf = make_peer_conf(topology, peer_name)
    peer = find_peer(topology, peer_name)
    lines = ["[Interface]", *_list_interface_lines(topology, peer, device)]
    return "\n".join(lines) + render_conf(conf).removeprefix("[Interface]")


def _list_interface_lines(topology: Topology, peer: Peer, device: Device) -> Iterator[str]:
    if device.private_key is not None:
        yield f"PrivateKey = {device.private_key.reveal()}"
    else:
        yield f"# PrivateKey = that of {peer.public_key}: only the device has it"
    own = [network for network in peer.allowed_ips if network.num_addresses == 1]
    if own:
        yield f"Address = {', '.join(map(str, own))}"
    else:
        networks = ", ".join(map(str, peer.allowed_ips))
        yield f"# Address = one inside {networks}, as this peer has none of its own"
    yield f"MTU = {device.mtu or topology.settings.mtu or DEFAULT_MTU}"
    if device.dns:
        yield f"DNS = {', '.join(device.dns)}"
