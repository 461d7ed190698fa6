"""What is admitted to a mesh and what is not, as values."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.admission import (
    ALLOWED,
    SHOWN_LINES,
    Known,
    Reason,
    Verdict,
    judge,
    make_answer,
    read_review,
)
from kilo.backends.documents import read_document
from kilo.mesh.model import Granularity, Node, PartialSettings, Peer, Snapshot
from tests.builders import make_key, make_peer, make_preshared_key, networks
from tests.webhook.reviews import (
    BAD_SPECS,
    BERLIN,
    CLAIMED_SPECS,
    LAPTOP,
    MESH,
    UID,
    make_document,
    make_review,
)

FLAGS = PartialSettings(service_cidrs=networks("10.96.0.0/12"))
EMPTY = Known(snapshot=Snapshot(), away="")
KNOWN = Known(snapshot=MESH, away="", flags=FLAGS)


def ask(review: object, known: Known = EMPTY) -> Verdict:
    return judge(read_review(review), known)


# The schema


@pytest.mark.parametrize(("changes", "reason"), BAD_SPECS)
def test_a_bad_peer_is_refused_with_what_agents_say_of_it(
    changes: dict[str, object], reason: str
) -> None:
    document = make_document(LAPTOP, **changes)

    verdict = ask(make_review(document))

    assert verdict.reason is Reason.INVALID
    assert verdict.message.startswith(reason)
    agents = read_document(document, source="").problems
    assert verdict.lines == tuple(map(str, agents))


def test_a_peer_with_everything_is_admitted() -> None:
    document = make_document(
        make_peer("laptop", "10.5.0.9/32", "fd00:5::/64", preshared=True),
        persistentKeepalive=10,
        endpoint={"dnsOrIP": {"dns": "laptop.example.com", "ip": "203.0.113.7"}, "port": 51820},
    )
    assert ask(make_review(document)) == ALLOWED


def test_host_bits_are_admitted_as_agents_take_them() -> None:
    assert ask(make_review(make_document(LAPTOP, allowedIPs=["10.5.0.9/24"]))) == ALLOWED


def test_an_unknown_field_is_a_warning_and_no_more() -> None:
    verdict = ask(make_review(make_document(LAPTOP, publickey="x")))
    assert verdict.reason is None
    (warning,) = verdict.warnings
    assert warning.startswith("Peer laptop: spec.publickey: 'x' is not a field; known are")


def test_the_status_that_agents_write_is_no_unknown_field() -> None:
    document = make_document(LAPTOP) | {"status": {"conditions": []}}
    assert ask(make_review(document)) == ALLOWED


def test_a_preshared_key_is_never_shown() -> None:
    secret = make_preshared_key("laptop").reveal()
    document = make_document(LAPTOP, presharedKey=f"{secret}x", publicKey=7)
    review = read_review(make_review(document))
    shown = f"{review!r} {judge(review, KNOWN)!r} {make_answer(review, judge(review, KNOWN))}"
    assert secret not in shown


@pytest.mark.parametrize(
    "document", [None, 7, [], {}, {"apiVersion": "v1", "kind": "List", "items": []}]
)
def test_an_object_that_is_no_peer_at_all_is_refused(document: object) -> None:
    verdict = ask(make_review(document))
    assert verdict.reason is Reason.INVALID
    assert verdict.message


# Conflicts


@pytest.mark.parametrize(("changes", "reason"), CLAIMED_SPECS)
def test_what_belongs_to_another_is_refused_and_the_owner_named(
    changes: dict[str, object], reason: str
) -> None:
    verdict = ask(make_review(make_document(LAPTOP, **changes)), KNOWN)
    assert verdict.reason is Reason.FORBIDDEN
    assert verdict.message.startswith(f"Peer laptop: {reason}")


def test_a_peer_that_wants_nothing_of_others_is_admitted() -> None:
    assert ask(make_review(make_document(LAPTOP)), KNOWN) == ALLOWED


def test_a_wide_claim_around_others_narrow_ones_is_admitted() -> None:
    document = make_document(LAPTOP, allowedIPs=["10.5.0.0/16"])
    assert ask(make_review(document), KNOWN) == ALLOWED


def test_a_peer_may_keep_what_it_has() -> None:
    (alice, _) = MESH.peers
    new = make_document(alice, persistentKeepalive=10)
    review = make_review(new, operation="UPDATE", old=make_document(alice))
    assert ask(review, KNOWN) == ALLOWED


def test_an_update_may_not_take_what_another_has() -> None:
    (alice, _) = MESH.peers
    new = make_document(alice, allowedIPs=["10.5.0.1/32", "10.5.0.26/32"])
    review = make_review(new, operation="UPDATE", old=make_document(alice))
    verdict = ask(review, KNOWN)
    assert verdict.lines == (
        "Peer alice: would take spec.allowedIPs 10.5.0.26/32 away from Peer zoe",
    )


def test_what_others_are_refused_already_is_not_held_against_a_newcomer() -> None:
    greedy = make_peer("greedy", "10.2.1.0/24", "10.5.0.7/32")
    known = replace(KNOWN, snapshot=replace(MESH, peers=(*MESH.peers, greedy)))
    assert ask(make_review(make_document(LAPTOP)), known) == ALLOWED


def test_a_claim_that_falls_to_another_is_not_held_against_who_lets_go_of_it() -> None:
    peers = [make_peer(name, "10.5.0.7/32", f"10.5.1.{i}/32") for i, name in enumerate("abc")]
    known = Known(snapshot=Snapshot(peers=tuple(peers)), away="")
    new = make_document(peers[0], allowedIPs=["10.5.1.0/32"])
    assert ask(make_review(new, operation="UPDATE", old=make_document(peers[0])), known) == ALLOWED


def test_a_node_that_is_down_keeps_its_subnet() -> None:
    known = replace(KNOWN, snapshot=replace(MESH, last_seen={"berlin": 0}))
    verdict = ask(make_review(make_document(LAPTOP, allowedIPs=["10.2.1.0/24"])), known)
    assert verdict.reason is Reason.FORBIDDEN


def test_a_node_that_never_had_an_agent_has_no_claims() -> None:
    bare = Node(name="berlin", spec=BERLIN.spec)
    known = replace(KNOWN, snapshot=replace(MESH, nodes=(bare,)))
    assert ask(make_review(make_document(LAPTOP, allowedIPs=["10.2.1.0/24"])), known) == ALLOWED


def test_a_flag_wins_over_the_stores_settings() -> None:
    stored = PartialSettings(service_cidrs=networks("10.200.0.0/16"))
    snapshot = replace(MESH, settings=stored)
    document = make_document(LAPTOP, allowedIPs=["10.200.1.0/24"])
    assert ask(make_review(document), Known(snapshot=snapshot, away="")).reason
    assert ask(make_review(document), Known(snapshot=snapshot, away="", flags=FLAGS)) == ALLOWED


def test_of_a_hundred_reasons_some_are_told_and_the_rest_counted() -> None:
    claims = [f"10.2.1.{i}/32" for i in range(100)]
    verdict = ask(make_review(make_document(LAPTOP, allowedIPs=claims)), KNOWN)
    assert len(verdict.lines) == 100
    assert verdict.message.count("refused") == SHOWN_LINES
    assert verdict.message.endswith("; and 90 more")


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (Known(), "the mesh cannot be heard: nothing was heard of it yet"),
        (Known(snapshot=MESH, away="refused"), "the mesh cannot be heard: refused"),
        (
            Known(
                snapshot=MESH,
                away="",
                flags=PartialSettings(
                    subnets=(ip_network("10.4.0.0/32"),), granularity=Granularity.FULL
                ),
            ),
            "subnet 10.4.0.0/32 has 0 addresses for 1 segments",
        ),
    ],
)
def test_where_claims_cannot_be_judged_the_rest_is_and_that_is_said(
    known: Known, reason: str
) -> None:
    claimed = make_review(make_document(LAPTOP, allowedIPs=["10.2.1.0/24"]))
    verdict = ask(claimed, known)
    assert verdict.reason is None
    (warning,) = verdict.warnings
    assert warning.startswith(f"kg webhook: conflicts with others were not looked for: {reason}")
    assert ask(make_review(make_document(LAPTOP, allowedIPs=[])), known).reason is Reason.INVALID


# What is let through


BAD = make_document(LAPTOP, publicKey="short")


@pytest.mark.parametrize("operation", ["DELETE", "CONNECT"])
def test_whatever_is_there_can_be_deleted(operation: str) -> None:
    assert ask(make_review(None, operation=operation, old=BAD), KNOWN) == ALLOWED


def test_a_bad_peer_can_still_be_labelled_and_finalized() -> None:
    new = BAD | {"metadata": {"name": "laptop", "labels": {"old": "yes"}, "finalizers": []}}
    assert ask(make_review(new, operation="UPDATE", old=BAD), KNOWN) == ALLOWED


def test_a_bad_peer_cannot_be_made_bad_in_another_way() -> None:
    new = make_document(LAPTOP, publicKey="shorter")
    assert ask(make_review(new, operation="UPDATE", old=BAD), KNOWN).reason is Reason.INVALID


def test_a_status_is_none_of_our_business() -> None:
    review = make_review(BAD, operation="UPDATE", old=make_document(LAPTOP), subresource="status")
    assert ask(review, KNOWN) == ALLOWED


@pytest.mark.parametrize(
    "kind",
    [
        {"group": "", "version": "v1", "kind": "Pod"},
        {"group": "apps", "version": "v1", "kind": "Peer"},
        {"group": "kilo.squat.ai", "version": "v2", "kind": "Peer"},
    ],
)
def test_what_is_no_peer_of_ours_is_let_through_with_a_warning(kind: dict[str, str]) -> None:
    verdict = ask(make_review({"kind": "Whatever"}, kind=kind), KNOWN)
    assert verdict.reason is None
    (warning,) = verdict.warnings
    assert "register it for peers.kilo.squat.ai alone" in warning
    assert len(warning) <= 256  # as much of a warning as an API server passes on


# The review itself


@pytest.mark.parametrize("version", ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"])
def test_a_review_is_answered_in_its_own_version(version: str) -> None:
    review = read_review(make_review(make_document(LAPTOP), version=version))
    assert make_answer(review, ALLOWED) == {
        "apiVersion": version,
        "kind": "AdmissionReview",
        "response": {"uid": UID, "allowed": True},
    }


@pytest.mark.parametrize(("reason", "code"), [(Reason.INVALID, 400), (Reason.FORBIDDEN, 403)])
def test_a_refusal_has_a_code_a_reason_and_a_message(reason: Reason, code: int) -> None:
    review = read_review(make_review(make_document(LAPTOP)))
    verdict = Verdict(reason=reason, lines=("one", "two"), warnings=("careful",))
    assert make_answer(review, verdict)["response"] == {
        "uid": UID,
        "allowed": False,
        "status": {"code": code, "reason": reason.value, "message": "one; two"},
        "warnings": ["careful"],
    }


def without(review: dict[str, Any], name: str) -> dict[str, Any]:
    request = {key: value for key, value in review["request"].items() if key != name}
    return review | {"request": request}


GOOD = make_review(make_document(LAPTOP))


@pytest.mark.parametrize(
    ("review", "reason"),
    [
        (None, "the body: is not an object"),
        ([], "the body: is not an object"),
        ({}, "the body: is not an AdmissionReview of admission.k8s.io/v1 or"),
        (GOOD | {"apiVersion": "admission.k8s.io/v2"}, "the body: is not an AdmissionReview of"),
        (GOOD | {"apiVersion": ["admission.k8s.io/v1"]}, "the body: is not an AdmissionReview of"),
        (GOOD | {"kind": "Peer"}, "the body: is not an AdmissionReview of"),
        (GOOD | {"request": None}, "request: is not an object"),
        (without(GOOD, "uid"), "request: uid is missing or not a string"),
        (without(GOOD, "kind"), "request.kind: is not an object"),
        (make_review(None, kind={"group": ""}), "request: version is missing or not a string"),
        (make_review(None, operation="PATCH"), "request.operation: is not one of CREATE, UPDATE"),
    ],
)
def test_what_is_no_review_is_refused_with_a_reason(review: object, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^" + reason.replace(".", r"\.")):
        read_review(review)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "publicKey": JSON | st.just(str(make_key("x"))),
        "allowedIPs": JSON | st.lists(st.sampled_from(["10.5.0.1/32", "10.2.1.0/24", "x"])),
        "presharedKey": JSON,
        "persistentKeepalive": JSON,
        "endpoint": JSON,
        "more": JSON,
    },
)


@settings(deadline=None)
@given(spec=SPECS | JSON)
def test_whatever_is_sent_is_judged_as_agents_judge_it(spec: object) -> None:
    document = make_document(LAPTOP) | {"spec": spec}
    review = read_review(make_review(document))

    verdict = judge(review, EMPTY)

    json.dumps(make_answer(review, verdict))
    reading = read_document(document, source="")
    is_whole = not any(not p.reason.endswith("; ignored") for p in reading.problems)
    taken = [found.value for found in reading.found if isinstance(found.value, Peer)]
    if verdict.reason is None:
        assert taken
        assert is_whole
    elif verdict.reason is Reason.INVALID:
        assert not taken or not is_whole
