"""A virtual machine with Debian's kernel, for tests of what this kernel cannot do.

virtme-ng boots it, emulated, on this machine's own file system, which it sees but cannot
write: so the same Python, the same sources. It takes half a minute and runs ten times slower.
KVM is never used: where the test machine is virtual itself, it is there and does not work.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
VENV_BIN = Path(sys.executable).parent
LIMIT_SECONDS = 900
MODULES = ("wireguard", "veth", "ipip", "nf_tables")
PYTEST_INI = "[pytest]\n"


class NoTestsRanError(Exception):
    """The machine did not start, did not end or ran nothing; says what it printed last."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of each test, by name: empty if it passed, what pytest said if not."""

    failures: Mapping[str, str]


def run_in_machine(tests: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Outcomes:
    """Boot the machine, run the tests in it, shut it down."""
    script = folder / "run.sh"
    script.write_text(
        f"modprobe -a {' '.join(MODULES)}\n{format_command(tests, folder, environment)}\n"
    )
    log = folder / "log"
    machine = [
        *("vng", "--verbose", "--run", str(find_kernel()), "--disable-kvm"),
        *("--cpus", "2", "--memory", "2G", "--rwdir", str(folder)),
        *("--", f"bash {shlex.quote(str(script))} > {shlex.quote(str(log))} 2>&1"),
    ]
    run_bounded(machine, folder / "console")
    return read_outcomes(folder)


def run_here(tests: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Outcomes:
    """The same on this machine, whose kernel can do it."""
    run_bounded(["bash", "-c", format_command(tests, folder, environment)], folder / "log")
    return read_outcomes(folder)


def format_command(tests: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    """The shell command that runs the tests, with no plugins: imports are slow in emulation."""
    (folder / "pytest.ini").write_text(PYTEST_INI)
    settings = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return shlex.join(
        [
            *("env", "-C", str(ROOT)),
            *(f"{name}={value}" for name, value in (settings | dict(environment)).items()),
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
            *("-c", str(folder / "pytest.ini"), "--rootdir", str(ROOT), "--durations", "5"),
            *("--basetemp", str(folder / "tmp"), "--junitxml", str(folder / "junit.xml")),
            *tests,
        ]
    )


def find_kernel() -> Path:
    """The newest kernel in /boot whose modules have WireGuard."""
    found = [
        image
        for image in sorted(Path("/boot").glob("vmlinuz-*"))
        if any(
            Path("/lib/modules", image.name.removeprefix("vmlinuz-")).glob(
                "kernel/drivers/net/wireguard/wireguard.ko*"
            )
        )
    ]
    if not found:
        raise NoTestsRanError("no kernel with WireGuard in /boot: install linux-image-amd64")
    return found[-1]


def run_bounded(command: list[str], output: Path) -> None:
    """Run to the end, or to the limit, and then end it with all it has started."""
    path = f"{VENV_BIN}:{os.environ.get('PATH', '')}"
    with output.open("wb") as file:
        try:
            process = subprocess.Popen(
                command,
                # virtme-ng hangs on an input that is neither this nor a terminal.
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": path},
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise NoTestsRanError(f"{command[0]} is not installed") from error
        try:
            process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise NoTestsRanError(f"not done in {LIMIT_SECONDS} s: {read_tail(output)}") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def read_outcomes(folder: Path) -> Outcomes:
    """What pytest wrote; raises if it wrote nothing."""
    report = folder / "junit.xml"
    if not report.exists():
        tails = [read_tail(folder / name) for name in ("log", "console")]
        raise NoTestsRanError(f"no report: {' | '.join(tails)}")
    cases = ET.parse(report).getroot().iter("testcase")
    failures = {
        case.get("name", "?"): "\n".join(
            f"{problem.tag}: {problem.get('message')}\n{problem.text or ''}"
            for problem in case
            if problem.tag in {"failure", "error", "skipped"}
        )
        for case in cases
    }
    if not failures:
        raise NoTestsRanError(f"pytest ran no test: {read_tail(folder / 'log')}")
    return Outcomes(failures)


def read_tail(path: Path) -> str:
    """The last lines of a file, if there is one."""
    if not path.exists():
        return f"{path.name}: none"
    return f"{path.name}: {path.read_text(errors='replace')[-2000:]}"
