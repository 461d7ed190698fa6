"""The kernel, the programs and the settings that an agent needs: what was seen -> findings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kilo.doctor.findings import Code, Finding, Outcome, note_unseen
from kilo.mesh.state import FORWARDING
from kilo.mesh.sysctls import LOOSE, STRICT, name_setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What this kernel can do; None where that cannot be told without trying."""

    release: str
    wireguard: bool | None
    ipip: bool | None
    wireguard_go: bool
    """Whether the program is installed."""
    encapsulates: bool
    """Whether packets within a location travel in IPIP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Those that write the firewall."""

    nft_complaint: str = ""
    """Why nft does not work; empty where it does."""
    nft_is_missing: bool = False
    kind: str = ""
    """Of iptables, whose rules the host uses: ``nft`` or ``legacy``; empty where it uses none."""
    missing: tuple[str, ...] = ()
    """What writing rules of that kind takes and is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The kernel's, by the names that sysctl(8) has for them."""

    interface: str
    tunnel: str
    """The IPIP link."""
    values: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    fixed: Collection[str] | None = frozenset()
    """Those that cannot be written; None where that was not tried."""
    has_ipv6: bool = False
    """Whether the host has an IPv6 address that others can reach."""


def judge_kernel(kernel: Kernel) -> Outcome:
    """Of WireGuard and IPIP."""
    words = {True: "in the kernel", False: "not in the kernel", None: "not known"}
    outside = " (wireguard-go is installed)" if kernel.wireguard_go else ""
    return Outcome(
        summary=f"Linux {kernel.release}: WireGuard {words[kernel.wireguard]}{outside},"
        f" IPIP {words[kernel.ipip]}",
        findings=tuple(_list_kernel_findings(kernel)),
    )


def _list_kernel_findings(kernel: Kernel) -> Iterator[Finding]:
    if kernel.wireguard is False and not kernel.wireguard_go:
        yield Finding(
            code=Code.NO_WIREGUARD,
            sentence=f"kernel {kernel.release} has no WireGuard, and wireguard-go is not installed",
            remedy="install a kernel with the module wireguard, or the package wireguard-go",
        )
    elif kernel.wireguard is False:
        yield Finding(
            code=Code.USERSPACE_WIREGUARD,
            sentence=f"kernel {kernel.release} has no WireGuard; wireguard-go takes its place",
            remedy="nothing need be done; a kernel with the module wireguard is faster",
        )
    if kernel.ipip is False and kernel.encapsulates:
        yield Finding(
            code=Code.NO_IPIP,
            sentence=f"kernel {kernel.release} has no IPIP (module ipip), in which nodes of a"
            " location send each other packets in this mesh",
            remedy="load or install the module ipip, or give kg --encapsulate=never on all nodes",
        )
    ipip = kernel.ipip if kernel.encapsulates else False
    for what, known in (("WireGuard", kernel.wireguard), ("IPIP", ipip)):
        if known is None:
            yield note_unseen(
                f"whether the kernel has {what}", "no list of modules has it, and only root may try"
            )


def judge_programs(programs: Programs) -> Outcome:
    """Of nft and iptables."""
    uses = f"iptables ({programs.kind})" if programs.kind else "nftables"
    return Outcome(
        summary=f"rules are written by {uses}", findings=tuple(_list_program_findings(programs))
    )


def _list_program_findings(programs: Programs) -> Iterator[Finding]:
    if programs.kind and not programs.missing:
        return  # agents do without nft here
    if programs.nft_is_missing:
        yield Finding(
            code=Code.NO_NFT,
            sentence="nft is not installed: the agent cannot masquerade or guard anything",
            remedy="install the package nftables",
        )
    elif programs.nft_complaint:
        yield Finding(
            code=Code.NFT_REFUSED,
            sentence=f"nft does not work here: {programs.nft_complaint}",
            remedy="load the module nf_tables, and let the agent administer the network"
            " (CAP_NET_ADMIN)",
        )
    if programs.missing:
        yield Finding(
            code=Code.IPTABLES_INCOMPLETE,
            sentence=f"this host's rules are iptables' ({programs.kind}), and writing such rules"
            f" takes {', '.join(programs.missing)}, not installed here: the agent takes nftables,"
            " which cannot accept what those rules drop",
            remedy=f"install {', '.join(programs.missing)}",
        )


def judge_settings(settings: Settings) -> Outcome:
    """Of forwarding, source validation and IPv6."""
    shown = ", ".join(f"{n}={v}" for n, v in settings.values.items() if n in FORWARDING.values())
    findings = (*_list_forwarding(settings), *_list_strict(settings), *_list_families(settings))
    return Outcome(summary=shown or "none was found", findings=findings)


def _list_forwarding(settings: Settings) -> Iterator[Finding]:
    for version, name in FORWARDING.items():
        if settings.values.get(name) != "0" or (version == 6 and not settings.has_ipv6):
            continue
        if settings.fixed is None or name not in settings.fixed:
            yield Finding(
                code=Code.FORWARDING_OFF,
                sentence=f"{name} is 0: this host forwards no packets now",
                remedy="nothing need be done: the agent sets it to 1 where this node has pods or"
                " leads others",
            )
        else:
            yield Finding(
                code=Code.FORWARDING_FIXED_OFF,
                sentence=f"{name} is 0 and cannot be changed from here: pods and other nodes"
                " cannot be reached through this host",
                remedy=f"set {name}=1 on the host, or let the agent write to /proc/sys",
            )


def _list_strict(settings: Settings) -> Iterator[Finding]:
    everywhere = settings.values.get(name_setting(4, "all", "rp_filter"))
    for link in (settings.interface, settings.tunnel):
        name = name_setting(4, link, "rp_filter")
        if name not in settings.values:  # a link that is yet to be made will have the default
            name = name_setting(4, "default", "rp_filter")
        values = (everywhere, settings.values.get(name))
        if STRICT in values and LOOSE not in values and name in (settings.fixed or ()):
            yield Finding(
                code=Code.REVERSE_PATH_STRICT,
                sentence=f"{name} is {STRICT} or net.ipv4.conf.all.rp_filter is, and cannot be"
                f" changed from here: {link} drops packets whose answers leave by another link",
                remedy=f"set {name}={LOOSE} on the host, or let the agent write to /proc/sys",
            )


def _list_families(settings: Settings) -> Iterator[Finding]:
    names = (name_setting(6, link, "disable_ipv6") for link in (settings.interface, "default"))
    known = next((name for name in names if name in settings.values), None)
    if known is None or settings.values[known] == "1":
        why = "the kernel has none" if known is None else f"{known} is 1"
        yield Finding(
            code=Code.NO_IPV6,
            sentence=f"{settings.interface} can have no IPv6 addresses: {why}",
            remedy=f"set {known}=0 if the mesh is to carry IPv6"
            if known
            else "boot with IPv6 if the mesh is to carry it",
        )
