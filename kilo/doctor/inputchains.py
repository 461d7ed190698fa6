"""Whether a chain at the input hook lets a UDP port in, as far as its rules tell.

Where they leave a doubt they do: a warning of a firewall that is open makes people distrust all
others. Rules are looked at in nft's JSON, or in the words of ``iptables-save``.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

ACCEPT, DROP, OTHER = "accept", "drop", ""
_UDP = frozenset({"udp", "17", "all", 17})
_MAYBE = frozenset({"accept", "jump", "goto"})
_OPEN = "@"
"""What a named set begins with, whose elements are not looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of packets to the port that come to a rule."""

    decision: str = OTHER
    unconditional: bool = False
    """Whether no match stands before it."""
    target: str = ""
    """The chain they go on to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    """The chains of a table, and what one of them does in the end."""

    drops_by_policy: bool = False
    rules: Mapping[str, list[Verdict]] = field(default_factory=dict)


def drops_port(chains: Chains, start: str) -> bool:
    """Whether packets to the port that come to the chain are dropped, and by no rule accepted."""
    own = chains.rules.get(start, [])
    ends_in_drop = bool(own) and own[-1].unconditional and own[-1].decision == DROP
    if not chains.drops_by_policy and not ends_in_drop:
        return False
    return not any(
        verdict.decision == ACCEPT
        for name in _list_reachable(chains, start)
        for verdict in chains.rules.get(name, [])
    )


def _list_reachable(chains: Chains, start: str) -> Iterator[str]:
    seen, waiting = {start}, [start]
    while waiting:
        name = waiting.pop()
        yield name
        targets = {v.target for v in chains.rules.get(name, []) if v.target} - seen
        seen |= targets
        waiting += sorted(targets)


# In the words of iptables-save


def read_saved(saved: str, port: int) -> Chains:
    """The chains of table ``filter`` of an ``iptables-save``, of which INPUT begins."""
    rules: dict[str, list[Verdict]] = {}
    drops, in_filter = False, False
    for line in saved.splitlines():
        if line.startswith("*"):
            in_filter = line.strip() == "*filter"
        elif in_filter and line.startswith(":INPUT "):
            drops = line.split()[1] == "DROP"
        elif in_filter and line.startswith("-A "):
            _, chain, *words = shlex.split(line)
            rules.setdefault(chain, []).append(_judge_words(words, port))
    return Chains(drops_by_policy=drops, rules=rules)


def _judge_words(words: list[str], port: int) -> Verdict:
    given = _list_given(words)
    target = given.get("-j") or given.get("-g") or ""
    if _words_exclude(given, port):
        return Verdict()
    decision = {"ACCEPT": ACCEPT, "DROP": DROP, "REJECT": DROP}.get(target, OTHER)
    goes_on = "" if decision or target in ("RETURN", "LOG") else target
    return Verdict(decision=decision, unconditional=words[:1] == ["-j"], target=goes_on)


def _list_given(words: list[str]) -> dict[str, str]:
    """Options and their values, but for those that ``!`` negates: they may let much in."""
    triples = zip(["", *words], words, words[1:], strict=False)
    return {option: value for before, option, value in triples if before != "!"}


def _words_exclude(given: Mapping[str, str], port: int) -> bool:
    protocol = given.get("-p", "all")
    ports = given.get("--dport") or given.get("--dports")
    state = given.get("--ctstate") or given.get("--state")
    return (
        protocol not in _UDP
        or given.get("-i") == "lo"
        or (state is not None and "NEW" not in state.split(","))
        or (ports is not None and not any(_covers(part, port) for part in ports.split(",")))
    )


def _covers(ports: str, port: int) -> bool:
    low, colon, high = ports.partition(":")
    if not (low + high).isdigit():
        return True  # a service's name
    return int(low or 0) <= port <= int(high or 65535) if colon else int(low) == port


# In nft's JSON


def read_listing(listing: Iterable[Mapping[str, Any]], start: str, port: int) -> Chains:
    """The chains of one table as ``nft -j list table`` has them, of which ``start`` begins."""
    rules: dict[str, list[Verdict]] = {}
    drops = False
    for entry in listing:
        if "chain" in entry and entry["chain"]["name"] == start:
            drops = entry["chain"].get("policy") == DROP
        elif "rule" in entry:
            rule = entry["rule"]
            rules.setdefault(rule["chain"], []).append(_judge_rule(rule.get("expr", []), port))
    return Chains(drops_by_policy=drops, rules=rules)


def _judge_rule(statements: list[Mapping[str, Any]], port: int) -> Verdict:
    matches = [s["match"] for s in statements if "match" in s]
    if any(_match_excludes(match, port) for match in matches):
        return Verdict()
    narrow = bool(matches) or any("xt" in s or "vmap" in s for s in statements)
    for statement in statements:
        if "accept" in statement or ("vmap" in statement and _map_accepts(statement["vmap"])):
            return Verdict(decision=ACCEPT)
        if "drop" in statement or "reject" in statement:
            return Verdict(decision=DROP, unconditional=not narrow)
        for verb in ("jump", "goto"):
            if verb in statement:
                return Verdict(target=statement[verb]["target"])
    return Verdict()


def _match_excludes(match: Mapping[str, Any], port: int) -> bool:
    if match.get("op") not in ("==", "in"):
        return False
    left, values = match["left"], list(_list_values(match["right"]))
    if not isinstance(left, dict) or _OPEN in values:
        return False
    judge = next((judge for kind, judge in _MATCHES.items() if kind in left), None)
    return judge is not None and judge(left, values, port)


def _list_values(right: Any) -> Iterator[Any]:
    """What the left side may be: values and ranges, ``@`` for what is not told."""
    if isinstance(right, dict) and "set" in right:
        for inner in right["set"]:
            yield from _list_values(inner)
    elif isinstance(right, dict) and "range" in right:
        yield tuple(right["range"])
    elif isinstance(right, list):
        yield from right
    elif isinstance(right, dict) or (isinstance(right, str) and right.startswith(_OPEN)):
        yield _OPEN
    else:
        yield right


def _payload_excludes(left: Mapping[str, Any], values: list[Any], port: int) -> bool:
    payload = left["payload"]
    protocol, field_name = payload.get("protocol"), payload.get("field")
    if protocol in ("ip", "ip6"):
        return field_name in ("protocol", "nexthdr") and _UDP.isdisjoint(values)
    if protocol not in ("udp", "th"):
        return protocol is not None
    return field_name == "dport" and not any(_is_among(value, port) for value in values)


def _is_among(value: Any, port: int) -> bool:
    if isinstance(value, tuple):
        low, high = value
        return bool(low <= port <= high)
    return bool(value == port)


def _meta_excludes(left: Mapping[str, Any], values: list[Any], _port: int) -> bool:
    key = left["meta"].get("key")
    if key == "l4proto":
        return _UDP.isdisjoint(values)
    return key in ("iif", "iifname") and values == ["lo"]


def _state_excludes(left: Mapping[str, Any], values: list[Any], _port: int) -> bool:
    return left["ct"].get("key") == "state" and "new" not in values


_MATCHES: Mapping[str, Callable[[Mapping[str, Any], list[Any], int], bool]] = {
    "payload": _payload_excludes,
    "meta": _meta_excludes,
    "ct": _state_excludes,
}


def _map_accepts(vmap: Mapping[str, Any]) -> bool:
    """Whether a map of verdicts may accept; of the states of connections only "new" counts."""
    key, data = vmap.get("key"), vmap.get("data")
    pairs = data.get("set", []) if isinstance(data, dict) else None
    if pairs is None:
        return True
    is_state = isinstance(key, dict) and "ct" in key and key["ct"].get("key") == "state"
    return any(
        not verdict.keys().isdisjoint(_MAYBE) and (not is_state or value == "new")
        for value, verdict in pairs
    )
