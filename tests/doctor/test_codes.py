"""The table of codes that people and runbooks go by is whole and true."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from kilo.doctor.findings import SEVERITIES, Code

PAGE = Path(__file__).parents[2] / "docs/doctor.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if line.startswith("| KILO-D")
]


def test_every_code_is_documented_once_and_no_other() -> None:
    assert Counter(code for code, *_ in ROWS) == Counter(code.value for code in Code)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_code_is_documented_with_severity_meaning_and_remedy(row: list[str]) -> None:
    code, severity, meaning, remedy = row
    assert severity == SEVERITIES[Code(code)]
    assert meaning
    assert remedy


def test_codes_have_one_form() -> None:
    assert [code for code in Code if not re.fullmatch(r"KILO-D[0-9]{3}", code)] == []
