"""What ``kgctl doctor`` makes of findings: lines, colours."""

from __future__ import annotations

from kilo.doctor.findings import Code, Finding, Outcome
from kilo.kgctl.doctor import describe, list_lines
from kilo.kgctl.statustext import Colour, paint

OUTCOMES = {
    "ports": Outcome(
        summary="taken",
        findings=(
            Finding(code=Code.NO_KEY, sentence="none yet", remedy="wait"),
            Finding(code=Code.UDP_PORT_TAKEN, sentence="held by ntpd", remedy="end it"),
        ),
    ),
    "key": Outcome(summary="mode 0600"),
}


def test_the_worst_finding_marks_the_check_and_each_has_its_own_colour() -> None:
    assert list(list_lines(OUTCOMES, paint)) == [
        f"{Colour.BAD}error  {Colour.PLAIN}  ports  taken",
        "         KILO-D903 info: none yet",
        "           Remedy: wait",
        f"         {Colour.BAD}KILO-D501 error: held by ntpd{Colour.PLAIN}",
        "           Remedy: end it",
        f"{Colour.GOOD}ok     {Colour.PLAIN}  key    mode 0600",
    ]


def test_the_document_has_a_check_each_with_its_result_and_findings() -> None:
    assert describe(OUTCOMES)["checks"] == [
        {
            "name": "ports",
            "result": "error",
            "summary": "taken",
            "findings": [
                {
                    "code": "KILO-D903",
                    "severity": "info",
                    "sentence": "none yet",
                    "remedy": "wait",
                },
                {
                    "code": "KILO-D501",
                    "severity": "error",
                    "sentence": "held by ntpd",
                    "remedy": "end it",
                },
            ],
        },
        {"name": "key", "result": "ok", "summary": "mode 0600", "findings": []},
    ]
