"""One line about a program, for its manual page: ``summary.py kg``."""

import sys

SUMMARIES = {
    "kg": "the agent that joins this host to a Kilo mesh",
    "kgctl": "shows, checks and changes a Kilo mesh",
}

print(SUMMARIES[sys.argv[1]])  # noqa: T201 - its output is what it is for
