"""The Firewall as iptables' rules, legacy or nf_tables: text in, text out.

Chains of our own, each jumped to from one of the kernel's: these, the jumps and the sets named in
them are all that we write, change or remove. The networks are in the sets, so that the rules are
few and stay as they are while the mesh changes. A chain is there only if it has something to do.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

from kilo.dataplane.firewall_terms import IPIP, LOCAL, pick_family, pick_networks
from kilo.mesh.state import Firewall, sort_networks

Line = tuple[str, ...]
"""A rule's words, but for the ``-A CHAIN`` before them."""
Place = tuple[str, str]
"""A table and a chain."""
Jump = tuple[Place, Line]
"""A rule that jumps to a chain of ours, and where it stands."""


@dataclass(frozen=True, slots=True)
class Chain:
    """One of ours, and where it is jumped to from."""

    table: str
    name: str
    hook: str
    match: Line
    """Of the jump."""
    first: bool
    """Whether the jump stands before all others: an accept has to, if it is to win over a drop.
    Where all rules are for different packets the last place is the politest."""

    @property
    def place(self) -> Place:
        return (self.table, self.name)

    @property
    def hook_place(self) -> Place:
        """The chain that jumps here."""
        return (self.table, self.hook)

    @property
    def jump(self) -> Line:
        """The rule that jumps here."""
        return (*self.match, *_comment(f"jump to {self.name}"), "-j", self.name)


NAT = Chain("nat", "KILO-NAT", "POSTROUTING", (), first=False)
IPIP_GUARD = Chain("filter", "KILO-IPIP", "INPUT", ("-p", str(IPIP)), first=True)
FORWARD = Chain("filter", "KILO-FORWARD", "FORWARD", (), first=True)
CLAMP = Chain("mangle", "KILO-MSS", "FORWARD", (), first=True)
CHAINS = {chain.place: chain for chain in (NAT, IPIP_GUARD, FORWARD, CLAMP)}
_MADE = " (jumped to from a chain that was made for it)"
MARK = "KILO-"
"""What the names of all our chains begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What there is of ours in one family's tables."""

    chains: Mapping[Place, tuple[Line, ...]] = field(default_factory=lambda: MappingProxyType({}))
    jumps: tuple[Jump, ...] = ()
    """To chains of ours; sorted."""

    def __bool__(self) -> bool:
        return bool(self.chains or self.jumps)

    def is_like(self, other: Rules) -> bool:
        """Whether they say the same, in chains of iptables' own that were there or not."""
        own, others = (
            {place: _unmark(lines) for place, lines in rules.chains.items()}
            for rules in (self, other)
        )
        return own == others and self.jumps == other.jumps

    @property
    def makers(self) -> frozenset[Place]:
        """The chains of ours for which those that they are jumped to from were made."""
        return frozenset(place for place, lines in self.chains.items() if lines != _unmark(lines))

    def cut_off(self, places: Collection[Place]) -> Rules:
        """The same without the jumps to these chains of ours."""
        names = {name for _, name in places}
        kept = (jump for jump in self.jumps if find_target(jump[1]) not in names)
        return replace(self, jumps=tuple(kept))

    @property
    def tables(self) -> list[str]:
        """Those that have something of ours."""
        return sorted({table for table, _ in (*self.chains, *(place for place, _ in self.jumps))})

    def pick(self, table: str) -> Rules:
        """What is in one of the tables."""
        return Rules(
            chains={place: lines for place, lines in self.chains.items() if place[0] == table},
            jumps=tuple(jump for jump in self.jumps if jump[0][0] == table),
        )


# What there should be


def render_rules(firewall: Firewall, family: int) -> Rules:
    """The rules of family 4 or 6."""
    wanted = {
        chain: tuple(render(firewall, family))
        for chain, render in _RENDERERS
        if _is_needed(chain, firewall, family)
    }
    return Rules(
        chains={chain.place: lines for chain, lines in wanted.items()},
        jumps=tuple(sorted((chain.hook_place, chain.jump) for chain in wanted)),
    )


def _is_needed(chain: Chain, firewall: Firewall, family: int) -> bool:
    if chain is CLAMP:
        return bool(firewall.clamp_links)
    if chain is IPIP_GUARD:
        return family == 4 and bool(firewall.tunnel_sources)
    roles = ("forward",) if chain is FORWARD else ("masquerade_destinations", "masquerade_sources")
    return any(pick_networks(firewall, role, family) for role in roles)


def name_set(role: str, family: int) -> str:
    """The set that holds a role's networks; the kernel takes 31 bytes."""
    return f"kilo-{role.replace('_', '-')}{family}"


def _comment(text: str) -> Line:
    return ("-m", "comment", "--comment", f"Kilo: {text}")


def _look_up(role: str, family: int, side: str) -> Line:
    return ("-m", "set", "--match-set", name_set(role, family), side)


def _render_nat(_: Firewall, family: int) -> Iterator[Line]:
    look_up = partial(_look_up, family=family)
    yield ("-o", "lo", *_comment("the host itself is left alone"), "-j", "RETURN")
    for network in sort_networks(pick_family(LOCAL, family)):
        comment = _comment("neighbours on the link are left alone")
        yield ("-d", str(network), *comment, "-j", "RETURN")
    yield (
        *look_up("known", side="dst"),
        *_comment("the mesh knows the source"),
        *("-j", "RETURN"),
    )
    yield (
        *look_up("masquerade_destinations", side="dst"),
        *_comment("what is reached through this location does not know the mesh"),
        *("-j", "MASQUERADE"),
    )
    yield (
        *look_up("masquerade_sources", side="src"),
        *_comment("the world does not know the mesh"),
        *("-j", "MASQUERADE"),
    )


def _render_forward(_: Firewall, family: int) -> Iterator[Line]:
    yield (*_look_up("forward", family, "src"), *_comment("from the mesh"), "-j", "ACCEPT")
    yield (*_look_up("forward", family, "dst"), *_comment("to the mesh"), "-j", "ACCEPT")


def _render_guard(_: Firewall, family: int) -> Iterator[Line]:
    known = _look_up("tunnel_sources", family, "src")
    yield (*known, *_comment("IPIP from this location"), "-j", "ACCEPT")
    yield (*_comment("IPIP from elsewhere"), "-j", "DROP")


def _render_clamp(firewall: Firewall, _: int) -> Iterator[Line]:
    for link in sorted(firewall.clamp_links):
        yield (
            *("-o", link, "-p", "tcp", "-m", "tcp", "--tcp-flags", "SYN,RST", "SYN"),
            *_comment("no more than the tunnels take"),
            *("-j", "TCPMSS", "--clamp-mss-to-pmtu"),
        )


_Renderer = Callable[[Firewall, int], Iterator[Line]]
_RENDERERS: tuple[tuple[Chain, _Renderer], ...] = (
    (NAT, _render_nat),
    (IPIP_GUARD, _render_guard),
    (FORWARD, _render_forward),
    (CLAMP, _render_clamp),
)


def mark_makers(rules: Rules, places: Collection[Place]) -> Rules:
    """The same, these chains of ours saying that what they are jumped to from was made for them."""
    chains = {
        place: _mark(lines) if place in places else lines for place, lines in rules.chains.items()
    }
    return replace(rules, chains=chains)


def _mark(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    first, *others = lines
    return (tuple(f"{w}{_MADE}" if w.startswith("Kilo: ") else w for w in first), *others)


def _unmark(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    return tuple(tuple(word.removesuffix(_MADE) for word in line) for line in lines)


# What there is


def parse_saved(saved: str) -> Rules:
    """What is ours of an ``iptables-save``: chains of our names, and all jumps to them."""
    chains: dict[Place, list[Line]] = {}
    jumps: list[Jump] = []
    for table, line in split_tables(saved):
        if MARK not in line:
            continue  # of tens of thousands of other programs' rules
        words = shlex.split(line)
        place = (table, words[0].removeprefix(":") if line.startswith(":") else words[1])
        if line.startswith(":") and place in CHAINS:
            chains.setdefault(place, [])
        elif line.startswith("-A") and place in CHAINS:
            chains.setdefault(place, []).append(normalise(words[2:]))
        elif line.startswith("-A") and find_target(words) in _list_names(table):
            jumps.append((place, normalise(words[2:])))
    return Rules(
        chains={place: tuple(lines) for place, lines in chains.items()},
        jumps=tuple(sorted(jumps)),
    )


def split_tables(saved: str) -> Iterator[tuple[str, str]]:
    """Each line with the table that it is in."""
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        else:
            yield table, line


def _list_names(table: str) -> frozenset[str]:
    return frozenset(name for place, name in CHAINS if place == table)


def find_target(words: Iterable[str]) -> str:
    """Where a rule jumps or goes to; empty if nowhere."""
    given = list(words)
    at = next((at for at, word in enumerate(given[:-1]) if word in ("-j", "-g")), None)
    return "" if at is None else given[at + 1]


def normalise(words: list[str]) -> Line:
    """A rule's words, protocols as numbers: iptables prints what ``/etc/protocols`` calls them."""
    return tuple(
        _find_protocol(word) if before == "-p" else word
        for before, word in zip(["", *words], words, strict=False)
    )


def _find_protocol(name: str) -> str:
    if name == "tcp":
        return name
    try:
        return str(socket.getprotobyname(name))
    except OSError:
        return name


def find_clamp_links(rules: Rules) -> frozenset[str]:
    """The links of the rules that clamp."""
    lines = rules.chains.get(CLAMP.place, ())
    return frozenset(line[1] for line in lines if line[0] == "-o")


# The way from one to the other


def write_rules(found: Rules, wanted: Rules) -> str:
    """The script for ``iptables-restore --noflush``; empty if there is nothing to do.

    Each table is one transaction. What is removed is named by its own text and never by its
    number, for somebody else's rule may have it by then.
    """
    tables = sorted({*found.tables, *wanted.tables})
    return "".join(_write_table(table, found.pick(table), wanted.pick(table)) for table in tables)


def _write_table(table: str, found: Rules, wanted: Rules) -> str:
    if found.is_like(wanted):
        return ""
    lines = [f":{name} - [0:0]" for _, name in sorted({*found.chains, *wanted.chains})]
    for (_, chain), rules in sorted(wanted.chains.items()):
        lines += [f"-A {chain} {_join(rule)}" for rule in rules]
    lines += _write_jumps(found.jumps, wanted.jumps)
    lines += [f"-X {name}" for _, name in sorted(found.chains.keys() - wanted.chains.keys())]
    return "\n".join((f"*{table}", *lines, "COMMIT\n"))


def _write_jumps(found: Iterable[Jump], wanted: Iterable[Jump]) -> list[str]:
    """What is right stays where it stands: others may have put theirs before it."""
    missing = list(wanted)
    lines = []
    for jump in found:
        if jump in missing:
            missing.remove(jump)
        else:
            (_, hook), rule = jump
            lines.append(f"-D {hook} {_join(rule)}")
    for (table, hook), rule in missing:
        chain = CHAINS[(table, find_target(rule))]
        lines.append(f"{'-I' if chain.first else '-A'} {hook} {_join(rule)}")
    return lines


def _join(words: Iterable[str]) -> str:
    """The words as iptables quotes them: it knows only double quotes."""
    return " ".join(f'"{_escape(word)}"' if " " in word or '"' in word else word for word in words)


def _escape(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"')
