"""The Firewall as an nftables table of our own, ``inet kilo``, which nobody else writes to.

Its chains and rules are fixed (``nftables_shape.py``); only its sets know the mesh, one for each
role and family, so that the number of rules does not grow.

Every write is one transaction of the kernel: it happens whole or, if nft fails or is killed,
not at all. The chains stay while the mesh changes, for where a chain takes another's place, a
packet in between may meet neither's rules.

An ``accept`` of ours cannot undo a drop in another program's chain at the same hook (nftables
asks them all); hosts whose FORWARD chain drops need the iptables driver.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from kilo.dataplane.firewall_terms import (
    IPIP,
    LINKS,
    LOCAL,
    NOT_OURS,
    ROLES,
    pick_family,
    pick_networks,
)
from kilo.dataplane.forwarding import NFT, find_dropping_chains
from kilo.dataplane.nftables_shape import (
    CHAINS,
    CLAMP,
    CLAMP_LISTED,
    GUARDED,
    PLAIN_SETS,
    RULES,
    SHAPE,
    TABLE,
    WORDS,
    Chain,
    Rule,
    Shape,
)
from kilo.dataplane.rulesetage import find_nft_age
from kilo.dataplane.tools import first_line, run_tool
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.host import ForwardDrop
from kilo.mesh.model import IPNetwork
from kilo.mesh.shared import parse_network
from kilo.mesh.state import Firewall, sort_networks

FEW_REMOVALS = 16
"""More networks to remove from a set than this, and filling it anew is faster: nft 1.0.6 needs
10 ms for each out of 5,000 (10,000 out of 10,000 took it 7 s), and 120 ms for all anew."""

# Writing


def write_table(firewall: Firewall) -> str:
    """The script that puts the whole table in place of whatever bears its name."""
    lines = [*_removal(), f"add table inet {TABLE}"]
    lines += [_declare_set(name, kind) for name, kind in sorted(SHAPE.sets)]
    lines += [f"add {chain}" for chain in CHAINS]
    lines += [f"add {rule}" for rule in RULES]
    for family in WORDS:
        lines += _change_elements("add", f"local{family}", pick_family(LOCAL, family))
    return _script(lines) + write_difference(Firewall(), firewall)


def _declare_set(name: str, kind: str) -> str:
    flags = "" if (name, kind) in PLAIN_SETS else " flags interval;"
    return f"add set inet {TABLE} {name} {{ type {kind};{flags} }}"


def write_difference(old: Firewall, new: Firewall) -> str:
    """The script that changes only the networks that differ; what goes makes room first."""
    lines = []
    for role, family in product(ROLES, WORDS):
        had, wanted = (pick_networks(firewall, role, family) for firewall in (old, new))
        name = f"{role}{family}"
        if len(had - wanted) > FEW_REMOVALS:
            lines += [f"flush set inet {TABLE} {name}", *_change_elements("add", name, wanted)]
        else:
            lines += _change_elements("delete", name, had - wanted)
            lines += _change_elements("add", name, wanted - had)
    lines += _change_links("delete", old.clamp_links - new.clamp_links)
    lines += _change_links("add", new.clamp_links - old.clamp_links)
    if bool(old.tunnel_sources) != bool(new.tunnel_sources):
        verb = "add" if new.tunnel_sources else "delete"
        lines.append(f"{verb} element inet {TABLE} {GUARDED[0]} {{ {IPIP} }}")
    return _script(lines)


def _removal() -> list[str]:
    """The table gone, there or not: nft before 1.0.7 has no ``destroy``, so add it first."""
    return [f"add table inet {TABLE}", f"delete table inet {TABLE}"]


def _change_elements(verb: str, name: str, networks: Iterable[IPNetwork]) -> list[str]:
    elements = ", ".join(map(str, sort_networks(networks)))
    return [f"{verb} element inet {TABLE} {name} {{ {elements} }}"] if elements else []


def _change_links(verb: str, links: Iterable[str]) -> list[str]:
    elements = ", ".join(f'"{link}"' for link in sorted(links))
    return [f"{verb} element inet {TABLE} {LINKS} {{ {elements} }}"] if elements else []


def _script(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


# Reading


class _ForeignError(Exception):
    """The table holds something that we never write."""


def parse_listing(listing: Mapping[str, Any]) -> Firewall:
    """From the ``nft -j list table`` of our table; ``NOT_OURS`` if its shape is not ours."""
    try:
        objects = _group(listing["nftables"])
        found = _parse_shape(objects)
        sets = {entry["name"]: entry for entry in objects["set"]}
        guarded = sets.pop(GUARDED[0]).get("elem", [])
        links = _parse_links(sets.pop(LINKS))
        networks = {name: _parse_elements(entry) for name, entry in sets.items()}
    except (_ForeignError, AttributeError, KeyError, TypeError, ValueError):
        return NOT_OURS
    if found != SHAPE or networks["local4"] | networks["local6"] != LOCAL:
        return NOT_OURS
    roles = {role: networks[f"{role}4"] | networks[f"{role}6"] for role in ROLES}
    firewall = Firewall(**roles, clamp_links=links)
    return firewall if len(guarded) == int(bool(firewall.tunnel_sources)) else NOT_OURS


def _group(listing: list[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {"table": [], "chain": [], "set": [], "rule": []}
    for entry in listing:
        for kind, value in entry.items():
            if kind != "metainfo":
                groups[kind].append(value)
    return groups


def _parse_shape(objects: Mapping[str, list[Mapping[str, Any]]]) -> Shape:
    if any("flags" in table for table in objects["table"]):
        raise _ForeignError("a table that sleeps, or has an owner")
    rules = [_parse_rule(entry) for entry in objects["rule"]]
    return Shape(
        chains=frozenset(map(_parse_chain, objects["chain"])),
        rules=tuple(sorted(rules, key=lambda rule: rule.chain)),
        sets=frozenset(map(_parse_set, objects["set"])),
    )


def _parse_chain(entry: Mapping[str, Any]) -> Chain:
    if entry["policy"] != "accept":
        raise _ForeignError("a chain that drops")
    return Chain(entry["name"], entry["type"], entry["hook"], entry["prio"])


def _parse_set(entry: Mapping[str, Any]) -> tuple[str, str]:
    found = entry["name"], entry["type"]
    if found in PLAIN_SETS and "flags" not in entry:
        return found
    # One flag is a list of one up to nft 1.1.0, a plain string after it.
    if entry["flags"] not in ("interval", ["interval"]) or "auto-merge" in entry:
        raise _ForeignError("a set of another kind")
    return found


def _parse_rule(entry: Mapping[str, Any]) -> Rule:
    match, *statements = entry["expr"]
    condition = match["match"]
    if condition["op"] != "==":
        raise _ForeignError("a rule with another comparison")
    left, verdict = _parse_left(condition["left"]), _parse_verdict(statements)
    return Rule(entry["chain"], left, condition["right"], verdict, entry["comment"])


def _parse_verdict(statements: list[Mapping[str, Any]]) -> str:
    if statements == CLAMP_LISTED:
        return CLAMP
    (verdict,) = statements
    ((word, options),) = verdict.items()
    if options is not None:
        raise _ForeignError("a verdict with options")
    return word


def _parse_left(left: Mapping[str, Any]) -> str:
    match left:
        case {"meta": {"key": str(key)}}:
            return key
        case {"payload": {"protocol": str(protocol), "field": str(field)}}:
            return f"{protocol} {field}"
        case _:
            raise _ForeignError("a rule that looks at something else")


def _parse_links(entry: Mapping[str, Any]) -> frozenset[str]:
    elements = entry.get("elem", [])
    links = frozenset(elements if isinstance(elements, list) else [elements])
    if not all(isinstance(link, str) for link in links):
        raise _ForeignError("a link with extras")
    return links


def _parse_elements(entry: Mapping[str, Any]) -> frozenset[IPNetwork]:
    elements = entry.get("elem", [])
    return frozenset(map(_parse_element, elements if isinstance(elements, list) else [elements]))


def _parse_element(element: object) -> IPNetwork:
    match element:
        case str(address):
            return parse_network(address)
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            return parse_network(f"{address}/{length}")
        case _:
            raise _ForeignError("a range, or an element with extras")


# The process


class NFTables:
    """Reads and writes our table by way of the ``nft`` program."""

    is_transactional = True

    def __init__(self) -> None:
        self._known: tuple[int, Firewall | None] | None = None
        """The age of the ruleset and what the table says while it is of that age."""

    async def read(self) -> Firewall | None:
        """What the table says; None if there is none, ``NOT_OURS`` if its shape is not ours.

        Raises ``DataplaneError`` if nft is missing or cannot tell.
        """
        age = await find_nft_age()
        if self._known is None or self._known[0] != age:
            # The age was asked for first: what changes during the listing makes it another one.
            found = await list_table()
            self._known = None if age is None else (age, found)
            return found
        return self._known[1]

    async def apply(self, change: Change) -> None:
        """Make the table ``change.new``, in one transaction; raises ``DataplaneError``.

        A known table has only those networks changed that differ. If that is refused, because
        somebody touched the table since it was read, it is replaced whole.
        """
        self._known = None
        await _change_table(change)

    async def find_forward_drops(self) -> tuple[ForwardDrop, ...]:
        """See ``FirewallDriver.find_forward_drops``; nftables asks them all, whatever we say."""
        return tuple(chain.describe(overruled=False) for chain in await find_dropping_chains())


async def list_table() -> Firewall | None:
    """What the table says now, as ``NFTables.read``."""
    status, output, complaint = await run_tool(NFT, "-j", "list", "table", "inet", TABLE)
    if status == 0:
        return _decode(output)
    # Newer ones append "; did you mean ...?" where another table's name is like ours.
    if complaint.startswith("Error: No such file or directory"):
        return None
    raise DataplaneError(f"nft: list table inet {TABLE}: {first_line(complaint)}")


async def _change_table(change: Change) -> None:
    match change.old, change.new:
        case _, None:
            await _transact(_script(_removal()))
        case Firewall() as old, Firewall() as new if old != NOT_OURS:
            status, _, _ = await run_tool(NFT, "-f", "-", stdin=write_difference(old, new))
            if status != 0:
                await _transact(write_table(new))
        case _, Firewall() as new:
            await _transact(write_table(new))
        case _:
            raise TypeError(f"not a change of the firewall: {change}")


async def _transact(script: str) -> None:
    status, _, complaint = await run_tool(NFT, "-f", "-", stdin=script)
    if status != 0:
        raise DataplaneError(f"nft: {first_line(complaint)}")


def _decode(output: str) -> Firewall:
    try:
        listing: Mapping[str, Any] = json.loads(output)
    except ValueError as error:
        raise DataplaneError(f"nft: list table inet {TABLE}: answered no JSON") from error
    return parse_listing(listing)
