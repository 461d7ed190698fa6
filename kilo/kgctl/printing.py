"""What commands print: tables as kubectl's, and documents of the one schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import yaml

GAP = " " * 3
NOTHING = "<none>"
"""In a cell that would be empty: a column that is cut out by a script stays that column."""


def draw_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, three spaces apart; an empty cell is ``<none>``."""
    lines = [tuple(headings), *(tuple(cell or NOTHING for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def render_documents(
    documents: Sequence[Mapping[str, object]], output: str, *, as_list: bool | None = None
) -> str:
    """As ``yaml`` or ``json``; a ``List`` unless it is one, or as told. Ends with a newline."""
    if as_list is None:
        as_list = len(documents) != 1
    shown = make_list(documents) if as_list else documents[0]
    if output == "json":
        return json.dumps(shown, indent=2, ensure_ascii=False) + "\n"
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


def make_list(documents: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """What ``kubectl`` and ``read_document`` take apart again."""
    return {"apiVersion": "v1", "kind": "List", "items": list(documents)}


def describe_age(seconds: float) -> str:
    """A span as kubectl writes ages: ``45s``, ``12m``, ``3h``, ``2d``; never below zero."""
    whole = max(0, int(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if whole >= 2 * size:
            return f"{whole // size}{unit}"
    return f"{whole}s"
