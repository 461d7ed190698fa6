"""The chains of the nf_tables kind that iptables itself makes when a first rule needs them.

It never takes them away again. So a chain of ours that needed one says so, for whoever removes it
to remove the other as well, if nobody has used that since.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from itertools import groupby
from typing import Any

from kilo.dataplane.forwarding import NFT
from kilo.dataplane.iptables_rules import CHAINS, Place
from kilo.dataplane.tools import MissingToolError, run_tool

_WORDS = {4: "ip", 6: "ip6"}


async def list_chains(family: int) -> frozenset[Place] | None:
    """All there are in the family's tables; None where there is no nft to ask."""
    listing = await _list("chains", _WORDS[family])
    if listing is None:
        return None
    chains = (entry["chain"] for entry in listing if "chain" in entry)
    return frozenset((chain["table"], chain["name"]) for chain in chains)


async def remove_chains(family: int, places: Collection[Place]) -> None:
    """Delete chains of ours that nothing jumps to any more, in one transaction with what was made
    for them: the chains that jumped to them, if empty, and their tables, if without anything else.

    Where that fails, because there is no nft or somebody has just begun to use one, all stays.
    """
    lines: list[str] = []
    for table, group in groupby(sorted(places), key=lambda place: place[0]):
        listing = await _list("table", _WORDS[family], table) or []
        ours = {name for _, name in group}
        hooks = {CHAINS[(table, name)].hook for name in ours}
        doomed = sorted(ours | _find_unused(listing, hooks))
        # Only ours are flushed: the kernel refuses to delete one in which somebody now has a rule.
        lines += [f"flush chain {_WORDS[family]} {table} {chain}" for chain in sorted(ours)]
        lines += [f"delete chain {_WORDS[family]} {table} {chain}" for chain in doomed]
        if not _list_rest(listing, doomed):
            lines.append(f"delete table {_WORDS[family]} {table}")
    with suppress(MissingToolError):
        await run_tool(NFT, "-f", "-", stdin="".join(f"{line}\n" for line in lines))


def _find_unused(listing: list[Mapping[str, Any]], candidates: Collection[str]) -> set[str]:
    chains = [entry["chain"] for entry in listing if "chain" in entry]
    used = {entry["rule"]["chain"] for entry in listing if "rule" in entry}
    empty = {chain["name"] for chain in chains if chain.get("policy") == "accept"} - used
    return empty & set(candidates)


def _list_rest(listing: list[Mapping[str, Any]], doomed: Collection[str]) -> list[object]:
    """What else is in a table."""
    return [
        entry
        for entry in listing
        if entry.keys().isdisjoint({"metainfo", "table"})
        and entry.get("chain", {}).get("name") not in doomed
        and entry.get("rule", {}).get("chain") not in doomed
    ]


async def _list(*what: str) -> list[Mapping[str, Any]] | None:
    try:
        status, output, _ = await run_tool(NFT, "-j", "list", *what)
    except MissingToolError:
        return None
    return list(json.loads(output)["nftables"]) if status == 0 else None
