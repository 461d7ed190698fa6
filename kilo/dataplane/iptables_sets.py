"""The networks that iptables' rules ask about, in the kernel's sets (``ipset``).

One set for each role and family, all always there. Each change is one ``ipset restore``; that is
no transaction, but what is added comes first and what is removed last, and a set that is filled
anew takes the place of the old one at once: so no network is missing for a moment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import product

from kilo.dataplane.firewall_terms import ROLES, pick_networks
from kilo.dataplane.iptables_rules import name_set
from kilo.dataplane.tools import Tool, first_line, run_tool
from kilo.errors import DataplaneError
from kilo.mesh.model import IPNetwork
from kilo.mesh.shared import parse_network
from kilo.mesh.state import Firewall, sort_networks

IPSET = Tool(program="ipset", package="ipset")
MAX_ELEMENTS = 1 << 20
"""The kernel's default is 65,536; a set takes only the memory of what is in it."""
SWAP = {4: "kilo-swap4", 6: "kilo-swap6"}
"""Where a set is filled that is to take another's place."""

_KINDS = {4: "inet", 6: "inet6"}
_ROLE_SETS = {name_set(role, family): (role, family) for role, family in product(ROLES, _KINDS)}
NAMES = frozenset({*_ROLE_SETS, *SWAP.values()})
_OPTIONS = frozenset({"family", "hashsize", "maxelem", "bucketsize", "initval"})
"""What says nothing about which packets a set matches, or is compared."""
_EVERYTHING = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_PROMPT = "ipset> "


@dataclass(frozen=True, slots=True, kw_only=True)
class Sets:
    """What there is of ours."""

    names: frozenset[str] = frozenset()
    firewall: Firewall | None = None
    """The networks in them; None where they are not just as we make them."""


async def read_sets() -> Sets:
    """What there is now. Raises ``DataplaneError``."""
    status, output, complaint = await run_tool(IPSET, "list", "-name")
    if status != 0:
        raise DataplaneError(f"ipset: {_shorten(complaint)}")
    names = NAMES & set(output.split())
    if not names:
        return Sets()
    # Only ours: those of others may be large. A set that vanishes meanwhile ends the listing.
    questions = "".join(f"save {name}\n" for name in sorted(names))
    _, output, _ = await run_tool(IPSET, "-", stdin=f"{questions}quit\n")
    return Sets(names=names, firewall=parse_sets(output))


def parse_sets(saved: str) -> Firewall | None:
    """The networks of an ``ipset save``; None unless it has just our sets, as we make them."""
    found: dict[str, set[IPNetwork]] = {}
    for line in saved.splitlines():
        match line.replace(_PROMPT, "").split():
            case ["create", name, "hash:net", *options] if _is_ours(name, options):
                found[name] = set()
            case ["add", name, network] if name in found:
                found[name].add(parse_network(network))
            case []:
                continue
            case _:
                return None
    if found.keys() != _ROLE_SETS.keys():
        return None
    roles: dict[str, frozenset[IPNetwork]] = dict.fromkeys(ROLES, frozenset())
    for name, networks in found.items():
        role, family = _ROLE_SETS[name]
        roles[role] |= _join_halves(networks, family)
    return Firewall(**roles, clamp_links=frozenset())


def _is_ours(name: str, options: list[str]) -> bool:
    given = dict(zip(options[::2], options[1::2], strict=False))
    _, family = _ROLE_SETS.get(name, ("", 0))
    return (
        given.keys() <= _OPTIONS
        and given.get("family") == _KINDS.get(family)
        and given.get("maxelem") == str(MAX_ELEMENTS)
    )


def _join_halves(networks: set[IPNetwork], family: int) -> frozenset[IPNetwork]:
    halves = set(_split(_EVERYTHING[family]))
    return frozenset(networks - halves | {_EVERYTHING[family]} if halves <= networks else networks)


def _split(network: IPNetwork) -> Iterable[IPNetwork]:
    """As the sets take it: not everything at once."""
    return (network,) if network.prefixlen else network.subnets()


def write_sets(firewall: Firewall) -> str:
    """The script that makes all the sets, whatever is in those that are there."""
    lines = [
        line for family in SWAP for line in (_create(SWAP[family], family), f"flush {SWAP[family]}")
    ]
    for name, (role, family) in sorted(_ROLE_SETS.items()):
        networks = pick_networks(firewall, role, family)
        lines.append(_create(name, family))
        lines += _change(f"add {SWAP[family]}", networks)
        lines += [f"swap {SWAP[family]} {name}", f"flush {SWAP[family]}"]
    lines += [f"destroy {name}" for name in SWAP.values()]
    return _script(lines)


def _create(name: str, family: int) -> str:
    return f"create {name} hash:net family {_KINDS[family]} maxelem {MAX_ELEMENTS} -exist"


def write_additions(old: Firewall, new: Firewall) -> str:
    """The script that adds what is missing, ``known`` first: its networks are masqueraded least."""
    return _write_changes("add", new, old)


def write_removals(old: Firewall, new: Firewall) -> str:
    """The script that removes what is too much."""
    return _write_changes("del", old, new)


def _write_changes(verb: str, having: Firewall, lacking: Firewall) -> str:
    lines: list[str] = []
    for role, family in product(ROLES, _KINDS):
        has, lacks = (pick_networks(firewall, role, family) for firewall in (having, lacking))
        lines += _change(f"{verb} {name_set(role, family)}", _halve(has) - _halve(lacks))
    return _script(lines)


def _halve(networks: Collection[IPNetwork]) -> frozenset[IPNetwork]:
    return frozenset(half for network in networks for half in _split(network))


def _change(command: str, networks: Collection[IPNetwork]) -> list[str]:
    return [f"{command} {network} -exist" for network in sort_networks(_halve(networks))]


def _script(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


async def restore_sets(script: str) -> None:
    """Carry out a script, in one process. Raises ``DataplaneError``."""
    if not script:
        return
    status, _, complaint = await run_tool(IPSET, "restore", stdin=script)
    if status != 0:
        raise DataplaneError(f"ipset: {_shorten(complaint)}")


async def destroy_sets(names: Iterable[str]) -> None:
    """Remove sets that no rule names any more. Raises ``DataplaneError``."""
    await restore_sets(_script([f"destroy {name}" for name in sorted(names)]))


def _shorten(complaint: str) -> str:
    """Without ``ipset v7.17:`` before it."""
    return first_line(complaint).partition(": ")[2] or first_line(complaint)
