"""What each object of a store adds to the mesh, and how all of them make one snapshot.

Objects arrive whenever somebody checks in, and hardly ever is there anything new in them: that is
seen by comparing the few raw values that matter, an object's *essence*, with those before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from kilo.backends.objects import sort_problems
from kilo.backends.source import Item
from kilo.mesh.model import Node, PartialSettings, Problem, Snapshot

Items = Mapping[str, Item["Entry"]]

MAX_PROBLEMS = 1000
"""That a snapshot tells of: a million keys that are somebody else's are not to become as many
messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One object of a store."""

    essence: object = field(default=None, repr=False)
    """The raw values that ``part`` was made from; a peer's hold its preshared key."""
    part: Snapshot
    """What the object adds; the very same value for as long as the essence is equal."""
    last_seen: int | None = None
    """The stamp of a node's agent, Unix seconds."""


def make_problem_entry(problem: Problem, *, essence: object = None) -> Entry:
    """What stands in for an object that there is not, and should be, or that cannot be read."""
    return Entry(essence=essence, part=Snapshot(problems=(problem,)))


def join_entries(held: Sequence[Items], before: Snapshot | None = None) -> Snapshot:
    """The mesh that all of these objects describe. ``before`` is what they did: nodes in which
    nothing is new are the very same again, so that whoever compares them is done at once.
    """
    parts = [item.value.part for items in held for item in items.values()]
    return Snapshot(
        nodes=_join_nodes((node for part in parts for node in part.nodes), before),
        peers=tuple(sorted((p for part in parts for p in part.peers), key=lambda p: p.name)),
        settings=next((part.settings for part in parts if part.settings), PartialSettings()),
        problems=_limit(sort_problems(p for part in parts for p in part.problems)),
        last_seen=read_stamps(held),
    )


def read_stamps(held: Sequence[Items]) -> Mapping[str, int]:
    """Node name -> Unix seconds, of those that report."""
    return MappingProxyType(
        {
            node.name: item.value.last_seen
            for items in held
            for item in items.values()
            if item.value.last_seen is not None
            for node in item.value.part.nodes
            if node.report is not None
        }
    )


def _join_nodes(found: Iterable[Node], before: Snapshot | None) -> tuple[Node, ...]:
    """Sorted by name; where one object declares a node and another reports it they are one."""
    known = {node.name: node for node in before.nodes} if before else {}
    nodes: dict[str, Node] = {}
    for node in found:
        other = nodes.setdefault(node.name, node)
        if other is not node:
            declared, reported = (other, node) if node.report else (node, other)
            nodes[node.name] = _join_node(declared, reported, known.get(node.name))
    return tuple(nodes[name] for name in sorted(nodes))


def _join_node(declared: Node, reported: Node, known: Node | None) -> Node:
    if known and known.spec is declared.spec and known.report is reported.report:
        return known
    return replace(declared, report=reported.report)


def _limit(problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
    more = len(problems) - MAX_PROBLEMS
    if more <= 0:
        return problems
    summary = Problem(
        source="", object="the store", reason=f"has {more} more problems, not shown here"
    )
    return (*problems[:MAX_PROBLEMS], summary)
