"""Looking at the clock, the resolver and the store. Changes nothing."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from kilo.backends.opening import BackendConfig, open_store
from kilo.daemonthread import run_in_daemon_thread
from kilo.dataplane.tools import Tool, run_tool
from kilo.doctor.checking import locate_bug
from kilo.doctor.findings import Outcome
from kilo.doctor.judging_mesh import Clock, Names, Store, judge_clock, judge_names
from kilo.errors import BackendError, ConfigError, DataplaneError, MeshError
from kilo.mesh.model import Snapshot
from kilo.mesh.plan import find_endpoint_names
from kilo.mesh.survey import Flags, make_survey
from kilo.resolver import look_up

SILENT = "no answer"
TELLER_SECONDS = 5.0
"""For a program that asks another one over a bus."""
MOST_NAMES = 64
"""Each is looked up in a thread of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockTeller:
    """A program that knows whether the clock is synchronised, and what it prints then."""

    tool: Tool
    words: tuple[str, ...]
    yes: re.Pattern[str]
    no: re.Pattern[str]

    def read(self, output: str) -> bool | None:
        """Whether it is, by what the program printed; None where it does not know."""
        if self.no.search(output):
            return False
        return True if self.yes.search(output) else None


TELLERS = (
    ClockTeller(
        tool=Tool(program="timedatectl", package="systemd"),
        words=("show", "--property=NTPSynchronized"),
        yes=re.compile(r"=yes"),
        no=re.compile(r"=no"),
    ),
    ClockTeller(
        tool=Tool(program="chronyc", package="chrony"),
        words=("-n", "tracking"),
        yes=re.compile(r"^Leap status\s*: (Normal|Insert|Delete)", re.MULTILINE),
        no=re.compile(r"^Leap status\s*: Not synchronised", re.MULTILINE),
    ),
    # Last: it asks the kernel itself (adjtimex(2)), and few hosts have it.
    ClockTeller(
        tool=Tool(program="busybox", package="busybox"),
        words=("adjtimex",),
        yes=re.compile(r"return value: +[0-4]\b"),
        no=re.compile(r"return value: +5\b"),
    ),
)


async def check_clock(store: Store) -> Outcome:
    """Whether it is synchronised, and how it compares with the stamps in the store."""
    wall = time.time()
    synchronised, teller = await ask_clock(TELLERS)
    return judge_clock(
        Clock(
            synchronised=synchronised,
            teller=teller,
            wall=wall,
            last_seen=store.survey.snapshot.last_seen if store.survey else {},
        )
    )


async def ask_clock(tellers: Iterable[ClockTeller]) -> tuple[bool | None, str]:
    """Whether the clock is synchronised, and who said so; the first who knows is believed."""
    for teller in tellers:
        try:
            async with asyncio.timeout(TELLER_SECONDS):
                _, output, _ = await run_tool(teller.tool, *teller.words)
        except (DataplaneError, TimeoutError):
            continue
        answer = teller.read(output)
        if answer is not None:
            return answer, " ".join((teller.tool.program, *teller.words[:1]))
    return None, ""


async def check_names(host: str, store: Store, limit_seconds: float) -> Outcome:
    """The host's own name, and those of the endpoints in the store; all at once."""
    owners = find_endpoint_names(store.survey.topology) if store.survey else {}
    names = dict(list(owners.items())[:MOST_NAMES])
    answers = await asyncio.gather(*(resolve(name, limit_seconds) for name in (host, *names)))
    complaints = dict(zip(names, answers[1:], strict=True))
    return judge_names(
        Names(
            host=host,
            complaint=answers[0],
            is_silent=answers[0] == SILENT,
            endpoints={f"{name} of {names[name]}": complaints[name] for name in names},
        )
    )


async def resolve(name: str, limit_seconds: float) -> str:
    """Why the name does not resolve; empty if it does, ``SILENT`` where nobody answers."""
    try:
        async with asyncio.timeout(limit_seconds):
            await run_in_daemon_thread("resolver", partial(look_up, name))
    except TimeoutError:
        return SILENT
    except OSError as error:
        if error.errno == socket.EAI_AGAIN:  # the C library has lost patience first
            return SILENT
        return error.strerror or type(error).__name__
    except UnicodeError:
        return "is no name"
    return ""


async def read_store(
    config: BackendConfig,
    node: str,
    find_flags: Callable[[Snapshot], Flags],
    limit_seconds: float,
) -> Store:
    """What the store says; why it says nothing, within that time."""
    kind = ",".join((config.kind, *config.others))
    try:
        async with asyncio.timeout(limit_seconds), open_store(config) as backend:
            snapshot = await backend.snapshot()
        # As of the last stamp: a wrong clock is for another check.
        wall = float(max(snapshot.last_seen.values(), default=round(time.time())))
        survey = make_survey(snapshot, find_flags(snapshot), wall=wall)
    except TimeoutError:
        return Store(kind=kind, node=node, complaint=f"no answer in {limit_seconds:g} s")
    except (BackendError, ConfigError, MeshError) as error:
        return Store(kind=kind, node=node, complaint=str(error))
    except Exception as error:  # noqa: BLE001 - other checks ask for the store as well
        return Store(kind=kind, node=node, complaint=locate_bug(error))
    return Store(kind=kind, node=node, survey=survey)
