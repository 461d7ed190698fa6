"""Kernel settings below /proc/sys, and the record of what they were before we changed them.

A setting bears no mark. So before one is changed, its value is written down, and a setting is ours
while it stands in that record. The record is of one network of one boot: of any other it is void,
for there the settings are what others made them. What somebody else has changed since is theirs,
and is not given back.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar, TypeVarTuple

from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.host import HostFacts
from kilo.mesh.state import FORWARDING, Sysctl
from kilo.mesh.sysctls import list_relevant, name_setting

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

RECORD = Path("/var/lib/kilo/sysctls.json")
PLACES = (Path("/host/proc/sys"), Path("/proc/sys"))
"""In a container /proc/sys is read-only, mostly; the first is where manifests mount the host's
``net``. Both show the settings of the network of whoever looks."""
BOOT = Path("/proc/sys/kernel/random/boot_id")
NETWORK = Path("/proc/thread-self/ns/net")

_SO_NETNS_COOKIE = 71
_COOKIE_BYTES = 8
_SWAPPED = str.maketrans("./", "/.")
"""Between a setting's name and its path, as sysctl(8) has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known of a setting that we have changed."""

    before: str
    value: str
    """What we have made of it."""
    besides: Mapping[str, str] = field(default_factory=dict)
    """Other settings, which the kernel changes as well when this one goes back: their values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The settings that were asked for, as far as there are any, as others have them."""

    values: dict[str, str]
    fixed: frozenset[str]
    """Those that cannot be changed by us, or not given back."""


class Sysctls:
    """The settings of the network that the event loop's thread is in.

    Every call runs in a thread of the object's own: /proc/sys makes a writer wait for the
    network's lock, and the record is on a disk.
    """

    def __init__(self, record: Path = RECORD) -> None:
        self._path = record
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sysctls")

    async def find(self, names: Iterable[str]) -> Host:
        """What others have made of these settings."""
        return await self._block(self._find, tuple(names))

    async def read(self) -> frozenset[Sysctl]:
        """Those that are ours, with the values that they have now."""
        return await self._block(self._read)

    async def apply(self, steps: Sequence[Change]) -> list[DataplaneError]:
        """Carry out steps about settings; what failed, each text beginning with its step."""
        return await self._block(self._apply, steps)

    async def _block(self, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, work, *arguments)

    def _find(self, names: tuple[str, ...]) -> Host:
        values = {name: value for name in names if (value := read_value(name)) is not None}
        fixed = frozenset(name for name in values if self._is_fixed(name))
        for name, entry in self._load().items():
            if name in values and name not in fixed:
                values[name] = entry.before
        return Host(values=values, fixed=fixed)

    def _is_fixed(self, name: str) -> bool:
        return not can_write(name) or not can_write_into(self._path.parent)

    def _read(self) -> frozenset[Sysctl]:
        names = (name for name in self._load() if not self._is_fixed(name))
        present = ((name, read_value(name)) for name in names)
        return frozenset(Sysctl(name=name, value=value) for name, value in present if value)

    def _apply(self, steps: Sequence[Change]) -> list[DataplaneError]:
        failures = []
        for step in steps:
            try:
                self._carry_out(step)
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                failure = DataplaneError(f"{step}: {where}{error.strerror}")
                failure.__cause__ = error
                failures.append(failure)
        return failures

    def _carry_out(self, step: Change) -> None:
        match step.old, step.new:
            case _, Sysctl() as wanted:
                self._set(wanted)
            case Sysctl() as ours, None:
                self._give_back(ours.name)

    def _set(self, wanted: Sysctl) -> None:
        entries = self._load()
        if wanted.name not in entries:
            before = locate(wanted.name).read_text(encoding="ascii").strip()
            besides = dict(list_besides(wanted.name))
            entry = Entry(before=before, value=wanted.value, besides=besides)
            # First, so that whoever finds the setting changed also finds what it was.
            self._save(entries | {wanted.name: entry})
        write_value(wanted.name, wanted.value)

    def _give_back(self, name: str) -> None:
        entries = self._load()
        entry = entries.pop(name, None)
        if entry is None:
            return
        if read_value(name) == entry.value:
            write_value(name, entry.before)
            for other, value in entry.besides.items():
                if read_value(other) not in (None, value):
                    write_value(other, value)
        self._save(entries)

    def _load(self) -> dict[str, Entry]:
        """What is recorded of this network; nothing where the file is none of ours."""
        try:
            content = json.loads(self._path.read_bytes())
            if content["network"] != identify_network():
                return {}
            return {name: Entry(**entry) for name, entry in content["sysctls"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            # Missing, mostly. A power cut may leave half a file, but then the boot is another.
            return {}

    def _save(self, entries: Mapping[str, Entry]) -> None:
        if not entries:
            self._path.unlink(missing_ok=True)
            return
        sysctls = {name: asdict(entry) for name, entry in entries.items()}
        content = {"network": identify_network(), "sysctls": sysctls}
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not synced to the disk: a crash of the machine resets every setting anyway.
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        temporary.replace(self._path)


async def add_sysctls(
    facts: HostFacts, sysctls: Sysctls, interface: str, tunnels: Collection[str]
) -> HostFacts:
    """The facts with the settings that matter to a mesh on that interface and those tunnels."""
    switches = [name_setting(6, link, "disable_ipv6") for link in (interface, "default")]
    host = await sysctls.find([*list_relevant(facts, (interface, *tunnels)), *switches])
    # A link that is yet to be made will have the default. A host without IPv6 has neither.
    off = next((host.values[name] for name in switches if name in host.values), "1")
    return replace(
        facts,
        families=frozenset({4} if off != "0" else {4, 6}),
        sysctls=MappingProxyType(host.values),
        fixed_sysctls=host.fixed,
    )


def find_settings(places: Sequence[Path]) -> Path:
    """The first of the places that has the settings of networks, else the last."""
    return next((place for place in places if (place / "net").is_dir()), places[-1])


SETTINGS = find_settings(PLACES)


def locate(name: str) -> Path:
    """Where a setting is, in the network of the thread that looks."""
    return SETTINGS / name.translate(_SWAPPED)


def read_value(name: str) -> str | None:
    """The value of a setting; None if there is no such setting, say because its link has gone."""
    try:
        return locate(name).read_text(encoding="ascii").strip()
    except OSError:
        return None


def write_value(name: str, value: str) -> None:
    """Set it; ``OSError``."""
    locate(name).write_text(value, encoding="ascii")


def can_write(name: str) -> bool:
    """Whether this program may set it: /proc/sys is read-only in many containers."""
    try:
        # Opening alone changes nothing, and unlike access(2) it asks the security modules too.
        os.close(os.open(locate(name), os.O_WRONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def can_write_into(directory: Path) -> bool:
    """Whether files can be made in a directory, or it can be made itself."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    return os.access(there, os.W_OK)


def list_besides(name: str) -> Iterator[tuple[str, str]]:
    """What does not come back by itself when forwarding is switched off again: the kernel then
    makes all links the same, and accepts redirects.
    """
    family = next((f"ipv{version}" for version, one in FORWARDING.items() if one == name), None)
    if family is None:
        return
    for path in (SETTINGS / "net" / family / "conf").glob("*/forwarding"):
        one = str(path.relative_to(SETTINGS)).translate(_SWAPPED)
        if path.parent.name != "all" and read_value(one) == "1":
            yield one, "1"
    redirects = f"net.{family}.conf.all.accept_redirects"
    if read_value(redirects) == "0":
        yield redirects, "0"


def identify_network() -> str:
    """A name for the boot and the network namespace, as no others will ever be called."""
    boot = BOOT.read_text(encoding="ascii").strip()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        cookie = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_BYTES)
        return f"{boot} {int.from_bytes(cookie, 'little')}"
    # A kernel before 5.14, whose numbers of namespaces are used again.
    return f"{boot} inode {NETWORK.stat().st_ino}"
