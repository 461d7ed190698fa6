"""What the status of a Peer is made to say, and when it is left as it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.backends.kubernetes.peerstatus import (
    MESSAGE_CHARACTERS,
    Handshake,
    PeerNews,
    describe_standing,
    format_time,
    is_news,
    make_status_patch,
    read_handshake,
)
from kilo.mesh.remarks import PeerStanding, Reason, Remark

NOW = 1_700_000_000
LATER = NOW + 3600
NOW_TEXT = "2023-11-14T22:13:20Z"

REFUSED = Remark(object="Peer squat", reason=Reason.REFUSED, message="it lies inside")
INVALID = Remark(object="Peer squat", reason=Reason.INVALID, message="is not a key")
READY = PeerStanding(ready=True)
OTHERS: dict[str, object] = {"type": "Approved", "status": "True", "reason": "ByHand"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=10,
)


def apply(status: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """What a merge patch of the status' own fields comes to."""
    return status | dict(patch.get("status", {}))


def judge(
    standing: PeerStanding, status: dict[str, Any] | None = None, *, now: int = NOW
) -> dict[str, Any]:
    return apply(status or {}, make_status_patch(status, PeerNews(standing=standing), now=now))


def test_a_peer_that_takes_part_is_ready_and_accepted() -> None:
    assert judge(READY) == {
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Accepted",
                "message": "takes part in the mesh",
                "lastTransitionTime": NOW_TEXT,
            }
        ]
    }


@pytest.mark.parametrize(
    ("standing", "reason"),
    [
        (READY, "Accepted"),
        (PeerStanding(ready=True, remarks=(REFUSED,)), "PartlyRefused"),
        (PeerStanding(ready=True, remarks=(INVALID, REFUSED)), "PartlyRefused"),
        (PeerStanding(ready=True, remarks=(INVALID,)), "PartlyInvalid"),
        (PeerStanding(ready=False, remarks=(REFUSED,)), "Refused"),
        (PeerStanding(ready=False, remarks=(INVALID, REFUSED)), "Refused"),
        (PeerStanding(ready=False, remarks=(INVALID,)), "Invalid"),
    ],
)
def test_the_reason_says_in_one_word_what_becomes_of_a_peer(
    standing: PeerStanding, reason: str
) -> None:
    assert describe_standing(standing) == reason


def test_the_message_is_all_that_is_wrong() -> None:
    (condition,) = judge(PeerStanding(ready=False, remarks=(INVALID, REFUSED)))["conditions"]

    assert condition["message"] == "is not a key; it lies inside"


def test_a_message_without_end_is_cut() -> None:
    long = Remark(object="Peer squat", reason=Reason.INVALID, message="x" * 5000)

    (condition,) = judge(PeerStanding(ready=False, remarks=(long,)))["conditions"]

    assert len(condition["message"]) == MESSAGE_CHARACTERS


def test_a_status_that_says_it_already_is_left_alone() -> None:
    status = judge(READY)

    assert make_status_patch(status, PeerNews(standing=READY), now=LATER) == {}


def test_the_time_of_the_transition_stays_while_only_the_reason_changes() -> None:
    before = judge(READY)
    (condition,) = judge(PeerStanding(ready=True, remarks=(REFUSED,)), before, now=LATER)[
        "conditions"
    ]

    assert condition["reason"] == "PartlyRefused"
    assert condition["lastTransitionTime"] == NOW_TEXT


def test_the_time_of_the_transition_is_that_of_the_change() -> None:
    (condition,) = judge(PeerStanding(ready=False, remarks=(REFUSED,)), judge(READY), now=LATER)[
        "conditions"
    ]

    assert condition["status"] == "False"
    assert condition["lastTransitionTime"] == format_time(LATER)


def test_the_conditions_of_others_stay_where_they_are() -> None:
    before = {"conditions": [judge(READY)["conditions"][0], OTHERS]}

    conditions = judge(PeerStanding(ready=False, remarks=(REFUSED,)), before)["conditions"]

    assert [one["type"] for one in conditions] == ["Ready", "Approved"]
    assert conditions[1] == OTHERS


def test_who_does_not_speak_for_all_leaves_the_conditions_alone() -> None:
    news = PeerNews(handshake=Handshake(node="a", at=NOW))

    assert make_status_patch({}, news, now=NOW) == {
        "status": {"lastHandshake": {"node": "a", "time": NOW_TEXT}}
    }


@pytest.mark.parametrize(
    ("last", "ours", "expected", "why"),
    [
        (None, 0, True, "nobody has told of any"),
        (("a", -299), 0, False, "our own, and new enough"),
        (("a", -300), 0, True, "our own, and old"),
        (("a", 0), -120, False, "our own, told by an agent of ours that saw more"),
        (("b", -180), 0, False, "another's session may last still"),
        (("b", -181), 0, True, "another's session has ended"),
        (("b", 0), -600, False, "another has heard of it since"),
        (("b", 180), 0, False, "another's clock is a little ahead"),
        (("b", 181), 0, True, "another's clock is wrong"),
        (("a", 7200), 0, True, "our clock was wrong"),
    ],
)
def test_a_handshake_is_written_where_the_one_that_stands_there_is_no_longer_true(
    last: tuple[str, int] | None,
    ours: int,
    expected: bool,  # noqa: FBT001  a column of the table
    why: str,
) -> None:
    standing = Handshake(node=last[0], at=NOW + last[1]) if last else None

    assert is_news(Handshake(node="a", at=NOW + ours), standing, now=NOW) is expected, why


def test_two_leaders_with_sessions_do_not_take_turns() -> None:
    """Each tells of a handshake every five minutes, and rekeys every two."""
    status: dict[str, Any] = {}
    writers = []
    for minute in range(60):
        now = NOW + 60 * minute
        for node, phase in (("a", 0), ("b", 2)):
            if minute % 5 == phase:
                news = PeerNews(handshake=Handshake(node=node, at=now))
                patch = make_status_patch(status, news, now=now)
                writers += [node] * bool(patch)
                status = apply(status, patch)

    assert writers == ["a"] * 12


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"node": "a", "time": NOW_TEXT}, Handshake(node="a", at=NOW)),
        ({"node": "a", "time": "2023-11-14T23:13:20.5+01:00"}, Handshake(node="a", at=NOW)),
        ({"node": "a", "time": "2023-11-14T22:13:20"}, None),
        ({"node": "a", "time": "yesterday"}, None),
        ({"node": "a", "time": 7}, None),
        ({"node": "a"}, None),
        ({"time": NOW_TEXT}, None),
        ("a", None),
    ],
)
def test_what_cannot_be_understood_of_a_last_handshake_is_none(
    value: object, expected: Handshake | None
) -> None:
    assert read_handshake(value) == expected


@given(status=JSON, conditions=JSON, last=JSON)
def test_a_status_of_any_shape_is_made_to_say_it_and_then_left_alone(
    status: Any, conditions: Any, last: Any
) -> None:
    news = PeerNews(standing=READY, handshake=Handshake(node="a", at=NOW))
    if isinstance(status, dict):
        status |= {"conditions": conditions, "lastHandshake": last}

    after = apply(
        status if isinstance(status, dict) else {}, make_status_patch(status, news, now=NOW)
    )

    assert make_status_patch(after, news, now=LATER - 3600) == {}
    assert [one["status"] for one in after["conditions"] if _is_ready(one)][:1] == ["True"]


def _is_ready(condition: object) -> bool:
    return isinstance(condition, dict) and condition.get("type") == "Ready"
