"""An agent's work on a host's network, killed before any write of it that one likes.

``python -m tests.kernel.crashing`` is a process whose children each do the work once, on the real
kernel: so the modules are loaded once, and every child begins as a fresh agent does. It is killed
as the kernel kills, with SIGKILL, when its budget of writes is used up. Counted are

- requests to the kernel and to a userspace WireGuard that are no questions,
- files made, changed, renamed or removed, settings below /proc/sys among them,
- programs started, other than those that only look; of the scripts for ``ipset restore`` and
  ``iptables-restore`` every transaction, for these programs can be killed as well.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, ip_interface
from pathlib import Path
from types import FrameType
from typing import Any

from kilo.agentlock import hold_lock
from kilo.dataplane.firewall import Choice, HostFirewall
from kilo.dataplane.linux import LinuxDataplane
from kilo.dataplane.nlsocket import NLM_F_DUMP, Message, split_messages
from kilo.dataplane.wireguard import WireGuard
from kilo.keyfile import generate_private_key, public_key
from kilo.mesh.diff import diff
from kilo.mesh.keys import PrivateKey
from kilo.mesh.state import DataplaneState, Tunnel
from kilo.mesh.view import RenderOptions
from tests.dataplane.contract import make_state
from tests.kernel.firewall_hosts import EXAMPLE
from tests.mesh.fleets import make_node, render_node

ENOUGH = 10_000
ROOT = Path(__file__).parents[2]
LEGACY = "kilo.dataplane.iptables_legacy"
TUNNEL = Tunnel(name="tunl0", mtu=1480, addresses=frozenset({ip_interface("10.2.1.1/32")}))
SCRIPTS = {
    "ipset": "^(swap|destroy kilo-known)",
    "iptables-nft-restore": "^COMMIT",
    "ip6tables-nft-restore": "^COMMIT",
}
"""Which lines of what a program reads are a transaction, or as good as the end of one."""

# Programs cut short: what is left of the budget comes first in the file, then all that was done.

_CUTTER = """#!/bin/sh
case "$*" in *restore*|*--noflush*) ;; *) exec {program} "$@";; esac
{{
  awk -v left="$(cat {budget})" '{{
    if (left < 0 || ($0 ~ /{unit}/ && --left < 0)) exit; print
  }} END {{ print left > "{budget}" }}'
}} | {program} "$@"
status=$?
[ "$(cat {budget})" -ge 0 ] || kill -KILL $PPID
exit $status
"""
_SITE = """
import io, os, signal, sys
if {module!r} in sys.orig_argv:
    budget = {budget!r}
    left = int(open(budget).read())
    *tables, _ = sys.stdin.read().split("COMMIT\\n")
    sys.stdin = io.StringIO("".join(table + "COMMIT\\n" for table in tables[:max(left, 0)]))
    with open(budget, "w") as file:
        print(left - len(tables), file=file)
    if left < len(tables):
        import atexit
        atexit.register(os.kill, os.getppid(), signal.SIGKILL)
"""


def write_cutters(directory: Path, budget: Path) -> None:
    """Programs to be found before the real ones, which spend the budget."""
    for name, unit in SCRIPTS.items():
        path = directory / name
        path.write_text(_CUTTER.format(program=shutil.which(name), budget=budget, unit=unit))
        path.chmod(0o755)
    (directory / "sitecustomize.py").write_text(_SITE.format(module=LEGACY, budget=str(budget)))


class Nursery:
    """The process, in the network namespace of whoever makes it; and one host's agents, its
    children, which all have the same key and want the same.
    """

    def __init__(self, directory: Path, interface: str, *, wanted: str) -> None:
        """``directory`` is for what agents write, and for what this needs; ``wanted`` is
        ``everything``, or ``firewall`` or ``tunnel`` for that alone.
        """
        self.state = directory / "state"
        self._budget = directory / "budget"
        tools = directory / "tools"
        for made in (self.state, tools):
            made.mkdir()
        write_cutters(tools, self._budget)
        paths = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": f"{tools}:{ROOT}"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, interface, wanted, str(self.state), str(self._budget)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | paths,
        )

    def work(self, what: str, choice: Choice, *, writes: int = ENOUGH) -> int | None:
        """``start``, ``uninstall``, or ``mesh 1000`` for the first pass in a mesh of so many nodes;
        killed after so many writes.

        How many it took, None if it did not come to its end.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._budget.write_text(f"{writes}\n")
        print(json.dumps([what, choice]), file=self._process.stdin)
        status = int(self._process.stdout.readline())
        assert status in (0, -signal.SIGKILL), status
        return writes - int(self._budget.read_text()) if status == 0 else None

    def read_journal(self) -> list[str]:
        """The programs that the last one started, and its requests, a line each."""
        return self._budget.with_suffix(".journal").read_text().splitlines()

    def close(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]  # a pipe was asked for
        self._process.wait()


# In the process


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A host as ``make_state`` wants to know it."""

    interface: str
    private_key: PrivateKey
    state: Path
    wanted: str

    async def work(self, desired: DataplaneState, choice: Choice) -> None:
        """As an agent's first pass does, or an uninstall."""
        with hold_lock(self.state, self.interface):
            await self._work(desired, choice)

    async def _work(self, desired: DataplaneState, choice: Choice) -> None:
        dataplane = LinuxDataplane(
            self.interface,
            wireguard=WireGuard(self.interface, self.private_key),
            firewall=HostFirewall(choice),
            hostname="localhost",
            sysctls_record=self.state / "sysctls.json",
        )
        await dataplane.apply(diff(await dataplane.read(), desired))
        await dataplane.close()

    def want(self, what: str) -> DataplaneState:
        """What the host's network is to look like."""
        if what == "uninstall":
            return DataplaneState()
        if what.startswith("mesh "):
            return self.want_mesh(int(what.removeprefix("mesh ")))
        if self.wanted == "firewall":
            return DataplaneState(firewall=EXAMPLE)
        if self.wanted == "tunnel":
            return DataplaneState(tunnels=frozenset({TUNNEL}))
        return replace(make_state(self), firewall=EXAMPLE)  # type: ignore[arg-type]  # two fields do

    def want_mesh(self, size: int) -> DataplaneState:
        """As the first of so many nodes sees it, each in a place of its own; there is room for
        1,024.
        """
        internal, pods = "192.168.0.1/24", IPv4Network("10.2.0.0/16").subnets(new_prefix=26)
        nodes = [
            make_node(f"n{i:04}", location=f"l{i:04}", internal=internal * (i == 0), pods=str(net))
            for i, net in zip(range(size), pods, strict=False)
        ]
        options = RenderOptions(interface=self.interface, cni=True, forward_rules=True)
        state = render_node("n0000", nodes, options=options)
        own = public_key(self.private_key)
        devices = frozenset(replace(device, public_key=own) for device in state.devices)
        return replace(state, devices=devices)


class Spender:
    """Notices writes of this process, and ends it when there are too many."""

    def __init__(self, budget: Path) -> None:
        self._descriptor = os.open(budget, os.O_RDWR)
        journal = budget.with_suffix(".journal")
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def begin(self) -> None:
        sys.addaudithook(self._see_event)
        threading.setprofile(self._see_call)
        sys.setprofile(self._see_call)

    def spend(self) -> None:
        left = int(os.pread(self._descriptor, 20, 0)) - 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        os.pwrite(self._descriptor, f"{left}\n".ljust(10).encode(), 0)

    def note(self, line: str) -> None:
        os.write(self._journal, f"{line}\n".encode())

    def _see_event(self, event: str, details: Sequence[Any]) -> None:
        if event == "open":
            path, _, flags = details
            if not isinstance(path, int) and flags & (os.O_WRONLY | os.O_RDWR):
                self.spend()
        elif event in ("os.rename", "os.remove", "os.mkdir"):
            self.spend()
        elif event == "subprocess.Popen":
            command = list(map(os.fsdecode, details[1]))
            self.note(" ".join(command))
            if is_changing(command):
                self.spend()

    def _see_call(self, frame: FrameType, event: str, what: Any) -> None:
        name = getattr(what, "__name__", "") if event == "c_call" else ""
        if name == "write" and frame.f_code.co_name == "write":
            self.note(f"script {len(frame.f_locals['data'])}")  # asyncio's, into a program's pipe
        if name not in ("send", "sendall"):
            return
        sock = getattr(what, "__self__", None)
        if not isinstance(sock, socket.socket):
            return
        requests = list_requests(sock, frame.f_locals)
        for request in requests:
            self.note(request)
        if requests:
            self.spend()


def is_changing(command: Sequence[str]) -> bool:
    """Whether a program does more than look, and spends nothing by itself."""
    words = " ".join(command)
    if any(name in words for name in ("restore", LEGACY)):
        return False
    return not any(word in words for word in ("-save", " list", "ipset -", "--version"))


def list_requests(sock: socket.socket, known: dict[str, Any]) -> list[str]:
    """Those that are to change something, of what is sent by a function that calls it so."""
    if sock.family == socket.AF_UNIX:
        words: list[str] = known.get("request", b"").decode("ascii").splitlines()
        names = [word.partition("=")[0] for word in words]
        return [f"uapi {name}" for name in names] if names[:1] == ["set"] else []
    if sock.family != socket.AF_NETLINK:
        return []
    return [
        f"netlink {message.type}" for message in split_messages(known["data"]) if changes(message)
    ]


def changes(message: Message) -> bool:
    """Of the family of routes: new, delete, get, set. Netfilter is only asked something."""
    is_question = message.type % 4 == 2 or message.type > 0xFF
    return not is_question and message.flags & NLM_F_DUMP != NLM_F_DUMP


def main(interface: str, wanted: str, state: str, budget: str) -> None:
    site = Site(
        interface=interface,
        private_key=generate_private_key(),
        state=Path(state),
        wanted=wanted,
    )
    for line in sys.stdin:
        what, choice = json.loads(line)
        desired = site.want(what)
        child = os.fork()
        if child == 0:
            Spender(Path(budget)).begin()
            asyncio.run(site.work(desired, Choice(choice)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - its answer


if __name__ == "__main__":
    main(*sys.argv[1:])
