"""The host that ``kgctl`` runs on, if it is a node of the mesh: what its kernel has, with an agent
or without.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kilo.agentlock import KEY
from kilo.dataplane.firewall import HostFirewall
from kilo.dataplane.linux import LinuxDataplane
from kilo.dataplane.wireguard import WireGuard
from kilo.errors import ConfigError, DataplaneError
from kilo.keyfile import load_private_key, public_key
from kilo.kgctl.storing import tell
from kilo.log import register_secret
from kilo.mesh.blocking import list_blocked
from kilo.mesh.host import HostFacts
from kilo.mesh.keys import PrivateKey
from kilo.mesh.model import Node
from kilo.mesh.state import DataplaneState
from kilo.mesh.topology import Topology
from kilo.mesh.view import Observations, RenderOptions, View


@dataclass(frozen=True, slots=True, kw_only=True)
class ThisHost:
    """The node that we are on."""

    node: Node
    kernel: DataplaneState
    warnings: tuple[str, ...]
    """What other programs' firewalls may drop."""


async def find_this_host(topology: Topology, options: RenderOptions) -> ThisHost | None:
    """Its kernel is read, and nothing changed; None where we are on no node of the mesh, or may
    not look.
    """
    key = find_key()
    node = find_own_node(topology.nodes, key) if key else None
    if key is None or node is None:
        return None
    try:
        kernel, facts = await read_kernel(key, options)
    except DataplaneError as error:
        tell(f"node {node.name} is this host, and its kernel cannot be read: {error}")
        return None
    view = View.of_node(
        node.name, topology, host=facts, options=options, observations=Observations()
    )
    return ThisHost(node=node, kernel=kernel, warnings=tuple(list_blocked(view)))


def find_key() -> PrivateKey | None:
    """The agent's key; None where there is none, or it is not ours to read."""
    try:
        key = load_private_key(KEY)
    except (ConfigError, OSError):
        return None
    register_secret(key)
    return key


def find_own_node(nodes: Iterable[Node], key: PrivateKey) -> Node | None:
    """The node that has this key."""
    own = public_key(key)
    return next((node for node in nodes if node.public_key == own), None)


async def read_kernel(key: PrivateKey, options: RenderOptions) -> tuple[DataplaneState, HostFacts]:
    """What is there of ours, and what the host is like. Raises ``DataplaneError``."""
    dataplane = LinuxDataplane(
        options.interface,
        wireguard=WireGuard(options.interface, key, create=False),
        firewall=HostFirewall(),
        tunnel=options.tunnel,
    )
    try:
        return await dataplane.read(), await dataplane.facts()
    finally:
        await dataplane.close()
