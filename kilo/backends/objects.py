"""Objects as they stand in a store, one by one, and how they become one Snapshot.

A name belongs to the first object of its kind; a node exists where somebody declared it or its
agent reports it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from kilo.mesh.model import (
    Node,
    NodeReport,
    NodeSpec,
    PartialSettings,
    Peer,
    Problem,
    Snapshot,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredNode:
    """A Node; a Kubernetes one also holds its agent's report, which a NodeReport supersedes."""

    name: str
    spec: NodeSpec
    report: NodeReport | None = None
    last_seen: int | None = None
    in_cluster: bool = field(default=False, compare=False)
    """Whether it is a Kubernetes one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedNode:
    """A NodeReport and the Unix seconds it was written at."""

    report: NodeReport
    last_seen: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredSettings:
    """What a Settings object sets."""

    settings: PartialSettings


T = TypeVar("T")

StoredObject = DeclaredNode | ReportedNode | Peer | DeclaredSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An object and where it stands."""

    source: str
    kind: str
    name: str
    value: StoredObject
    is_foreign: bool = False
    """Not one of our kinds but a cluster's own, ``v1``, of which annotations hold what is ours."""


def join_objects(found: Iterable[Found], problems: Iterable[Problem]) -> Snapshot:
    """The mesh that these objects describe, earlier ones winning over later ones of their name."""
    owners: dict[tuple[str, str], Found] = {}
    all_problems = list(problems)
    for one in found:
        # The mesh has one Settings object, whatever its name.
        owner = owners.setdefault((one.kind, "" if one.kind == "Settings" else one.name), one)
        if owner is not one:
            all_problems.append(_describe_duplicate(one, owner))
    values = [one.value for one in owners.values()]
    nodes, last_seen = _join_nodes(values)
    return Snapshot(
        nodes=nodes,
        peers=tuple(sorted(_only(Peer, values), key=lambda peer: peer.name)),
        settings=next((one.settings for one in _only(DeclaredSettings, values)), PartialSettings()),
        problems=sort_problems(all_problems),
        last_seen=MappingProxyType(last_seen),
    )


def sort_problems(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """By store, place, object and field, each once."""
    return tuple(
        sorted(
            dict.fromkeys(problems),
            key=lambda one: (one.origin, one.source, one.object, one.field, one.value, one.reason),
        )
    )


def _only(kind: type[T], values: Iterable[StoredObject]) -> list[T]:
    return [value for value in values if isinstance(value, kind)]


def _describe_duplicate(one: Found, owner: Found) -> Problem:
    article = "the mesh's" if one.kind == "Settings" else "a"
    reason = (
        f"is not the first: {article} {one.kind} {owner.name} stands in {owner.source}; left out"
    )
    return Problem(
        source=one.source,
        object=f"{one.kind} {one.name}",
        field="metadata.name",
        value=one.name,
        reason=reason,
    )


def _join_nodes(values: list[StoredObject]) -> tuple[tuple[Node, ...], dict[str, int]]:
    declared = {one.name: one for one in _only(DeclaredNode, values)}
    reported = {
        one.name: ReportedNode(report=one.report, last_seen=one.last_seen)
        for one in declared.values()
        if one.report
    }
    reported |= {one.report.name: one for one in _only(ReportedNode, values)}
    nodes = tuple(
        Node(
            name=name,
            spec=declared[name].spec if name in declared else NodeSpec(),
            report=reported[name].report if name in reported else None,
            in_cluster=name in declared and declared[name].in_cluster,
        )
        for name in sorted(declared.keys() | reported.keys())
    )
    stamps = {name: one.last_seen for name, one in reported.items()}
    return nodes, {name: stamp for name, stamp in stamps.items() if stamp is not None}
