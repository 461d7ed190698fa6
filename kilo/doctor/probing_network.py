"""Looking at links, the firewall and ports. Changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kilo.daemonthread import run_in_daemon_thread
from kilo.dataplane.cni import parse_config, read_content
from kilo.dataplane.firewall import Choice, choose_driver
from kilo.dataplane.forwarding import list_nft
from kilo.dataplane.hostfacts import HostnameLookup, read_facts
from kilo.dataplane.iptables import Kind, list_families, save_rules
from kilo.dataplane.nftables_shape import TABLE
from kilo.dataplane.wireguard import WireGuard
from kilo.doctor.checking import UnseenError
from kilo.doctor.findings import Outcome
from kilo.doctor.inputchains import drops_port, read_listing, read_saved
from kilo.doctor.judging_network import (
    Filters,
    Ports,
    Sizes,
    judge_filters,
    judge_ports,
    judge_sizes,
)
from kilo.doctor.probing_kernel import is_root
from kilo.errors import DataplaneError
from kilo.keyfile import generate_private_key
from kilo.listening import parse_listen
from kilo.mesh.host import HostFacts
from kilo.portowner import Protocol, describe_owner, find_sockets

INPUT = "INPUT"
"""The chain of iptables' table ``filter``."""
NAMES = {4: "ip", 6: "ip6"}
_FAMILIES = frozenset({*NAMES.values(), "inet"})


async def look_at_links() -> HostFacts:
    """The host's links and addresses; nobody's name is looked up."""
    return await read_facts(HostnameLookup("", on_change=lambda: None, resolve=lambda _: ()))


async def check_filters(port: int) -> Outcome:
    """FORWARD and INPUT."""
    if not is_root():
        raise UnseenError("rules of the firewall are shown to root only")
    driver = await choose_driver(Choice.AUTO)
    drops = await driver.find_forward_drops()
    try:
        firewall = await driver.read()
    except DataplaneError:
        firewall = None  # another check tells what does not work
    return judge_filters(
        Filters(
            port=port,
            forward_drops=drops,
            accepts_forwarded=firewall is not None and bool(firewall.forward),
            input_drops=tuple(await list_input_drops(port)),
        )
    )


async def list_input_drops(port: int) -> list[str]:
    """The chains at the input hook that let packets to a UDP port in by no rule."""
    saved = {(kind, f): await _save(kind, f) for kind in Kind for f in list_families()}
    used = {place: text for place, text in saved.items() if f":{INPUT} " in text}
    found = [
        f"chain {INPUT} of table {'legacy ' if kind is Kind.LEGACY else ''}{NAMES[family]} filter"
        for (kind, family), text in used.items()
        if drops_port(read_saved(text, port), INPUT)
    ]
    # nft lists the chains of iptables' newer kind as well, in words that tell less.
    read = {(NAMES[family], "filter", INPUT) for kind, family in used if kind is Kind.NFT}
    return [*found, *[chain async for chain in _list_nft_drops(port, read)]]


async def _list_nft_drops(port: int, read: Collection[tuple[str, str, str]]) -> AsyncIterator[str]:
    async for chain in _list_input_chains():
        place = (chain["family"], chain["table"], chain["name"])
        if place in read or place[:2] == ("inet", TABLE):
            continue
        listing = await list_nft("--terse", "list", "table", *place[:2])
        if drops_port(read_listing(listing, place[2], port), place[2]):
            yield f"chain {place[2]} of table {place[0]} {place[1]}"


async def _save(kind: Kind, family: int) -> str:
    try:
        return await save_rules(kind, family)
    except DataplaneError:
        return ""  # not installed, so nobody uses it


async def _list_input_chains() -> AsyncIterator[Mapping[str, Any]]:
    for entry in await list_nft("list", "chains"):
        chain = entry.get("chain", {})
        if chain.get("hook") == "input" and chain["family"] in _FAMILIES:
            yield chain


async def check_sizes(facts: HostFacts, interface: str, cni_path: Path) -> Outcome:
    """MTUs, and the file that has the pods'."""
    mtus, complaint = await run_in_daemon_thread("CNI", partial(read_cni_mtus, cni_path))
    return judge_sizes(
        Sizes(
            interface=interface,
            facts=facts,
            cni_path=str(cni_path),
            cni_mtus=mtus,
            cni_complaint=complaint,
        )
    )


def read_cni_mtus(path: Path) -> tuple[dict[str, int | None], str]:
    """Type of plugin -> its MTU, of those that assign addresses, and what is wrong with the file;
    a missing one has none. Blocks: file system.
    """
    try:
        content = read_content(path)
        config = parse_config(path, content) if content is not None else {"plugins": []}
    except DataplaneError as error:
        return {}, str(error)
    plugins = [p for p in config.get("plugins", [config]) if isinstance(p, dict) and "ipam" in p]
    return {str(p.get("type")): _read_mtu(p) for p in plugins}, ""


def _read_mtu(plugin: Mapping[str, Any]) -> int | None:
    mtu = plugin.get("mtu")
    return mtu if isinstance(mtu, int) and mtu > 0 else None


async def check_ports(
    interface: str, udp_port: int, listen: str, *, agent_is_there: bool
) -> Outcome:
    """WireGuard's and the agent's."""
    _, http_port = parse_listen(listen)
    if not is_root():
        raise UnseenError("who holds a port is shown to root only")
    device, _ = await WireGuard(interface, generate_private_key()).read()
    udp, http = [
        await run_in_daemon_thread("ports", partial(look_at_port, protocol, port))
        for protocol, port in ((Protocol.UDP, udp_port), (Protocol.TCP, http_port))
    ]
    return judge_ports(
        Ports(
            interface=interface,
            udp_port=udp_port,
            udp_in_use=udp is not None,
            udp_is_ours=device is not None and device.listen_port == udp_port,
            udp_owner=udp or "",
            http_port=http_port,
            http_in_use=http is not None,
            http_owner=http or "",
            agent_is_there=agent_is_there,
        )
    )


def look_at_port(protocol: Protocol, port: int) -> str | None:
    """Who has it, "" where that is not to be seen; None where it is free. Blocks: all of /proc."""
    in_use = any(True for _ in find_sockets(protocol, port))
    return describe_owner(protocol, port) if in_use else None
