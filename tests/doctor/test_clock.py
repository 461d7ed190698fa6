"""What the programs print that know whether the clock is synchronised, and how it is read."""

from __future__ import annotations

import pytest

from kilo.doctor.probing_mesh import TELLERS, ClockTeller, ask_clock

TIMEDATECTL, CHRONYC, BUSYBOX = TELLERS


@pytest.mark.parametrize(
    ("teller", "output", "answer"),
    [
        (TIMEDATECTL, "NTPSynchronized=yes\n", True),
        (TIMEDATECTL, "NTPSynchronized=no\n", False),
        (TIMEDATECTL, "", None),
        (CHRONYC, "Stratum         : 3\nLeap status     : Normal\n", True),
        (CHRONYC, "Stratum         : 3\nLeap status     : Insert second\n", True),
        (CHRONYC, "Stratum         : 0\nLeap status     : Not synchronised\n", False),
        (CHRONYC, "506 Cannot talk to daemon\n", None),
        (BUSYBOX, "    return value: 0 (clock synchronized)\n", True),
        (BUSYBOX, "    return value: 5 (clock not synchronized)\n", False),
        (BUSYBOX, "adjtimex: applet not found\n", None),
    ],
)
def test_an_answer_is_read_as_the_program_means_it(
    teller: ClockTeller, output: str, answer: object
) -> None:
    assert teller.read(output) is answer


async def test_nobody_who_can_be_asked_is_no_answer() -> None:
    assert await ask_clock(()) == (None, "")
