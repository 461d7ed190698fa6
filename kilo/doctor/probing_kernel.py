"""Looking at the kernel, its settings and the programs of the firewall. Changes nothing.

A kind of link is looked for in the lists of modules first. Only where those do not tell, one is
made, in a network namespace that is gone with the program that made it.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from kilo.daemonthread import run_in_daemon_thread
from kilo.dataplane.firewall import choose_kind, look_at_host
from kilo.dataplane.forwarding import LEGACY_SAVE, NFT
from kilo.dataplane.iptables import Kind
from kilo.dataplane.iptables_sets import IPSET
from kilo.dataplane.sysctls import can_write, read_value
from kilo.dataplane.tools import MissingToolError, Tool, first_line, run_tool
from kilo.dataplane.wireguard_process import PROGRAM
from kilo.doctor.checking import UnseenError
from kilo.doctor.findings import Outcome
from kilo.doctor.judging_kernel import (
    Kernel,
    Programs,
    Settings,
    judge_kernel,
    judge_programs,
    judge_settings,
)
from kilo.errors import DataplaneError
from kilo.mesh.host import HostFacts
from kilo.mesh.state import FORWARDING
from kilo.mesh.sysctls import name_setting
from kilo.mesh.view import RenderOptions

MODULES = Path("/lib/modules")
LOADED = Path("/sys/module")
PROBE = "kiloprobe"
_UNSHARE = Tool(program="unshare", package="util-linux")
_REFUSALS = ("Unknown device type", "Operation not supported", "Not supported")
_TAKEN = "File exists"


async def check_kernel(*, encapsulates: bool) -> Outcome:
    """WireGuard, and IPIP where the mesh ``encapsulates`` packets within a location."""
    return judge_kernel(
        Kernel(
            release=platform.release(),
            wireguard=await has_kind("wireguard"),
            ipip=await has_kind("ipip"),
            wireguard_go=shutil.which(PROGRAM) is not None,
            encapsulates=encapsulates,
        )
    )


async def has_kind(kind: str) -> bool | None:
    """Whether the kernel has links of a kind; None where only root could tell."""
    if await run_in_daemon_thread("modules", lambda: is_listed(kind, platform.release())):
        return True
    return await try_link(kind) if is_root() else None


def is_root() -> bool:
    """Whether this program may look at what belongs to root."""
    return os.geteuid() == 0


def is_listed(module: str, release: str) -> bool:
    """Whether the module is loaded, or among those of the running kernel. Blocks: file system."""
    return (LOADED / module).exists() or any(
        f"/{module}.ko" in path.read_text(errors="replace") for path in _list_indexes(release)
    )


def _list_indexes(release: str) -> Iterator[Path]:
    names = ("modules.builtin", "modules.dep")
    return (path for name in names if (path := MODULES / release / name).is_file())


async def try_link(kind: str) -> bool | None:
    """Whether one can be made, elsewhere; None where that cannot be tried."""
    try:
        status, _, complaint = await run_tool(
            _UNSHARE, "--net", "ip", "link", "add", PROBE, "type", kind
        )
    except DataplaneError:
        return None
    if status == 0 or _TAKEN in complaint:  # the module's own has the parameters of ours
        return True
    return False if any(text in complaint for text in _REFUSALS) else None


async def check_programs() -> Outcome:
    """Nft and iptables."""
    if not is_root():
        raise UnseenError("rules of the firewall are shown to root only")
    kind = choose_kind(await look_at_host())
    complaint, is_missing = await try_nft()
    return judge_programs(
        Programs(
            nft_complaint=complaint,
            nft_is_missing=is_missing,
            kind=kind or "",
            missing=tuple(list_missing(kind)) if kind else (),
        )
    )


async def try_nft() -> tuple[str, bool]:
    """What nft complains of, and whether it is missing."""
    try:
        status, _, complaint = await run_tool(NFT, "list", "tables")
    except MissingToolError as error:
        return str(error), True
    except DataplaneError as error:
        return str(error), False
    return (first_line(complaint) if status else ""), False


def list_missing(kind: Kind) -> Iterator[str]:
    """The packages that hold what writing such rules takes, and that are not installed."""
    programs = [IPSET]
    if kind is Kind.NFT:
        names = ("iptables-nft-restore", "ip6tables-nft-restore")
        programs += [Tool(program=name, package="iptables") for name in names]
    else:
        programs += LEGACY_SAVE.values()
    missing = {tool.package for tool in programs if shutil.which(tool.program) is None}
    yield from sorted(missing)
    if kind is Kind.LEGACY and find_spec("iptc") is None:
        yield "python-iptables"


async def check_settings(facts: HostFacts, interface: str) -> Outcome:
    """Forwarding, source validation, IPv6."""
    settings = await run_in_daemon_thread("sysctls", lambda: read_settings(facts, interface))
    return judge_settings(settings)


def read_settings(facts: HostFacts, interface: str) -> Settings:
    """Those that matter. Blocks: /proc/sys."""
    tunnel = RenderOptions().tunnel
    links = ("all", "default", interface, tunnel)
    names = [*FORWARDING.values(), *(name_setting(4, link, "rp_filter") for link in links)]
    names += [name_setting(6, link, "disable_ipv6") for link in (interface, "default")]
    values = {name: value for name in names if (value := read_value(name)) is not None}
    return Settings(
        interface=interface,
        tunnel=tunnel,
        values=values,
        fixed=frozenset(n for n in values if not can_write(n)) if is_root() else None,
        has_ipv6=any(address.interface.version == 6 for address in facts.addresses),
    )
