"""The firewall, sizes of packets and ports in use: what was seen -> findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kilo.dataplane.cni import PLUGINS_WITH_MTU
from kilo.doctor.findings import Code, Finding, Outcome
from kilo.mesh.host import (
    CNI_BRIDGE,
    WIREGUARD_OVERHEAD,
    WIREGUARD_OVERHEAD_IPV4,
    ForwardDrop,
    HostFacts,
    find_underlay,
    find_wireguard_mtu,
)

LEAST_IPV6_MTU = 1280
"""Bytes: RFC 8200 section 5."""
USUAL_MTU = 1500
"""Bytes: what a link of containers has if nobody says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What others' chains do to the mesh's packets."""

    port: int
    """UDP, WireGuard's."""
    forward_drops: tuple[ForwardDrop, ...] = ()
    accepts_forwarded: bool = False
    """Whether rules of ours accept what is forwarded."""
    input_drops: tuple[str, ...] = ()
    """The chains that let packets to the port in by no rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Which packets fit where."""

    interface: str
    facts: HostFacts
    cni_path: str = ""
    cni_mtus: Mapping[str, int | None] = field(default_factory=lambda: MappingProxyType({}))
    """Type of plugin -> the MTU that the CNI configuration gives it, in bytes."""
    cni_complaint: str = ""
    """What is wrong with that file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Who has the ports that the agent needs. Owners are empty where nobody, or nobody seen, is."""

    interface: str
    udp_port: int
    udp_in_use: bool = False
    udp_is_ours: bool = False
    """Whether the device of our interface has it."""
    udp_owner: str = ""
    http_port: int
    http_in_use: bool = False
    http_owner: str = ""
    agent_is_there: bool = False
    """Whether an agent runs, who then has that port, or needs another."""


def judge_filters(filters: Filters) -> Outcome:
    """Of FORWARD and INPUT."""
    findings = (*_list_forward_findings(filters), *_list_input_findings(filters))
    return Outcome(
        summary="packets of the mesh are dropped" if findings else "no chain drops what is ours",
        findings=findings,
    )


def _list_forward_findings(filters: Filters) -> Iterator[Finding]:
    for drop in filters.forward_drops:
        if drop.overruled and filters.accepts_forwarded:
            continue
        remedy = "accept the mesh's packets there, or let it accept what it has no rule for"
        if drop.overruled:
            remedy = "give kg --iptables-forward-rules"
        yield Finding(
            code=Code.FORWARD_DROPPED,
            sentence=f"{drop.chain} drops forwarded packets that none of its rules accepts",
            remedy=remedy,
        )


def _list_input_findings(filters: Filters) -> Iterator[Finding]:
    for chain in filters.input_drops:
        yield Finding(
            code=Code.INPUT_DROPPED,
            sentence=f"{chain} accepts no packets to UDP port {filters.port}: other nodes reach"
            " this one only after it has written to them",
            remedy=f"accept UDP port {filters.port} there",
        )


def judge_sizes(sizes: Sizes) -> Outcome:
    """Of the way below WireGuard, its own link, and the pods'."""
    underlay = find_underlay(sizes.facts)
    present = sizes.facts.mtus.get(sizes.interface)
    mtu = present or find_wireguard_mtu(sizes.facts)
    below = f"{underlay} {sizes.facts.mtus[underlay]}" if underlay else "no default route"
    is_there = "" if present else " (yet to be made)"
    findings = (
        *_list_tunnel_findings(sizes, underlay, mtu),
        *_list_pod_findings(sizes, mtu),
    )
    return Outcome(summary=f"{below}, {sizes.interface} {mtu}{is_there}", findings=findings)


def _list_tunnel_findings(sizes: Sizes, underlay: str | None, mtu: int) -> Iterator[Finding]:
    if underlay is None:
        yield Finding(
            code=Code.NO_DEFAULT_ROUTE,
            sentence=f"there is no default route: {sizes.interface} is sized for a link of"
            f" {USUAL_MTU} bytes",
            remedy="give kg --mtu where the way to other nodes carries less",
        )
    elif mtu > sizes.facts.mtus[underlay] - WIREGUARD_OVERHEAD_IPV4:
        fits = sizes.facts.mtus[underlay] - WIREGUARD_OVERHEAD
        yield Finding(
            code=Code.TUNNEL_MTU,
            sentence=f"{sizes.interface} has MTU {mtu}, and {underlay} below it carries only"
            f" {sizes.facts.mtus[underlay]}: full packets are fragmented or lost",
            remedy=f"give kg --mtu={fits}, or leave it at auto",
        )
    if mtu < LEAST_IPV6_MTU:
        yield Finding(
            code=Code.SMALL_MTU,
            sentence=f"{sizes.interface} has MTU {mtu}, or will: IPv6 needs {LEAST_IPV6_MTU}",
            remedy=f"raise the MTU of {underlay or 'the way below'} to"
            f" {LEAST_IPV6_MTU + WIREGUARD_OVERHEAD}, or do without IPv6 in the mesh",
        )


def _list_pod_findings(sizes: Sizes, mtu: int) -> Iterator[Finding]:
    if sizes.cni_complaint:
        yield Finding(
            code=Code.CNI_BROKEN,
            sentence=sizes.cni_complaint,
            remedy="mend the file, or name another by --cni-path",
        )
    bridge = sizes.facts.mtus.get(CNI_BRIDGE, 0)
    if bridge > mtu:
        yield _note_pod_mtu(f"link {CNI_BRIDGE} has MTU {bridge}", sizes, mtu)
    for plugin, given in sizes.cni_mtus.items():
        if plugin in PLUGINS_WITH_MTU and (given or USUAL_MTU) > mtu:
            says = f"gives plugin {plugin} MTU {given}" if given else f"gives plugin {plugin} none"
            yield _note_pod_mtu(f"CNI configuration {sizes.cni_path} {says}", sizes, mtu)


def _note_pod_mtu(what: str, sizes: Sizes, mtu: int) -> Finding:
    return Finding(
        code=Code.POD_MTU,
        sentence=f"{what}, more than the {mtu} of {sizes.interface}: pods send packets that do not"
        " fit",
        remedy=f"set it to {mtu} (kg --cni keeps the file so) and start the pods anew",
    )


def judge_ports(ports: Ports) -> Outcome:
    """Of WireGuard's and the agent's HTTP."""
    findings = []
    if ports.udp_in_use and not ports.udp_is_ours:
        findings.append(
            Finding(
                code=Code.UDP_PORT_TAKEN,
                sentence=f"UDP port {ports.udp_port} is held by"
                f" {ports.udp_owner or 'somebody who cannot be seen'}, not by {ports.interface}",
                remedy="end that program, or give kg another --port, on all nodes",
            )
        )
    if ports.http_in_use and not ports.agent_is_there:
        findings.append(
            Finding(
                code=Code.HTTP_PORT_TAKEN,
                sentence=f"TCP port {ports.http_port} is held by"
                f" {ports.http_owner or 'somebody who cannot be seen'}, and no agent runs",
                remedy="end that program, or give kg another --listen",
            )
        )
    udp, http = (
        _describe_use(owner, in_use=in_use)
        for owner, in_use in (
            (ports.udp_owner, ports.udp_in_use),
            (ports.http_owner, ports.http_in_use),
        )
    )
    return Outcome(
        summary=f"UDP {ports.udp_port} {udp}, TCP {ports.http_port} {http}",
        findings=tuple(findings),
    )


def _describe_use(owner: str, *, in_use: bool) -> str:
    return f"in use by {owner or 'somebody'}" if in_use else "free"
