"""Making checks, all at once: one that fails or hangs says so, and stops no other."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from kilo.doctor.findings import Code, Finding, Outcome, note_unseen
from kilo.errors import KiloError


class UnseenError(KiloError):
    """All that a check would look at is out of its reach; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One matter."""

    name: str
    look: Callable[[], Awaitable[Outcome]]


async def run_checks(checks: Sequence[Check], *, limit_seconds: float) -> list[Outcome]:
    """What each came to, in their order; none is waited for any longer than that."""
    return await asyncio.gather(*(run_check(check, limit_seconds) for check in checks))


async def run_check(check: Check, limit_seconds: float) -> Outcome:
    """What the check came to, or that it came to nothing."""
    try:
        async with asyncio.timeout(limit_seconds):
            return await check.look()
    except UnseenError as error:
        return Outcome(summary="not looked at", findings=(note_unseen(check.name, str(error)),))
    except TimeoutError:
        reason = f"it came to no end in {limit_seconds:g} s"
    except KiloError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - a bug in one check is a finding like any other
        reason = locate_bug(error)
    return Outcome(summary="not finished", findings=(_note_unfinished(check.name, reason),))


def _note_unfinished(name: str, reason: str) -> Finding:
    return Finding(
        code=Code.UNFINISHED,
        sentence=f"the check {name!r} failed: {reason}",
        remedy="look at what it names; if that hangs or is broken, so is what agents need of it",
    )


def locate_bug(error: Exception) -> str:
    """What was raised, and where; not its text, which may quote anything."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {frame.name}, line {frame.lineno}"
