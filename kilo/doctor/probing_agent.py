"""Looking at the agent, its key, and at what agents have made. Changes nothing."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kilo.agentlock import LOCK
from kilo.daemonthread import run_in_daemon_thread
from kilo.dataplane.iptables import Kind, list_families, save_rules
from kilo.dataplane.iptables_rules import parse_saved
from kilo.dataplane.links import find_link, read_link_names
from kilo.dataplane.netlink import (
    FRA_PROTOCOL,
    FRA_TABLE,
    RULE_HEADER,
    RULE_PROTOCOL,
    dump_rules,
)
from kilo.dataplane.nftables import NFTables
from kilo.dataplane.nlsocket import (
    NetlinkSocket,
    parse_attributes,
    read_u32,
    run_with_socket,
    unpack,
)
from kilo.dataplane.routes import ROUTE_PROTOCOL, RouteEntry, dump_entries
from kilo.dataplane.tunnel import KIND, MARK
from kilo.dataplane.wireguard_search import KINDS, find_interfaces
from kilo.doctor.checking import UnseenError
from kilo.doctor.findings import Outcome
from kilo.doctor.judging_agent import Agent, KeyFile, Leftovers, judge_key, judge_leftovers
from kilo.doctor.probing_kernel import is_root
from kilo.errors import ConfigError, DataplaneError, KiloError
from kilo.keyfile import load_private_key
from kilo.log import register_secret
from kilo.mesh.overview import AgentView
from kilo.mesh.state import ENCAPSULATION_TABLE
from kilo.mesh.view import RenderOptions

LOCKS = Path("/proc/locks")
PROCESS = Path("/proc/self")
STATIC = 4
"""RTPROT_STATIC: the administrator's routes, and those of Kilo's own agent (spec section 5)."""
_OUR_SETS = "kilo-"
"""What the names of the sets begin with that rules of ours, and not of Kilo's, look into."""


class RuleEntry(NamedTuple):
    """A policy rule, as far as it tells whose it is."""

    table: int
    protocol: int


def find_holder(state: Path) -> str:
    """Who holds the agents' lock, in its own words; empty where nobody does. Blocks.

    Read, not tried: an agent that starts at this moment would find it taken, by us.
    """
    path = state / LOCK
    try:
        file = rf"{_find_device(path) or '[0-9a-f]+:[0-9a-f]+'}:{path.stat().st_ino}"
        is_held = re.search(rf"FLOCK .* {file} ", LOCKS.read_text(encoding="ascii"))
        return (path.read_text(errors="replace").strip() or "unknown") if is_held else ""
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UnseenError(f"{path}: {error.strerror}") from error


def _find_device(path: Path) -> str:
    """What the list of locks calls the device that a file is on; empty where it cannot be told.

    Of its mount, for ``stat`` tells another one for each subvolume of btrfs.
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        info = (PROCESS / "fdinfo" / str(descriptor)).read_text(encoding="ascii")
    finally:
        os.close(descriptor)
    mount = re.search(r"^mnt_id:\s*(\d+)$", info, re.MULTILINE)
    mounts = (PROCESS / "mountinfo").read_text(errors="replace")
    found = mount and re.search(rf"^{mount[1]} \d+ (\d+):(\d+) ", mounts, re.MULTILINE)
    return f"{int(found[1]):02x}:{int(found[2]):02x}" if found else ""


async def look_at_agent(state: Path, address: str, ask: Callable[[str], AgentView | None]) -> Agent:
    """Who runs here, and what the agent at that address says of itself.

    ``ask`` blocks; its ``KiloError`` says why none answers.
    """
    holder = await run_in_daemon_thread("lock", partial(find_holder, state))
    try:
        view = await run_in_daemon_thread("agent", partial(ask, address))
    except KiloError as error:
        return Agent(holder=holder, address=address, silence=str(error))
    silence = "" if view else f"{address} tells nothing of itself"
    return Agent(holder=holder, address=address, view=view, silence=silence)


async def check_key(path: Path) -> Outcome:
    """The private key's file."""
    return judge_key(await run_in_daemon_thread("key", partial(read_key_file, path)))


def read_key_file(path: Path) -> KeyFile:
    """How the file is; its content is not kept. Blocks: file system."""
    complaint = ""
    try:
        mode = path.stat().st_mode & 0o7777
        load_private_key(path)
    except FileNotFoundError:
        return KeyFile(path=str(path), exists=False)
    except ConfigError as error:
        if isinstance(error.__cause__, PermissionError):
            raise UnseenError(str(error)) from error
        complaint = str(error)
    except PermissionError as error:
        raise UnseenError(f"{path}: {error.strerror}") from error
    return KeyFile(path=str(path), exists=True, mode=mode, complaint=complaint)


async def check_leftovers(interface: str, key: Path, agent: Agent) -> Outcome:
    """What agents have made."""
    if not is_root():
        raise UnseenError("rules of the firewall and keys of links are shown to root only")
    links = await find_own_links(key)
    own = [
        *(f"link {name} with this host's key" for name in links),
        *await run_with_socket(_list_own_routes),
        *[thing async for thing in _list_chains(own=True)],
    ]
    others = [
        *await _list_others_links(interface, links, agent),
        *await run_with_socket(partial(_list_others_routes, interface=interface)),
        *[thing async for thing in _list_chains(own=False)],
    ]
    return judge_leftovers(Leftovers(own=tuple(own), others=tuple(others), agent=str(agent)))


async def find_own_links(key: Path) -> list[str]:
    """The WireGuard interfaces that have this host's key; none where it has none."""
    try:
        private_key = await run_in_daemon_thread("key", partial(load_private_key, key))
    except (ConfigError, FileNotFoundError):
        return []
    register_secret(private_key)
    return await find_interfaces(private_key)


async def _list_others_links(interface: str, own: Collection[str], agent: Agent) -> list[str]:
    """Of a guest, who has another key, the link is minded as well."""
    link = await run_with_socket(partial(find_link, name=interface))
    if link is None or link.kind not in KINDS or interface in own or str(agent):
        return []
    return [f"link {interface} with another key than this host's"]


def _list_own_routes(netlink: NetlinkSocket) -> list[str]:
    routes = list(_dump(netlink, protocol=ROUTE_PROTOCOL))
    found = [f"route {entry.key[1]} of table {entry.key[0]}" for entry in routes]
    rules = [rule for rule in dump_rules(netlink, decode_rule) if rule.protocol == RULE_PROTOCOL]
    tunnel = find_link(netlink, RenderOptions().tunnel)
    if tunnel is not None and (tunnel.kind, tunnel.alias) == (KIND, MARK):
        found.append(f"tunnel {tunnel.name}")
    return found + [f"rule that looks up table {rule.table}" for rule in rules]


def _list_others_routes(netlink: NetlinkSocket, *, interface: str) -> list[str]:
    """Kilo marks neither: they are told by its table, and by links that only agents make."""
    links = {interface} if find_link(netlink, interface) else set()
    found = [
        f"route {entry.key[1]} of table {entry.key[0]}"
        for entry in _dump(netlink, protocol=STATIC)
        if entry.key[0] == ENCAPSULATION_TABLE or (entry.route and entry.route.link in links)
    ]
    rules = [r for r in dump_rules(netlink, decode_rule) if r.table == ENCAPSULATION_TABLE]
    foreign = [rule for rule in rules if rule.protocol != RULE_PROTOCOL]
    return found + [f"rule that looks up table {rule.table}" for rule in foreign]


def _dump(netlink: NetlinkSocket, *, protocol: int) -> Iterator[RouteEntry]:
    return dump_entries(netlink, read_link_names(netlink), protocol=protocol)


def decode_rule(body: memoryview) -> RuleEntry:
    """A listed rule; ``DataplaneError`` for a body that no kernel writes."""
    table = unpack(RULE_HEADER, body)[4]
    attributes = parse_attributes(body, RULE_HEADER.size)
    if FRA_TABLE in attributes:
        table = read_u32(attributes[FRA_TABLE])
    protocol = bytes(attributes.get(FRA_PROTOCOL, b"\0"))[0]
    return RuleEntry(table=table, protocol=protocol)


async def _list_chains(*, own: bool) -> AsyncIterator[str]:
    """Those of our names; what rules look into tells ours and Kilo's apart."""
    for kind in Kind:
        for family in list_families():
            for name in await _find_chains(kind, family, own=own):
                yield f"chain {name} of {'ip6' if family == 6 else 'ip'}tables ({kind})"
    if own and await _has_table():
        yield "table inet kilo of nftables"


async def _find_chains(kind: Kind, family: int, *, own: bool) -> list[str]:
    try:
        saved = await save_rules(kind, family)
    except DataplaneError:
        return []  # not installed, so nobody uses it
    chains = parse_saved(saved).chains
    is_ours = any(_OUR_SETS in word for lines in chains.values() for line in lines for word in line)
    return sorted(name for _, name in chains) if chains and is_ours is own else []


async def _has_table() -> bool:
    try:
        return await NFTables().read() is not None
    except DataplaneError:
        return False  # another check tells what does not work
