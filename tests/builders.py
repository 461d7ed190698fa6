"""Small builders of the core's values, so that a test says only what it is about."""

from __future__ import annotations

import hashlib
from ipaddress import ip_interface, ip_network

from kilo.mesh.keys import PresharedKey, PublicKey
from kilo.mesh.model import (
    Endpoint,
    Granularity,
    IPInterface,
    IPNetwork,
    NodeReport,
    NodeSpec,
    Peer,
)


def make_key(seed: str) -> PublicKey:
    """The public key that belongs to this word in all tests."""
    return PublicKey.from_bytes(hashlib.sha256(seed.encode()).digest())


def make_preshared_key(seed: str) -> PresharedKey:
    """The preshared key that belongs to this word in all tests."""
    return PresharedKey(hashlib.sha256(f"preshared {seed}".encode()).digest())


def networks(*texts: str) -> tuple[IPNetwork, ...]:
    return tuple(ip_network(text) for text in texts)


def interfaces(*texts: str) -> tuple[IPInterface, ...]:
    return tuple(ip_interface(text) for text in texts)


def make_spec(**attributes: object) -> NodeSpec:
    """A node as an operator declares it; whatever is not given is not declared."""
    return NodeSpec(**attributes)  # type: ignore[arg-type]  # keywords are NodeSpec's own


def make_report(
    name: str,
    *,
    endpoint: str | None = "198.51.100.1:51820",
    internal_ips: tuple[str, ...] = ("192.168.0.1/24",),
    granularity: Granularity | None = Granularity.LOCATION,
) -> NodeReport:
    """What the agent of that node might publish."""
    return NodeReport(
        name=name,
        public_key=make_key(name),
        endpoint=Endpoint.parse(endpoint) if endpoint else None,
        internal_ips=interfaces(*internal_ips),
        granularity=granularity,
        agent="kg",
    )


def make_peer(name: str, *allowed_ips: str, preshared: bool = False) -> Peer:
    """A peer with a key of its own; ``10.5.0.1/32`` unless told."""
    return Peer(
        name=name,
        public_key=make_key(name),
        allowed_ips=networks(*(allowed_ips or ("10.5.0.1/32",))),
        preshared_key=make_preshared_key(name) if preshared else None,
    )
