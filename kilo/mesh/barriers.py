"""Which networks of the mesh nobody may be sent to in clear, whatever routes are missing.

A route may be missing for many reasons: the link it went over has been taken away, the kernel has
refused it, its node has fallen silent. The host's other routes, the default one first of all, would
then carry the packet out of the location as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from kilo.mesh.model import IPAddress, IPNetwork, Node
from kilo.mesh.state import Barrier
from kilo.mesh.view import View, find_reported_address


def list_barriers(view: View, nodes: Iterable[Node]) -> Iterator[Barrier]:
    """One for each Kilo subnet, and for the pods of ``nodes``, all that the store knows, ready or
    not. None for a network in which a host itself lives: nobody could be reached there any more.
    """
    known = list(nodes)
    networks = [*view.topology.settings.subnets]
    networks += [net for node in known for net in _list_for_us(view, node)]
    inhabited = _find_inhabited(networks, _list_places(view, known))
    for network in dict.fromkeys(networks):
        if network.version in view.host.families and network not in inhabited:
            yield Barrier(destination=network)


def _list_for_us(view: View, node: Node) -> Iterator[IPNetwork]:
    """The networks of a node's pods to which packets must go by our routes or not at all."""
    if node.name == view.node.name:
        return
    # By Cilium's address our own packets find the leader, through Cilium's network or not at all.
    inside = find_reported_address(node) if view.beside_cilium else None
    for network in node.pod_subnets:
        if _is_for_us(view, node) or (inside and inside in network):
            yield network


def _is_for_us(view: View, node: Node) -> bool:
    """Whether nobody else may bring packets to a node's pods: those of other locations, be there an
    agent or not. In the own location those of members, unless another network connects these; and
    where the pods' network is ours, there is no other way to any.
    """
    if node.spec.location != view.node.spec.location:
        return True
    return view.options.local and (view.options.cni or node.public_key is not None)


def _list_places(view: View, nodes: Iterable[Node]) -> Iterator[IPAddress]:
    """Where this host and the nodes are found without us."""
    own_links = {view.options.interface, view.tunnel}
    yield from (a.interface for a in view.host.addresses if a.link not in own_links)
    yield from list_node_places(nodes)


def list_node_places(nodes: Iterable[Node]) -> Iterator[IPAddress]:
    """Where the nodes' hosts are found, so that barriers would be in the way."""
    for node in nodes:
        yield from node.internal_ips
        endpoint = node.endpoint
        if endpoint and (address := endpoint.ip):
            yield address


def _find_inhabited(
    networks: Collection[IPNetwork], places: Iterable[IPAddress]
) -> frozenset[IPNetwork]:
    """Those of the networks in which one of the addresses lies."""
    numbers: dict[int, set[int]] = {4: set(), 6: set()}
    for place in places:
        numbers[place.version].add(int(place))
    taken = {
        (version, bits): {number >> bits for number in numbers[version]}
        for version, bits in {(net.version, _count_host_bits(net)) for net in networks}
    }
    return frozenset(
        net
        for net in networks
        if int(net.network_address) >> _count_host_bits(net)
        in taken[net.version, _count_host_bits(net)]
    )


def _count_host_bits(network: IPNetwork) -> int:
    return network.max_prefixlen - network.prefixlen
