"""The Firewall in iptables' tables, for hosts whose rules are iptables', of either kind.

What differs between the kinds is which programs are run: the nf_tables kind is written by
``iptables-nft-restore``, the legacy one through ``python-iptables``. One process writes all rules
of a family, each table in one transaction; and no process where only networks come or go.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from kilo.dataplane.firewall_terms import NOT_OURS
from kilo.dataplane.forwarding import (
    LEGACY_SAVE,
    DroppingChain,
    find_dropping_chains,
    read_legacy_tables,
)
from kilo.dataplane.iptables_bases import list_chains, remove_chains
from kilo.dataplane.iptables_rules import (
    CHAINS,
    FORWARD,
    Rules,
    find_clamp_links,
    mark_makers,
    parse_saved,
    render_rules,
    write_rules,
)
from kilo.dataplane.iptables_sets import (
    destroy_sets,
    read_sets,
    restore_sets,
    write_additions,
    write_removals,
    write_sets,
)
from kilo.dataplane.rulesetage import find_legacy_age, find_nft_age
from kilo.dataplane.tools import Tool, first_line, run_tool
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.host import ForwardDrop
from kilo.mesh.state import Firewall

FAMILIES = (4, 6)
NOTHING = Rules()
_PYTHON = Tool(program=sys.executable, package="python3")
_LEGACY = "kilo.dataplane.iptables_legacy"
_PREFIX = {4: "iptables", 6: "ip6tables"}
_FOREIGN_TABLE = re.compile(r"^# Table `(nat|filter|mangle)' is incompatible", re.MULTILINE)


class Kind(StrEnum):
    """Which of the kernel's two places for iptables' rules."""

    NFT = "nft"
    LEGACY = "legacy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is of ours."""

    rules: Mapping[int, Rules]
    """Of each family."""
    sets: frozenset[str]
    firewall: Firewall | None
    """What that comes to."""


async def save_rules(kind: Kind, family: int) -> str:
    """All the tables of a family as text; empty if there are none. Raises ``DataplaneError``."""
    if kind is Kind.LEGACY:
        if not read_legacy_tables(family):
            return ""
        tool = LEGACY_SAVE[family]
    else:
        tool = Tool(program=f"{_PREFIX[family]}-nft-save", package="iptables")
    status, output, complaint = await run_tool(tool)
    if status != 0:
        raise DataplaneError(f"{tool.program}: {first_line(complaint)}")
    return output


def list_families() -> tuple[int, ...]:
    """Those that the host has; one without IPv6 is normal."""
    return tuple(f for f in FAMILIES if f == 4 or Path("/proc/sys/net/ipv6").exists())


class IPTables:
    """Reads and writes our rules of one kind, and the sets that they look into."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._known: dict[int, tuple[int | None, Rules]] = {}
        """What was read last of each family, and how old the rules were."""

    async def read(self) -> Firewall | None:
        """What the rules say; None if there are none, ``NOT_OURS`` if their shape is not ours.

        Raises ``DataplaneError`` if a program is missing or cannot tell.
        """
        return (await self._find()).firewall

    async def apply(self, change: Change) -> None:
        """Make the rules ``change.new``; raises ``DataplaneError``.

        From what is known only what differs is changed. If that is refused, because somebody
        touched it since it was read, and from anything else, all is made anew.
        """
        match change.old, change.new:
            case _, None:
                await self._remove()
            case Firewall() as old, Firewall() as new if old != NOT_OURS:
                try:
                    await self._change(old, new)
                except DataplaneError:
                    await self._replace(new)
            case _, Firewall() as new:
                await self._replace(new)
            case _:
                raise TypeError(f"not a change of the firewall: {change}")

    async def find_forward_drops(self) -> tuple[ForwardDrop, ...]:
        """See ``FirewallDriver.find_forward_drops``; of FORWARD, we jump from its first line."""
        chains = await find_dropping_chains()
        return tuple(chain.describe(overruled=self._stands_in(chain)) for chain in chains)

    async def remove_rules(self) -> None:
        """Leave only the sets, for the rules of the other kind. Raises ``DataplaneError``."""
        for family in list_families():
            await self._write(family, NOTHING)

    async def has_rules(self) -> bool:
        """Whether there are any of ours. Raises ``DataplaneError``."""
        return any([await self._read_rules(family) for family in list_families()])

    def _stands_in(self, chain: DroppingChain) -> bool:
        own = (self.kind, *FORWARD.hook_place)
        return own == (chain.kind, chain.table, chain.chain) and chain.family != "inet"

    async def _find(self) -> Found:
        rules = {family: await self._recall_rules(family) for family in list_families()}
        sets = await read_sets()
        firewall: Firewall | None = NOT_OURS
        if not sets.names and not any(rules.values()):
            firewall = None
        elif sets.firewall is not None:
            said = replace(sets.firewall, clamp_links=find_clamp_links(rules[4]))
            if all(rules[family].is_like(render_rules(said, family)) for family in rules):
                firewall = said
        return Found(rules=rules, sets=sets.names, firewall=firewall)

    async def _recall_rules(self, family: int) -> Rules:
        """As they were read last, if none of anybody's has been changed since."""
        age = await find_nft_age() if self.kind is Kind.NFT else find_legacy_age()
        known_age, rules = self._known.get(family, (None, NOTHING))
        if age is None or age != known_age:
            rules = await self._read_rules(family)
            self._known[family] = age, rules
        return rules

    async def _read_rules(self, family: int) -> Rules:
        saved = await save_rules(self.kind, family)
        foreign = _FOREIGN_TABLE.search(saved)
        if foreign:
            raise DataplaneError(
                f"{_PREFIX[family]}: table {foreign[1]} holds rules that are nftables' own, and"
                " iptables cannot read it; --firewall=nftables does without"
            )
        return parse_saved(saved)

    async def _change(self, old: Firewall, new: Firewall) -> None:
        stale = [f for f in list_families() if render_rules(old, f) != render_rules(new, f)]
        if not stale:
            await restore_sets(write_additions(old, new) + write_removals(old, new))
            return
        await restore_sets(write_additions(old, new))
        for family in stale:
            await self._write(family, render_rules(new, family))
        # After the rules: a guard whose set is empty would let nobody in.
        await restore_sets(write_removals(old, new))

    async def _replace(self, new: Firewall) -> None:
        try:
            await restore_sets(write_sets(new))
        except DataplaneError:
            # Something else than our sets has their names; what needs it goes first.
            await self._remove()
            await restore_sets(write_sets(new))
        for family in list_families():
            await self._write(family, render_rules(new, family))

    async def _remove(self) -> None:
        await self.remove_rules()
        await destroy_sets((await read_sets()).names)

    async def _write(self, family: int, wanted: Rules) -> None:
        found = await self._read_rules(family)
        if self.kind is Kind.NFT:
            wanted = await self._mark_makers(family, found, wanted)
            doomed = found.makers - wanted.chains.keys()
            if doomed:
                # They go together with what was made for them, or remind us of it.
                await self._restore(family, write_rules(found, found.cut_off(doomed)))
                await remove_chains(family, doomed)
                found = await self._read_rules(family)
        await self._restore(family, write_rules(found, wanted))

    async def _mark_makers(self, family: int, found: Rules, wanted: Rules) -> Rules:
        makers = found.makers
        if wanted.chains.keys() - found.chains.keys():
            present = await list_chains(family)
            makers |= {
                place
                for place in wanted.chains.keys() - found.chains.keys()
                if present is not None and CHAINS[place].hook_place not in present
            }
        return mark_makers(wanted, makers)

    async def _restore(self, family: int, script: str) -> None:
        if not script:
            return
        self._known.clear()
        tool, arguments = self._choose_writer(family)
        status, _, complaint = await run_tool(tool, *arguments, stdin=script)
        if status != 0:
            raise DataplaneError(f"{_PREFIX[family]}-{self.kind}: {first_line(complaint)}")

    def _choose_writer(self, family: int) -> tuple[Tool, tuple[str, ...]]:
        if self.kind is Kind.NFT:
            program = f"{_PREFIX[family]}-nft-restore"
            return Tool(program=program, package="iptables"), ("--noflush",)
        # -P: whatever is called kilo in the working directory is not us.
        return _PYTHON, ("-P", "-m", _LEGACY, str(family))
