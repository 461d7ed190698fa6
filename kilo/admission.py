"""What the API server asks before it stores a Peer, and what it is answered: values only.

An AdmissionReview (``admission.k8s.io``) comes in as a document and goes out as one. A Peer is
judged by the schema that agents read it with, and by the topology they would compute with it, so
what is admitted here is what the mesh takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from kilo.backends.documents import API_VERSION, read_document
from kilo.backends.fields import is_ignored, show_name
from kilo.errors import MeshError
from kilo.mesh.conflicts import Refusal
from kilo.mesh.model import PartialSettings, Peer, Settings, Snapshot
from kilo.mesh.topology import build_topology

REVIEW_VERSIONS = ("admission.k8s.io/v1", "admission.k8s.io/v1beta1")
SHOWN_LINES = 10
"""Reasons, or warnings, in one answer: the API server cuts off what is too much (4096 bytes of
warnings in all)."""


class Operation(StrEnum):
    """What is done to the object."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    CONNECT = "CONNECT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One question of the API server's."""

    api_version: str
    """That of the review, in which it is to be answered."""
    uid: str
    operation: Operation
    kind: tuple[str, str]
    """apiVersion and kind of the object."""
    subresource: str = ""
    document: object = field(default=None, repr=False)
    """The object as it would be stored; may hold a preshared key."""
    old_document: object = field(default=None, repr=False)
    """As it is stored now, of an update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the mesh that a Peer is to join."""

    snapshot: Snapshot | None = None
    away: str = "nothing was heard of it yet"
    """Why the store cannot be heard, one line; empty while it can."""
    flags: PartialSettings = field(default_factory=PartialSettings)
    """Win over the settings of the store."""


class Reason(StrEnum):
    """Kubernetes' reason codes for what is refused."""

    INVALID = "BadRequest"
    FORBIDDEN = "Forbidden"


STATUS_CODES: Mapping[Reason, int] = {Reason.INVALID: 400, Reason.FORBIDDEN: 403}
"""HTTP's, as the API server pairs them. Not 422 ("Invalid") for what is bad: kubectl before 1.21
keeps the message of those to itself. Not 409 for a conflict: clients would try again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer: allowed unless there is a reason."""

    reason: Reason | None = None
    lines: tuple[str, ...] = ()
    """What is wrong, for the person whose request is refused."""
    warnings: tuple[str, ...] = ()
    """What that person should know all the same."""

    @property
    def message(self) -> str:
        """All that is wrong, in one line."""
        return "; ".join(limit_lines(self.lines))


ALLOWED = Verdict()


def read_review(document: object) -> Review:
    """The question in an AdmissionReview; ``ValueError`` says in one line why there is none."""
    review = _read_mapping(document, "the body")
    api_version = review.get("apiVersion")
    if review.get("kind") != "AdmissionReview" or api_version not in REVIEW_VERSIONS:
        raise ValueError(f"the body: is not an AdmissionReview of {' or '.join(REVIEW_VERSIONS)}")
    request = _read_mapping(review.get("request"), "request")
    kind = _read_mapping(request.get("kind"), "request.kind")
    group, version = _read_text(kind, "group"), _read_text(kind, "version")
    operation = _read_text(request, "operation")
    if operation not in list(Operation):
        raise ValueError(f"request.operation: is not one of {', '.join(Operation)}")
    return Review(
        api_version=str(api_version),
        uid=_read_text(request, "uid"),
        operation=Operation(operation),
        kind=(f"{group}/{version}" if group else version, _read_text(kind, "kind")),
        subresource=_read_text(request, "subResource") if request.get("subResource") else "",
        document=request.get("object"),
        old_document=request.get("oldObject"),
    )


def _read_mapping(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: is not an object")  # noqa: TRY004 - what a client sent, no mistake of ours
    return value


def _read_text(mapping: Mapping[str, object], name: str) -> str:
    value = mapping.get(name)
    if not isinstance(value, str):
        raise ValueError(f"request: {name} is missing or not a string")  # noqa: TRY004 - as above
    return value


def make_answer(review: Review, verdict: Verdict) -> dict[str, object]:
    """The AdmissionReview to send back, in the version of the question."""
    response: dict[str, object] = {"uid": review.uid, "allowed": verdict.reason is None}
    if verdict.reason is not None:
        response["status"] = {
            "code": STATUS_CODES[verdict.reason],
            "reason": verdict.reason.value,
            "message": verdict.message,
        }
    if verdict.warnings:
        response["warnings"] = limit_lines(verdict.warnings)
    return {"apiVersion": review.api_version, "kind": "AdmissionReview", "response": response}


def limit_lines(lines: Sequence[str]) -> list[str]:
    """The first of them, and how many there are more."""
    more = len(lines) - SHOWN_LINES
    return [*lines[:SHOWN_LINES], f"and {more} more"] if more > 0 else list(lines)


def judge(review: Review, known: Known) -> Verdict:
    """Whether the mesh would take the Peer whole and take nothing from others for it.

    Whatever is not the spec of a Peer is let through: other kinds, other subresources, deletions,
    and updates of an object, bad as it may be, that leave its spec alone.
    """
    if review.kind != (API_VERSION, "Peer"):
        return Verdict(warnings=(_describe_foreigner(review),))
    if review.subresource:
        return ALLOWED
    match review.operation:
        case Operation.DELETE | Operation.CONNECT:
            return ALLOWED
        case Operation.UPDATE if _find_spec(review.document) == _find_spec(review.old_document):
            return ALLOWED
        case Operation.CREATE | Operation.UPDATE:
            return _judge_peer(review.document, known)


def _describe_foreigner(review: Review) -> str:
    version, kind = map(show_name, review.kind)
    return (
        f"kg webhook: let {kind} of {version} through unseen: register it for peers.kilo.squat.ai"
        " alone"
    )


def _find_spec(document: object) -> object:
    return document.get("spec") if isinstance(document, dict) else None


def _judge_peer(document: object, known: Known) -> Verdict:
    if isinstance(document, dict):
        # The status is for the agents to write and no part of what is judged.
        document = {name: value for name, value in document.items() if name != "status"}
    reading = read_document(document, source="")
    warnings = tuple(str(problem) for problem in reading.problems if is_ignored(problem))
    faults = tuple(str(problem) for problem in reading.problems if not is_ignored(problem))
    if faults:
        return Verdict(reason=Reason.INVALID, lines=faults, warnings=warnings)
    peers = [found.value for found in reading.found if isinstance(found.value, Peer)]
    if len(peers) != 1:
        return Verdict(reason=Reason.INVALID, lines=("request.object: is not a Peer",))
    verdict = judge_claims(peers[0], known)
    return replace(verdict, warnings=(*warnings, *verdict.warnings))


def judge_claims(peer: Peer, known: Known) -> Verdict:
    """Whether somebody's claims stand against the peer's, or would fall to them."""
    if known.snapshot is None or known.away:
        return _skip_claims(f"the mesh cannot be heard: {known.away}")
    try:
        lines = tuple(find_conflicts(peer, known.snapshot, known.flags))
    except MeshError as error:
        return _skip_claims(str(error))
    return Verdict(reason=Reason.FORBIDDEN, lines=lines) if lines else ALLOWED


def _skip_claims(reason: str) -> Verdict:
    return Verdict(warnings=(f"kg webhook: conflicts with others were not looked for: {reason}",))


def find_conflicts(peer: Peer, snapshot: Snapshot, flags: PartialSettings) -> Iterator[str]:
    """A line for each claim of the peer's that would be refused, and for each claim of somebody
    else's that would be refused on its account; a peer of its name is taken to be replaced.

    Nodes count whether or not they are live: what belongs to one that is down for a minute is not
    to be had. ``MeshError`` if there is no topology to judge by.
    """
    others = [other for other in snapshot.peers if other.name != peer.name]
    placed = replace(peer, origin=snapshot.home)
    refusals = _list_refusals((*others, placed), snapshot, flags)
    if not refusals:
        return
    known = {_name_claim(one) for one in _list_refusals(snapshot.peers, snapshot, flags)}
    claimant = f"Peer {peer.name}"
    for refusal in refusals:
        if refusal.claimant == claimant:
            yield str(refusal)
        elif _name_claim(refusal) not in known:
            yield (
                f"{claimant}: would take {refusal.field} {refusal.value}"
                f" away from {refusal.claimant}"
            )


def _list_refusals(
    peers: Sequence[Peer], snapshot: Snapshot, flags: PartialSettings
) -> tuple[Refusal, ...]:
    nodes = [node for node in snapshot.nodes if node.public_key and node.endpoint]
    settings = replace(replace(Settings(), **snapshot.settings), **flags)
    return build_topology(nodes, peers, settings).refusals


def _name_claim(refusal: Refusal) -> tuple[str, str, str]:
    """The claim, whoever stands against it."""
    return refusal.claimant, refusal.field, refusal.value
