"""A location or a peer of the mesh as a Peer of another one: how clusters are joined."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kilo.mesh.model import IPNetwork, Peer
from kilo.mesh.topology import Topology
from kilo.mesh.wgconf import (
    PeerConf,
    describe_secret_peer,
    describe_segment,
    find_led_segment,
    find_peer,
)


def describe_node_as_peer(
    topology: Topology, node_name: str, allowed_ips: Iterable[IPNetwork]
) -> PeerConf:
    """What another device needs to reach the node's location, and ``allowed_ips`` through it.

    ``MeshError`` for a node that leads nothing: it has no tunnel to be reached by.
    """
    segment = find_led_segment(topology, node_name)
    return _allow(describe_segment(topology, segment), allowed_ips)


def describe_peer_as_peer(
    topology: Topology, peer_name: str, allowed_ips: Iterable[IPNetwork]
) -> PeerConf:
    """What another device needs to reach the peer, and ``allowed_ips`` through it, its preshared
    key included. ``MeshError`` if no peer of that name takes part.
    """
    return _allow(describe_secret_peer(topology, find_peer(topology, peer_name)), allowed_ips)


def _allow(conf: PeerConf, allowed_ips: Iterable[IPNetwork]) -> PeerConf:
    return replace(conf, allowed_ips=tuple(dict.fromkeys((*conf.allowed_ips, *allowed_ips))))


def make_peer(name: str, conf: PeerConf) -> Peer:
    """The Peer to declare elsewhere under this name."""
    return Peer(
        name=name,
        public_key=conf.public_key,
        allowed_ips=conf.allowed_ips,
        persistent_keepalive_seconds=conf.keepalive_seconds,
        preshared_key=conf.preshared_key,
        endpoint=conf.endpoint,
    )
