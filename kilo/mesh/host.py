"""What the local host is like, and which of its addresses it shows the mesh.

``HostFacts`` is filled in by the dataplane; the choices made from it are made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kilo.mesh.model import IPAddress, IPInterface


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAddress:
    """An address of global scope and the link that bears it."""

    link: str
    interface: IPInterface


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The host as the kernel and its resolver describe it; compared to notice a change."""

    addresses: tuple[HostAddress, ...] = ()
    """Of every link, in the kernel's order; without host and link scope, tentative or failed ones."""
    default_links: tuple[str, ...] = ()
    """Links of the main table's default routes, IPv4 before IPv6, lower metric first, each once."""
    hostname_addresses: tuple[IPAddress, ...] = ()
    """What the host's own name resolves to; () until, or unless, a resolver answers."""
    mtus: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Link name -> MTU in bytes."""
    kinds: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Link name -> the kernel's kind (``bridge``, ``wireguard``, ``tun``), "" for hardware."""
    forwarding: frozenset[int] = frozenset()
    """The families, 4 and 6, whose packets the kernel forwards (``net.ipv4.ip_forward`` and
    ``net.ipv6.conf.all.forwarding``)."""
