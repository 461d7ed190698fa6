"""How long an agent takes from its start to its first applied pass, and what it keeps in memory.

Two agents in a lab of two hosts, started ten times each; needs root. Printed beside the time
that an empty Python program takes here, which tells the machine's speed.
"""

# ruff: noqa: T201 - printing is what a benchmark does

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kilo.errors import LabError
from kilo.lab.host import Host
from kilo.lab.lab import Lab

ROUNDS = 10
LAB = """
networks: {internet: {public: true, subnets: [198.51.100.0/24]}}
hosts:
  a: {networks: {internet: 198.51.100.11}}
  b: {networks: {internet: 198.51.100.12}}
"""
MESH = "\n---\n".join(
    f"{{apiVersion: kilo.squat.ai/v1alpha1, kind: Node, metadata: {{name: {name}}},"
    f" spec: {{location: {name}, podSubnets: [10.2.{number}.0/24]}}}}"
    for number, name in enumerate("ab", start=1)
)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "mesh").mkdir()
        (Path(directory) / "lab.yaml").write_text(LAB)
        (Path(directory) / "mesh" / "mesh.yaml").write_text(MESH)
        with Lab.up(Path(directory), name="bench", agents=False) as lab:
            lab.host("b").start_agent()
            seconds = [measure_start(lab.host("a")) for _ in range(ROUNDS)]
            lab.host("a").start_agent()
            wait_ready(lab.host("a"))
            (process,) = lab.host("a").agents()
            memory = read_memory(process)
    bare = min(measure_python() for _ in range(ROUNDS))
    print(f"start to first applied pass: {statistics.median(seconds):.2f} s (median of {ROUNDS})")
    print(f"  slowest {max(seconds):.2f} s; an empty Python program takes {bare:.2f} s here")
    print(f"resident memory of an agent: {memory / 1024:.0f} MiB")


def measure_start(host: Host) -> float:
    """Seconds until the agent is ready, on a host that knows nothing of it."""
    start = time.monotonic()
    host.start_agent()
    wait_ready(host)
    seconds = time.monotonic() - start
    host.kill_agent()
    host.run(host.agent_command("uninstall"))
    return seconds


def wait_ready(host: Host) -> None:
    """Until ``/ready`` answers 200."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if host.http("/ready").status == 200:
                return
        except LabError:
            pass  # not listening yet
        time.sleep(0.01)
    raise TimeoutError("the agent is not ready after 60 s")


def measure_python() -> float:
    """Seconds that starting Python takes."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", ""], check=True)
    return time.monotonic() - start


def read_memory(process: int) -> int:
    """Resident KiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


if __name__ == "__main__":
    main()
