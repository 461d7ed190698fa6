"""A table that fills in place on a terminal; elsewhere a line a change, and the full table."""

from __future__ import annotations

import os
from typing import TextIO

from kilo.lab.reach import Reachability, draw_table

GREEN, RED, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[0m"
UP_AND_CLEAR = "\x1b[{lines}F\x1b[J"


class Screen:
    """The place where the text is shown."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._shown = ""

    def show_reachability(self, result: Reachability) -> None:
        """Show who reaches whom, in the place of what was shown last."""
        if self._output.isatty():
            self._replace(draw_table(result))
        elif result.complete:
            self._print(draw_table(result))
        else:
            asked = sum(map(len, result.asked.values()))
            self._print(f"{asked - len(result.missing)} of {asked} pings answered")

    def _replace(self, text: str) -> None:
        if self._shown:
            columns = os.get_terminal_size(self._output.fileno()).columns
            self._output.write(UP_AND_CLEAR.format(lines=count_rows(self._shown, columns)))
        self._shown = text
        self._print(text.replace("✓", f"{GREEN}✓{PLAIN}").replace("✗", f"{RED}✗{PLAIN}"))

    def _print(self, text: str) -> None:
        self._output.write(text + "\n")
        self._output.flush()


def count_rows(text: str, columns: int) -> int:
    """How many rows the lines of a text take where longer ones wrap; 0 columns: not known."""
    return sum(-(-len(line) // (columns or len(line))) if line else 1 for line in text.split("\n"))
