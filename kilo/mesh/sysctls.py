"""The settings of the host's kernel that stand in the mesh's way, and what they must be.

What is as needed already is left to whoever made it so: only a setting that has to be changed
becomes ours. What cannot be changed is a warning that says what an operator should set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kilo.mesh.host import HostFacts, is_virtual
from kilo.mesh.model import IPNetwork
from kilo.mesh.state import FORWARDING, Sysctl
from kilo.mesh.view import View

LOOPBACK = "lo"
STRICT, LOOSE = "1", "2"
"""Of ``rp_filter``, of whose values for all links and for one the higher counts."""
HEARS_ROUTERS, HEARS_THEM_AS_ROUTER = "1", "2"
"""Of ``accept_ra``; the first means: unless this host is a router itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Settings that must hold together, in this order, and what goes wrong otherwise."""

    reason: str
    sysctls: tuple[Sysctl, ...] = ()

    def can_be_met(self, host: HostFacts) -> bool:
        """Whether the agent may set all of it."""
        return bool(self.sysctls) and all(may_set(host, sysctl.name) for sysctl in self.sysctls)

    def __str__(self) -> str:
        if not self.sysctls:
            return self.reason
        return f"{self.reason}; set {', '.join(f'{s.name}={s.value}' for s in self.sysctls)}"


def list_relevant(host: HostFacts, links: Iterable[str]) -> Iterator[str]:
    """The names of all the settings that a mesh may depend on; ``links`` are our own."""
    yield from FORWARDING.values()
    for link in ("all", "default", *links):
        yield name_setting(4, link, "rp_filter")
    for link in host.mtus:
        # Containers must not be listened to as routers are (CVE-2020-10749).
        if link in host.default_links or not (is_virtual(link, host) or link == LOOPBACK):
            yield name_setting(6, link, "accept_ra")


def name_setting(version: int, link: str, setting: str) -> str:
    """A setting of one link, or of ``all`` or ``default``."""
    return f"net.ipv{version}.conf.{link.replace('.', '/')}.{setting}"


def may_set(host: HostFacts, name: str) -> bool:
    """Whether there is such a setting and the agent may change it."""
    stand_in = _find_stand_in(host, name)
    return stand_in in host.sysctls and stand_in not in host.fixed_sysctls


def _find_stand_in(host: HostFacts, name: str) -> str:
    """The setting itself; of a link that is yet to be made, that of new links."""
    is_missing = name not in host.sysctls and name.endswith(".rp_filter")
    return name_setting(4, "default", "rp_filter") if is_missing else name


def list_sysctls(view: View) -> Iterator[Sysctl]:
    """What this node has to set."""
    for need in list_needs(view):
        if need.can_be_met(view.host):
            yield from need.sysctls


def list_unmet(view: View) -> Iterator[str]:
    """What this node should have and cannot set, a line each."""
    for need in list_needs(view):
        if not need.can_be_met(view.host):
            yield str(need)


def list_needs(view: View) -> Iterator[Need]:
    """What is not as the node's part in the mesh needs it."""
    for version, name in FORWARDING.items():
        behind = find_behind(view, version)
        if behind and version not in view.host.families:
            yield Need(reason=f"this node has no IPv6: {behind} cannot be reached through it")
        elif behind and view.host.sysctls.get(name, "0") == "0":
            yield Need(
                reason=f"this node does not forward packets: {behind} cannot be reached through it",
                sysctls=(*_list_listening(view.host, version), Sysctl(name=name, value="1")),
            )
    for link in _list_filtering(view):
        yield Need(
            reason=f"{link} drops packets whose answers would leave by another link",
            sysctls=(Sysctl(name=name_setting(4, link, "rp_filter"), value=LOOSE),),
        )


def find_behind(view: View, version: int) -> IPNetwork | None:
    """A network of the family that is reached only if this node passes packets on, if any: its
    pods', and what it leads.
    """
    served = list(view.node.pod_subnets)
    if view.leads:
        served += [*view.segment.allowed_ips, *view.segment.allowed_location_ips]
    own = {address.interface.ip for address in view.host.addresses}
    own |= {interface.ip for interface in view.segment.wireguard_ips}
    others = (n for n in served if n.version == version and n.network_address not in own)
    return next(others, None)


def _list_listening(host: HostFacts, version: int) -> Iterator[Sysctl]:
    """The links that would not listen to routers any more once the host is one: it would lose
    the default route that it has from there.
    """
    for name, value in sorted(host.sysctls.items()):
        if version == 6 and name.endswith(".accept_ra") and value == HEARS_ROUTERS:
            yield Sysctl(name=name, value=HEARS_THEM_AS_ROUTER)


def _list_filtering(view: View) -> Iterator[str]:
    """Our links that accept a packet only if its answer would leave by them. A leader sends no
    packet into a tunnel that is for the tunnel's own other end, yet gets some from there.
    """
    sysctls = view.host.sysctls
    everywhere = sysctls.get(name_setting(4, "all", "rp_filter"))
    for link in _list_own_links(view):
        here = sysctls.get(_find_stand_in(view.host, name_setting(4, link, "rp_filter")))
        if STRICT in (everywhere, here) and LOOSE not in (everywhere, here):
            yield link


def _list_own_links(view: View) -> Iterator[str]:
    if view.leads:
        yield view.options.interface
    if view.owns_tunnel and view.tunnel:
        yield view.tunnel


def keep_sysctls(wanted: frozenset[Sysctl], actual: frozenset[Sysctl]) -> frozenset[Sysctl]:
    """What is ours stays so until all of it is undone, though nothing needs it at the moment: a
    leader that is none for a while would else switch off what others have come to rely on.
    """
    names = {sysctl.name for sysctl in wanted}
    return wanted | {sysctl for sysctl in actual if sysctl.name not in names}
