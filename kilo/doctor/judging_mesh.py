"""Clock, names and store: what was seen -> findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from kilo.doctor.findings import Code, Finding, Outcome, note_unseen
from kilo.mesh.durations import format_rounded
from kilo.mesh.readiness import READY_SECONDS
from kilo.mesh.survey import Survey, blames_here

T = TypeVar("T")

MOST_FINDINGS = 10
"""Of one code: of a store that is full of errors, the first show which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The system's clock, beside the stamps that agents leave in the store."""

    synchronised: bool | None
    """None where nobody could be asked."""
    teller: str = ""
    """The program that was."""
    wall: float
    """Unix seconds."""
    last_seen: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Node -> the Unix seconds of its stamp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What the resolver makes of names: an empty text, or why it makes nothing."""

    host: str
    complaint: str = ""
    is_silent: bool = False
    """Whether it gave no answer at all."""
    endpoints: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """``NAME of Peer squat`` -> the complaint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """What the store says of the mesh and of this node; a complaint where it says nothing."""

    kind: str
    node: str
    complaint: str = ""
    survey: Survey | None = None
    """Made as of the last stamp: of clocks another check tells."""


def judge_clock(clock: Clock) -> Outcome:
    """Of the clock itself, and of the others' stamps."""
    words = {True: "synchronised", False: "not synchronised", None: "not known to be synchronised"}
    by = f" ({clock.teller})" if clock.teller else ""
    findings = (*_list_clock_findings(clock), *_list_stamp_findings(clock))
    return Outcome(summary=f"{words[clock.synchronised]}{by}", findings=findings)


def _list_clock_findings(clock: Clock) -> Iterator[Finding]:
    if clock.synchronised is None:
        yield note_unseen(
            "whether the clock is synchronised",
            "neither timedatectl nor chronyc nor busybox can tell",
            "run a time service that one of them knows",
        )
    elif not clock.synchronised:
        yield Finding(
            code=Code.CLOCK_FREE,
            sentence=f"the system's clock is not synchronised, says {clock.teller}: it drifts, and"
            " other nodes judge by its stamps",
            remedy="run a time service, systemd-timesyncd or chrony say",
        )


def _list_stamp_findings(clock: Clock) -> Iterator[Finding]:
    if not clock.last_seen:
        return
    ahead = {
        n: s - clock.wall for n, s in clock.last_seen.items() if s > clock.wall + READY_SECONDS
    }
    oldest = clock.wall - max(clock.last_seen.values())
    if ahead:
        whose = "this host's" if blames_here(len(ahead), len(clock.last_seen)) else "its"
        name = max(ahead, key=lambda node: ahead[node])
        yield Finding(
            code=Code.STAMPS_AHEAD,
            sentence=f"{len(ahead)} of {len(clock.last_seen)} nodes, Node {name} first, write of a"
            f" time up to {format_rounded(ahead[name])} ahead of this host's clock",
            remedy=f"set {whose} clock right, by a time service",
        )
    elif oldest > READY_SECONDS:
        yield Finding(
            code=Code.STAMPS_OLD,
            sentence=f"the last stamp in the store is {format_rounded(oldest)} old: no agent"
            " writes, or this host's clock is ahead",
            remedy="compare the clocks; start the agents",
        )


def judge_names(names: Names) -> Outcome:
    """Of the host's own name, and of those that endpoints have."""
    findings = []
    if names.is_silent:
        findings.append(
            Finding(
                code=Code.RESOLVER_SILENT,
                sentence=f"the resolver gave no answer for {names.host}",
                remedy="mend /etc/resolv.conf; name the host in /etc/hosts",
            )
        )
    elif names.complaint:
        findings.append(
            Finding(
                code=Code.HOST_NAME,
                sentence=f"the host's name {names.host} does not resolve: {names.complaint}",
                remedy="nothing need be done, or name it in /etc/hosts: its address is then the"
                " first choice for the node's internal one",
            )
        )
    findings += [
        Finding(
            code=Code.ENDPOINT_NAME,
            sentence=f"endpoint {name} does not resolve: {complaint}",
            remedy="correct the name, or the resolver; until then it cannot be reached from here",
        )
        for name, complaint in _cut(names.endpoints.items())
        if complaint
    ]
    return Outcome(
        summary=f"{names.host} and {len(names.endpoints)} names of endpoints were looked up",
        findings=tuple(findings),
    )


def judge_store(store: Store) -> Outcome:
    """Of the store and what stands in it."""
    if store.survey is None:
        return Outcome(summary="cannot be used", findings=(_note_unusable(store),))
    snapshot = store.survey.snapshot
    return Outcome(
        summary=f"{store.kind}: {len(snapshot.nodes)} nodes, {len(snapshot.peers)} peers",
        findings=tuple(_list_store_findings(store, store.survey)),
    )


def _note_unusable(store: Store) -> Finding:
    return Finding(
        code=Code.STORE_UNUSABLE,
        sentence=f"the store ({store.kind}) cannot be used: {store.complaint}",
        remedy="mend what it names; --backend and the flags of the store say which one is meant",
    )


def _list_store_findings(store: Store, survey: Survey) -> Iterator[Finding]:
    for problem in _cut(survey.snapshot.problems):
        yield Finding(
            code=Code.LEFT_OUT, sentence=f"left out: {problem}", remedy="correct the object"
        )
    for refusal in _cut(survey.topology.refusals):
        yield Finding(
            code=Code.REFUSED, sentence=str(refusal), remedy="let one of the two claim it"
        )
    for doubt in _cut(survey.doubts):
        yield Finding(
            code=Code.IN_DOUBT,
            sentence=doubt,
            remedy="give all agents the same flags, or put the setting into the store",
        )
    reason = _explain_absence(store.node, survey)
    if reason:
        yield Finding(
            code=Code.NOT_IN_MESH,
            sentence=f"Node {store.node}, this host, takes no part in the mesh: {reason}",
            remedy="start its agent; give --hostname where the node is called otherwise",
        )


def _explain_absence(name: str, survey: Survey) -> str:
    if any(node.name == name for node in survey.topology.nodes):
        return ""
    return survey.absent.get(name, "there is no such node in the store")


def _cut(items: Iterable[T]) -> list[T]:
    return list(items)[:MOST_FINDINGS]
