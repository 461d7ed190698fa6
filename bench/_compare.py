"""Two trees' agents measured in one run, one after the other, and how the one compares.

    make bench-compare BASE=COMMIT

The same harness, this tree's, runs both: what differs is the agent. Ratios are to be compared, not
seconds: machines differ.
"""

# ruff: noqa: S603, T201 - a benchmark prints, and starts the programs it names

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROWS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "start, CPU beyond imports": lambda one: one["start_cpu_seconds"] - one["imports_cpu_seconds"],
    "imports, CPU": lambda one: one["imports_cpu_seconds"],
    "memory, most": lambda one: one["memory_mib"]["peak"],
    "a node joins, CPU": lambda one: one["join"]["cpu_seconds"],
    "a node joins, p50": lambda one: one["join"]["p50_seconds"],
    "a peer is added, CPU": lambda one: one["peer_added"]["cpu_seconds"],
    "at rest, CPU of a core": lambda one: one["rest"]["cpu_share"],
    "a pass without change, CPU": lambda one: one["no_change"]["cpu_seconds"],
}


def main() -> None:
    """Measure both and print a row a figure."""
    base, *words = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "base"
        command = ["git", "worktree", "add", "--detach", str(tree), base]
        subprocess.run(command, cwd=ROOT, check=True)
        try:
            before = measure(tree, Path(directory) / "before.json", words)
            after = measure(ROOT, Path(directory) / "after.json", words)
        finally:
            command = ["git", "worktree", "remove", "--force", str(tree)]
            subprocess.run(command, cwd=ROOT, check=True)
    print(f"\n| store | nodes | leader | what | {base} | here | ratio |\n|{' --- |' * 7}")
    for row in compare(before, after):
        print(f"| {row} |")


def measure(code: Path, output: Path, words: list[str]) -> list[dict[str, Any]]:
    """The figures of that tree's agent."""
    command = [sys.executable, "bench/agent.py", f"--code={code}", f"--json={output}", *words]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    figures: list[dict[str, Any]] = json.loads(output.read_text())["agent"]
    return figures


def compare(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Iterator[str]:
    """A row a fleet and figure."""
    known = {identify(one): one for one in before}
    for one in after:
        old = known.get(identify(one))
        if old is None:
            continue
        for name, read in ROWS.items():
            was, now = read(old), read(one)
            ratio = f"{now / was:.2f}" if was else ""
            yield " | ".join((*identify(one), name, f"{was:.3f}", f"{now:.3f}", ratio))


def identify(one: Mapping[str, Any]) -> tuple[str, str, str]:
    """Store, size and role."""
    return one["store"], f"{one['nodes']:,}", "yes" if one["leads"] else "no"


if __name__ == "__main__":
    main()
