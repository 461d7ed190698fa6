"""Checks fail and hang alone, and nothing but their own kind of words gets out."""

from __future__ import annotations

import asyncio

from kilo.doctor.checking import Check, UnseenError, run_checks
from kilo.doctor.findings import Code, Outcome
from kilo.errors import DataplaneError


async def look_well() -> Outcome:
    return Outcome(summary="well")


async def look_for_ever() -> Outcome:
    await asyncio.Event().wait()
    return Outcome(summary="never")


async def look_and_crash() -> Outcome:
    raise ValueError("a text that may quote a secret")


async def look_and_fail() -> Outcome:
    raise DataplaneError("netlink: no answer in 30 s")


async def look_in_vain() -> Outcome:
    raise UnseenError("shown to root only")


async def test_each_check_comes_to_something_though_others_do_not() -> None:
    looks = (look_for_ever, look_and_crash, look_and_fail, look_in_vain, look_well)
    checks = [Check(name=look.__name__, look=look) for look in looks]
    outcomes = await run_checks(checks, limit_seconds=0.2)
    codes = [[finding.code for finding in outcome.findings] for outcome in outcomes]
    assert codes == [[Code.UNFINISHED]] * 3 + [[Code.UNSEEN], []]
    assert "came to no end in 0.2 s" in outcomes[0].findings[0].sentence
    assert outcomes[-1].summary == "well"


async def test_a_crash_is_told_by_its_place_and_never_by_its_text() -> None:
    (outcome,) = await run_checks([Check(name="x", look=look_and_crash)], limit_seconds=60.0)
    sentence = outcome.findings[0].sentence
    assert "ValueError in look_and_crash, line" in sentence
    assert "secret" not in sentence
