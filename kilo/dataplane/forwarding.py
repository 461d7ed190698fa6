"""Which chains of other programs drop forwarded packets that nobody else has accepted.

nftables asks every chain at a hook, and legacy iptables besides: an accept in one of them does not
keep the next from dropping. So these are the chains in which an accept of ours would have to stand.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kilo.dataplane.nftables_shape import TABLE
from kilo.dataplane.tools import Tool, run_tool
from kilo.errors import DataplaneError
from kilo.mesh.host import ForwardDrop

NFT = Tool(program="nft", package="nftables")
LEGACY_SAVE = {
    4: Tool(program="iptables-legacy-save", package="iptables"),
    6: Tool(program="ip6tables-legacy-save", package="iptables"),
}
_LEGACY_TABLES = {4: "ip_tables_names", 6: "ip6_tables_names"}
_VERSIONS = {"ip": frozenset({4}), "ip6": frozenset({6}), "inet": frozenset({4, 6})}
_NO_MATCHES = frozenset({"counter", "log"})
_FINAL_TARGETS = ("DROP", "REJECT")


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppingChain:
    """A base chain at the forward hook."""

    kind: str
    """``nft`` or ``legacy``."""
    family: str
    """``ip``, ``ip6`` or ``inet``."""
    table: str
    chain: str

    def describe(self, *, overruled: bool) -> ForwardDrop:
        """As others are told of it."""
        return ForwardDrop(chain=str(self), families=_VERSIONS[self.family], overruled=overruled)

    def __str__(self) -> str:
        family = self.family if self.kind == "nft" else f"legacy {self.family}"
        return f"chain {self.chain} of table {family} {self.table}"


async def find_dropping_chains() -> tuple[DroppingChain, ...]:
    """Others' chains whose policy or last rule drops what is forwarded, in order of their names.

    What cannot be looked at, for want of a program or of the right, counts as not there: this is
    for a warning, and for where to put an accept; the rest of the firewall does not need it.
    """
    found = [chain async for chain in _list_nft_chains()]
    for family in LEGACY_SAVE:
        found += await _list_legacy_chains(family)
    return tuple(sorted(found, key=str))


async def _list_nft_chains() -> AsyncIterator[DroppingChain]:
    listing = await list_nft("list", "chains")
    for chain in _pick(listing, "chain"):
        if not _forwards(chain):
            continue
        place = (chain["family"], chain["table"], chain["name"])
        if chain.get("policy") == "drop" or _ends_in_drop(await list_nft("list", "chain", *place)):
            yield DroppingChain(kind="nft", family=place[0], table=place[1], chain=place[2])


async def list_nft(*words: str) -> list[Mapping[str, Any]]:
    """The entries that nft lists; none where it cannot be asked."""
    try:
        status, output, _ = await run_tool(NFT, "-j", *words)
        return list(json.loads(output)["nftables"]) if status == 0 else []
    except (DataplaneError, KeyError, ValueError):
        return []


def _pick(listing: Iterable[Mapping[str, Any]], kind: str) -> Iterator[Mapping[str, Any]]:
    return (entry[kind] for entry in listing if kind in entry)


def _forwards(chain: Mapping[str, Any]) -> bool:
    ours = (chain["family"], chain["table"]) == ("inet", TABLE)
    return chain.get("hook") == "forward" and chain["family"] in _VERSIONS and not ours


def _ends_in_drop(listing: list[Mapping[str, Any]]) -> bool:
    rules = list(_pick(listing, "rule"))
    *before, last = (rules[-1].get("expr") if rules else None) or [{}]
    return _drops(last) and all(statement.keys() <= _NO_MATCHES for statement in before)


def _drops(statement: Mapping[str, Any]) -> bool:
    # nft 1.0.6 has no word of its own for iptables' REJECT.
    rejects = "xt" in statement and statement["xt"].get("name") == "REJECT"
    return rejects or "drop" in statement or "reject" in statement


async def _list_legacy_chains(family: int) -> list[DroppingChain]:
    if "filter" not in read_legacy_tables(family):
        return []
    try:
        _, output, _ = await run_tool(LEGACY_SAVE[family], "-t", "filter")
    except DataplaneError:
        return []
    name = "ip" if family == 4 else "ip6"
    chain = DroppingChain(kind="legacy", family=name, table="filter", chain="FORWARD")
    return [chain] if drops_forwarded(output) else []


def read_legacy_tables(family: int) -> frozenset[str]:
    """The legacy tables that are in use; asking for any other would make it."""
    try:
        return frozenset(
            Path("/proc/thread-self/net", _LEGACY_TABLES[family])
            .read_text(encoding="ascii")
            .split()
        )
    except OSError:  # this kernel, or this host, has none
        return frozenset()


def drops_forwarded(saved: str) -> bool:
    """Whether FORWARD of a saved table ``filter`` drops what none of its rules has decided on."""
    lines = [line.split() for line in saved.splitlines()]
    if any(words[:2] == [":FORWARD", "DROP"] for words in lines):
        return True
    rules = [words for words in lines if words[:2] == ["-A", "FORWARD"]]
    return bool(rules) and rules[-1][2:3] == ["-j"] and rules[-1][3] in _FINAL_TARGETS
