"""A table that fills in place on a terminal; elsewhere a line a change, and the full table."""

from __future__ import annotations

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
            self._output.write(UP_AND_CLEAR.format(lines=self._shown.count("\n") + 1))
        self._shown = text
        self._print(text.replace("✓", f"{GREEN}✓{PLAIN}").replace("✗", f"{RED}✗{PLAIN}"))

    def _print(self, text: str) -> None:
        self._output.write(text + "\n")
        self._output.flush()
