"""The table that fills in place takes back exactly the rows that it took."""

from __future__ import annotations

import pytest

from kilo.lab.screen import count_rows


@pytest.mark.parametrize(
    ("text", "columns", "rows", "reason"),
    [
        ("a\nb", 80, 2, "a row a line"),
        ("a" * 80, 80, 1, "a line as wide as the terminal does not wrap"),
        ("a" * 81 + "\nb", 80, 3, "a wider one does"),
        ("a\n\nb", 80, 3, "an empty line is a row, too"),
        ("a" * 200, 0, 1, "a terminal that does not know its width is taken to be wide enough"),
    ],
)
def test_the_rows_of_a_text_are_counted_as_the_terminal_wraps_it(
    text: str, columns: int, rows: int, reason: str
) -> None:
    assert count_rows(text, columns) == rows, reason
