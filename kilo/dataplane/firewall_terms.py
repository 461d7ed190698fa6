"""What every firewall driver has to say and to leave alone, in whichever program's words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from ipaddress import ip_network

from kilo.mesh.model import IPNetwork
from kilo.mesh.state import Firewall

NOT_OURS = Firewall()
"""What a driver reads where something bears our names and has another shape than ours. No pass
ever wants an empty Firewall (it wants none), so it differs from whatever is desired and is
replaced."""

LINKS = "clamp_links"
ROLES = tuple(field.name for field in fields(Firewall) if field.name != LINKS)
"""The fields that are networks."""

LOCAL = frozenset(
    map(
        ip_network,
        (
            "127.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/4",
            "255.255.255.255/32",
            "::1/128",
            "fe80::/10",
            "ff00::/8",
        ),
    )
)
"""Destinations that never leave their link; the registries of special purpose and multicast
addresses (RFC 6890, RFC 5771, RFC 4291). They are never masqueraded, whoever claims them."""

IPIP = 4
"""IANA's protocol number."""


def pick_networks(firewall: Firewall, role: str, family: int) -> frozenset[IPNetwork]:
    """Those of a role that are of family 4 or 6."""
    networks: frozenset[IPNetwork] = getattr(firewall, role)
    return pick_family(networks, family)


def pick_family(networks: Iterable[IPNetwork], family: int) -> frozenset[IPNetwork]:
    """Those of family 4 or 6."""
    return frozenset(network for network in networks if network.version == family)
