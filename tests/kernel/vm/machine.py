"""A virtual machine with Debian's kernel, for tests of what this kernel cannot do.

virtme-ng boots it, emulated, on this machine's own file system, which it sees but cannot
write: so the same Python, the same sources. It takes half a minute and runs ten times slower.
KVM is never used: where the test machine is virtual itself, it is there and does not work.

Two things would make it five times slower still, were they left as they are: a clock that is a
device, and files that are asked for anew, directory by directory, whenever they are opened.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
VENV_BIN = Path(sys.executable).parent
LIMIT_SECONDS = 2400
BOOT_SECONDS = 300
"""A machine that has said nothing for so long will not."""
LOOK_SECONDS = 1.0
BOOTED = "booted: kernel"
MODULES = (
    *("wireguard", "veth", "ipip", "vxlan", "bridge", "nf_tables", "nft_compat"),
    *("ip_tables", "iptable_filter", "iptable_nat", "iptable_mangle", "ip_set_hash_net"),
    *("ip6_tables", "ip6table_filter", "ip6table_nat", "ip6table_mangle"),
)
CLOCK = "tsc=reliable"
"""Else the kernel distrusts the counters of more than one processor of this kind, and each look at
the clock goes through the emulator, one at a time.
"""
CACHED = "cached"
SHARE = (
    f"-fsdev local,id={CACHED},path=/,security_model=none,readonly=on,multidevs=remap"
    f" -device virtio-9p-pci,fsdev={CACHED},mount_tag={CACHED}"
)
"""The file system once more, to be mounted in a way that keeps what was read."""
SCRIPT = """
echo "{booted} $(uname -r)"
modprobe -a {modules}
set -e
mkdir /run/{cached}
mount -t 9p -o ro,version=9p2000.L,trans=virtio,msize=500000,cache=loose {cached} /run/{cached}
for place in {places}; do mount --bind "/run/{cached}$place" "$place"; done
umount /run/{cached}
{command}
"""
PYTEST_INI = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
PLUGINS = ("pytest_asyncio.plugin",)
"""No others are loaded: imports are slow in emulation."""

Tell = Callable[[str], None]
"""Is called with a line now and then, so that a person sees that it goes on."""


class NoTestsRanError(Exception):
    """The machine did not start, did not end or ran nothing; says what it printed last."""


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """A test function, by its file below the root and its name."""

    file: str
    name: str

    def __str__(self) -> str:
        return f"{self.file}::{self.name}"


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of each test: empty if it passed, what pytest said if not."""

    failures: Mapping[Case, str]


def run_in_machine(
    tests: Sequence[Case], folder: Path, environment: Mapping[str, str], tell: Tell
) -> Outcomes:
    """Boot the machine, run the tests in it, shut it down."""
    script = folder / "run.sh"
    script.write_text(
        SCRIPT.format(
            booted=BOOTED,
            modules=" ".join(MODULES),
            cached=CACHED,
            places=shlex.join(["/usr", str(ROOT), sys.prefix]),
            command=format_command(tests, folder, environment),
        )
    )
    log = folder / "log"
    machine = [
        *("vng", "--verbose", "--run", str(find_kernel()), "--disable-kvm"),
        *("--cpus", "2", "--memory", "5G", "--rwdir", str(folder)),
        *("--append", CLOCK, f"--qemu-opts={SHARE}"),
        *("--", f"bash {shlex.quote(str(script))} > {shlex.quote(str(log))} 2>&1"),
    ]
    with start(machine, folder / "console") as process:
        follow(process, log, tell)
    return read_outcomes(folder, process.returncode)


def run_here(
    tests: Sequence[Case], folder: Path, environment: Mapping[str, str], tell: Tell
) -> Outcomes:
    """The same on this machine, whose kernel can do it."""
    log = folder / "log"
    with start(["bash", "-c", format_command(tests, folder, environment)], log) as process:
        follow(process, log, tell)
    return read_outcomes(folder, process.returncode)


def format_command(tests: Sequence[Case], folder: Path, environment: Mapping[str, str]) -> str:
    """The shell command that runs the tests."""
    (folder / "pytest.ini").write_text(PYTEST_INI)
    settings = {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return shlex.join(
        [
            *("env", "-C", str(ROOT)),
            *(f"{name}={value}" for name, value in (settings | dict(environment)).items()),
            *(sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider"),
            *(word for plugin in PLUGINS for word in ("-p", plugin)),
            *("-c", str(folder / "pytest.ini"), "--rootdir", str(ROOT), "--durations", "5"),
            *("--basetemp", str(folder / "tmp"), "--junitxml", str(folder / "junit.xml")),
            *map(str, tests),
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


@contextmanager
def start(command: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A running program; in the end it is ended with all it has started."""
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
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def follow(process: subprocess.Popen[bytes], log: Path, tell: Tell) -> None:
    """Wait for its end, telling each line of its log with the seconds it took to come to it."""
    began_at = time.monotonic()
    told = 0
    ended = False
    while not ended:
        try:
            process.wait(LOOK_SECONDS)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        seconds = time.monotonic() - began_at
        lines = read_progress(log)
        for line in lines[told:]:
            tell(f"[{seconds:4.0f} s] {line}")
        told = len(lines)
        if not ended and seconds > (LIMIT_SECONDS if told else BOOT_SECONDS):
            tails = " | ".join(map(read_tail, (log, log.with_name("console"))))
            raise NoTestsRanError(f"not done in {seconds:.0f} s: {tails}")


def read_progress(log: Path) -> list[str]:
    """The lines that say where it is: that it has booted, and each test that ran."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [
        line for line in lines if line.startswith((BOOTED, "collected ")) or line.endswith("%]")
    ]


def read_outcomes(folder: Path, status: int) -> Outcomes:
    """What pytest wrote; raises if it wrote nothing, with what the program ended with."""
    report = folder / "junit.xml"
    if not report.exists():
        tails = [read_tail(folder / name) for name in ("log", "console")]
        raise NoTestsRanError(f"no report, status {status}: {' | '.join(tails)}")
    failures: dict[Case, str] = {}
    for entry in ET.parse(report).getroot().iter("testcase"):
        case = read_case(entry)
        failures[case] = failures.get(case, "") + describe_failure(entry)
    if not failures:
        raise NoTestsRanError(f"pytest ran no test: {read_tail(folder / 'log')}")
    return Outcomes(failures)


def read_case(entry: ET.Element) -> Case:
    """Which test it was; all parameters of one are one."""
    file = entry.get("classname", "?").replace(".", "/") + ".py"
    return Case(file, entry.get("name", "?").partition("[")[0])


def describe_failure(entry: ET.Element) -> str:
    """What pytest said of a test; empty if it passed."""
    return "".join(
        f"{entry.get('name')}: {problem.tag}: {problem.get('message')}\n{problem.text or ''}\n"
        for problem in entry
        if problem.tag in {"failure", "error", "skipped"}
    )


def read_tail(path: Path) -> str:
    """The last lines of a file, if there is one."""
    if not path.exists():
        return f"{path.name}: none"
    return f"{path.name}: {path.read_text(errors='replace')[-2000:]}"
