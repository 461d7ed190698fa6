"""What docs/monitoring.md says, for tests that hold it to the code."""

from __future__ import annotations

import re

from tests.install.machine import ROOT

GUIDE = ROOT / "docs" / "monitoring.md"


def read_table(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, row by row, without its head."""
    section = GUIDE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows[1:] if "---" not in row]
