"""What the local host is like, and which of its addresses it shows the mesh.

``HostFacts`` is filled in by the dataplane; the choices made from it are made here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from types import MappingProxyType

from kilo.mesh.model import IPAddress, IPInterface, IPNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAddress:
    """An address of global scope and the link that bears it."""

    link: str
    interface: IPInterface


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardDrop:
    """Somebody else's chain that drops forwarded packets which no rule has accepted."""

    chain: str
    """``chain FORWARD of table ip filter``."""
    families: frozenset[int]
    overruled: bool
    """Whether rules of ours that accept would stand in it, before what drops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The host as the kernel and its resolver describe it; compared to notice a change."""

    addresses: tuple[HostAddress, ...] = ()
    """Of every link, in the kernel's order; none of host or link scope, tentative or failed."""
    default_links: tuple[str, ...] = ()
    """Links of the default routes, IPv4 before IPv6, lower metric first, each once."""
    hostname_addresses: tuple[IPAddress, ...] = ()
    """What the host's own name resolves to; () until, or unless, a resolver answers."""
    mtus: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Link name -> MTU in bytes."""
    kinds: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Link name -> the kernel's kind (``bridge``, ``wireguard``, ``tun``), "" for hardware."""
    down_links: frozenset[str] = frozenset()
    """Those that are not up: no route can go over them."""
    busy_tunnels: frozenset[str] = frozenset()
    """IPIP links that are up or have addresses and do not bear our mark: somebody else's."""
    families: frozenset[int] = frozenset({4, 6})
    """Those that our interface can have addresses of: without 6 where IPv6 is switched off."""
    sysctls: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The kernel's settings that may matter to us, as others have them: of what we have set,
    what it was before."""
    fixed_sysctls: frozenset[str] = frozenset()
    """Those of them that this program may not change, or could not give back."""
    forward_drops: tuple[ForwardDrop, ...] = ()


PRIVATE_NETWORKS = tuple(
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"))
)
WIREGUARD_OVERHEAD = 80
"""Bytes: an outer IPv6 header (40), UDP (8), WireGuard's header and tag (32)."""
WIREGUARD_OVERHEAD_IPV4 = 60
"""Bytes: likewise, with an IPv4 header (20)."""
IPIP_OVERHEAD = 20
"""Bytes: an outer IPv4 header."""
DEFAULT_MTU = 1420
"""Bytes, where there is no default route: Ethernet's 1500 less the overhead."""
CNI_BRIDGE = "kube-bridge"
VIRTUAL_LINK = re.compile(r"(docker|br-|cni|virbr|veth|flannel|cali|cilium|lxc|podman)")
VIRTUAL_KINDS = frozenset({"wireguard", "tun", "ipip", "vxlan", "gre", "sit", "dummy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPolicy:
    """Which addresses may count; the flags of the same names."""

    ignored_links: frozenset[str] = frozenset({"kilo0", "tunl0", CNI_BRIDGE})
    internal_cidrs: tuple[IPNetwork, ...] = ()
    """If any, internal addresses must lie in one of them."""
    prioritise_private: bool = False


def find_internal_ips(facts: HostFacts, policy: AddressPolicy) -> tuple[IPInterface, ...]:
    """The host's internal addresses, at most one a family, the one Kilo would take first.

    The first private address (spec section 3: RFC 1918, fd00::/8) in the order of ``_rank``.
    """
    found: dict[int, IPInterface] = {}
    for interface in _rank_addresses(facts, policy):
        allowed = policy.internal_cidrs
        if is_private(interface.ip) and (not allowed or any(interface.ip in c for c in allowed)):
            found.setdefault(interface.version, interface)
    return tuple(found.values())


def find_endpoint_address(facts: HostFacts, policy: AddressPolicy) -> IPAddress | None:
    """The address others should find the host at: its public one, failing that its internal one."""
    ranked = _rank_addresses(facts, policy)
    public = [i.ip for i in ranked if not is_private(i.ip)]
    internal = [i.ip for i in find_internal_ips(facts, policy)]
    candidates = [*internal, *public] if policy.prioritise_private else [*public, *internal]
    return next(iter(candidates), None)


def is_private(address: IPAddress) -> bool:
    """Whether an address is one of RFC 1918's or fd00::/8's."""
    return any(address in network for network in PRIVATE_NETWORKS)


def find_link(facts: HostFacts, address: IPAddress) -> str | None:
    """The link that bears an address."""
    return next((a.link for a in facts.addresses if a.interface.ip == address), None)


def find_wireguard_mtu(facts: HostFacts) -> int:
    """Bytes that fit the tunnel: what the default route's link carries, less WireGuard's own."""
    link = find_underlay(facts)
    return DEFAULT_MTU if link is None else facts.mtus[link] - WIREGUARD_OVERHEAD


def find_underlay(facts: HostFacts) -> str | None:
    """The link that the tunnel's packets leave by, as far as the default route tells."""
    return next((link for link in facts.default_links if link in facts.mtus), None)


def _rank_addresses(facts: HostFacts, policy: AddressPolicy) -> list[IPInterface]:
    """The addresses that may count, best first, each once.

    Those the host's name resolves to, those of the default routes' links, those of all links;
    each group IPv4 before IPv6, then by text. What containers and other VPNs made is looked at
    only where it is the default route's: Kilo's users got Docker's bridge (spec 13.14).
    """
    usable = [a for a in facts.addresses if _may_count(a, policy)]
    by_name = [a for a in usable if a.interface.ip in facts.hostname_addresses]
    by_default = [a for a in usable if a.link in facts.default_links]
    physical = [a for a in usable if not is_virtual(a.link, facts)]
    ranked = (*_sort(by_name), *_sort(by_default), *_sort(physical))
    return list(dict.fromkeys(ranked))


def _may_count(address: HostAddress, policy: AddressPolicy) -> bool:
    ip = address.interface.ip
    return address.link not in policy.ignored_links and not (
        ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified
    )


def is_virtual(link: str, facts: HostFacts) -> bool:
    """Whether containers or another VPN made the link."""
    return bool(VIRTUAL_LINK.match(link)) or facts.kinds.get(link, "") in VIRTUAL_KINDS


def _sort(addresses: list[HostAddress]) -> list[IPInterface]:
    return sorted((a.interface for a in addresses), key=lambda i: (i.version, str(i)))
