"""What each of several stores says, and how it becomes one Snapshot.

Which store wins where two differ is the same for all agents, whatever the order of their flags:
all must compute one mesh.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

from kilo.backends.documents import make_settings_document
from kilo.backends.fields import shorten
from kilo.backends.objects import sort_problems
from kilo.mesh.model import Node, PartialSettings, Peer, Problem, Snapshot

ORDER = ("kubernetes", "etcd", "file")
"""The kinds of stores there are; the object of an earlier one wins over that of a later one.

A cluster's first: its nodes are named and numbered by others, and cannot give way.
"""
_SETTINGS_OBJECT = "Settings mesh"

T = TypeVar("T", Node, Peer)


def mark_part(snapshot: Snapshot, kind: str) -> Snapshot:
    """The same, everything in it marked as standing in the store of that kind."""
    return replace(
        snapshot,
        nodes=tuple(replace(node, origin=kind) for node in snapshot.nodes),
        peers=tuple(replace(peer, origin=kind) for peer in snapshot.peers),
        problems=tuple(replace(problem, origin=kind) for problem in snapshot.problems),
    )


def join_parts(
    parts: Mapping[str, Snapshot], *, home: str, away: Mapping[str, str] = MappingProxyType({})
) -> Snapshot:
    """The mesh that these stores describe; ``parts`` are marked, by kind.

    ``home`` is the kind of store that the own report goes to, ``away`` has those that cannot be
    heard now, with the reason.
    """
    ordered = [(kind, parts[kind]) for kind in ORDER if kind in parts]
    problems = [problem for _, part in ordered for problem in part.problems]
    nodes = _take_first("Node", [part.nodes for _, part in ordered], problems)
    peers = _take_first("Peer", [part.peers for _, part in ordered], problems)
    stamps = {
        node.name: parts[node.origin].last_seen[node.name]
        for node in nodes
        if node.name in parts[node.origin].last_seen
    }
    return Snapshot(
        nodes=nodes,
        peers=peers,
        settings=_merge_settings(ordered, problems),
        problems=sort_problems(problems),
        last_seen=MappingProxyType(stamps),
        away=MappingProxyType(dict(away)),
        parts=MappingProxyType(dict(ordered)),
        home=home,
    )


def _take_first(kind: str, groups: list[tuple[T, ...]], problems: list[Problem]) -> tuple[T, ...]:
    """Of each name the first, sorted; the others become problems."""
    owners: dict[str, T] = {}
    for group in groups:
        for one in group:
            owner = owners.setdefault(one.name, one)
            if owner is not one:
                problems.append(_describe_second(kind, one, owner.origin))
    return tuple(owners[name] for name in sorted(owners))


def _describe_second(kind: str, one: Node | Peer, first: str) -> Problem:
    return Problem(
        origin=one.origin,
        source="",
        object=f"{kind} {one.name}",
        field="metadata.name",
        value=one.name,
        reason=f"is a {kind} of {first} too, which comes before {one.origin}; left out",
    )


def _merge_settings(
    ordered: list[tuple[str, Snapshot]], problems: list[Problem]
) -> PartialSettings:
    """Each field as the first store sets it that does."""
    merged = PartialSettings()
    owners: dict[str, tuple[str, Any]] = {}
    for kind, part in ordered:
        for field, value in _write(part.settings):
            owner, first = owners.setdefault(field, (kind, value))
            if first != value:
                problems.append(_describe_difference(kind, field, value, owner, first))
        merged = part.settings | merged
    return merged


def _write(settings: PartialSettings) -> Iterator[tuple[str, Any]]:
    """The fields that are set, named and written as in documents."""
    spec = make_settings_document(settings)["spec"]
    if isinstance(spec, dict):
        yield from spec.items()


def _describe_difference(
    kind: str, field: str, value: object, owner: str, first: object
) -> Problem:
    return Problem(
        origin=kind,
        source="",
        object=_SETTINGS_OBJECT,
        field=f"spec.{field}",
        value=_show(value),
        reason=f"is {_show(first)!r} in {owner}, which comes before {kind}; left out",
    )


def _show(value: object) -> str:
    return shorten(value if isinstance(value, str) else json.dumps(value))
