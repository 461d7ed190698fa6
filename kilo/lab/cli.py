"""``kgctl lab``: words and flags -> calls of ``Lab`` -> what people see."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kilo.errors import ConfigError, LabError
from kilo.flags import BOOL, DURATION, INT, STRING, Flag, FlagSet, Parsed, format_rows
from kilo.lab import demo
from kilo.lab.box import make_environment
from kilo.lab.lab import Lab, take_down
from kilo.lab.reach import Reachability, draw_table
from kilo.lab.screen import Screen
from kilo.lab.status import draw_status
from kilo.lab.stores import FILE, STORES
from kilo.mesh.model import Granularity

WIDTH = 100

NAME = Flag("name", STRING, "lab", "which lab", placeholder="name")
GRANULARITY = Flag(
    "granularity",
    STRING,
    "",
    "in place of the mesh's own",
    choices=tuple(one.value for one in Granularity),
)
BACKEND = Flag("backend", STRING, FILE, "the store that the agents share", choices=STORES)
MEMBERS = Flag("members", INT, 1, "of --backend=etcd or hybrid: how many members the etcd has")
AGENTS = Flag("agents", BOOL, default=True, help="start the agents")
WAIT = Flag("wait", DURATION, 120.0, "how long to wait until everybody reaches everybody; 0s: not")
OUTPUT = Flag("output", STRING, "table", "how to print it", choices=("table", "json"), short="o")
WATCH = Flag("watch", BOOL, default=False, help="show who reaches whom until everybody does")
FOLLOW = Flag("follow", BOOL, default=False, help="print what is added, too", short="f")
AGENT = Flag("agent", BOOL, default=False, help="only the agent, not the host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One word after ``kgctl lab``."""

    run: Callable[[Parsed], int]
    arguments: str
    """As its usage shows them."""
    help: str
    flags: tuple[Flag[Any], ...] = (NAME,)
    least: int = 0
    most: int | None = 0
    """How many arguments it takes; None: any number."""
    interspersed: bool = True
    """Whether flags may follow arguments."""


def run(words: list[str]) -> int:
    """Run ``kgctl lab`` with these words; the exit status. Raises ``KiloError``."""
    if not words or words[0] in {"-h", "--help", "help"}:
        print(format_usage(), end="")
        return 0 if words else 2
    try:
        command, parsed = parse_words(words)
    except ConfigError as error:
        print(f"kgctl lab: {error}", file=sys.stderr)
        return 2
    except SystemExit:  # help was asked for, and printed
        return 0
    return command.run(parsed)


def parse_words(words: list[str]) -> tuple[Command, Parsed]:
    """The command and what it was told; raises ``ConfigError`` for wrong usage."""
    name, *rest = words
    command = COMMANDS.get(name)
    if command is None:
        raise ConfigError(f"{name!r} is not a command: {', '.join(COMMANDS)}")
    shown = (
        (command.arguments, "[flags]") if command.interspersed else ("[flags]", command.arguments)
    )
    usage = " ".join(filter(None, ("usage: kgctl lab", name, *shown)))
    flag_set = FlagSet(
        f"kgctl lab {name}",
        command.flags,
        f"{usage}\n\n{command.help}",
        max_arguments=command.most,
        interspersed=command.interspersed,
    )
    parsed = flag_set.parse(rest, {})
    if len(parsed.arguments) < command.least:
        raise ConfigError(f"{name}: an argument is missing; {usage}")
    return command, parsed


def format_usage() -> str:
    """What ``kgctl lab --help`` prints."""
    rows = [(f"  {name} {one.arguments}".rstrip(), one.help) for name, one in COMMANDS.items()]
    return (
        "usage: kgctl lab COMMAND [flags]\n\n"
        "A whole mesh on this machine: hosts as namespaces, real agents, real tunnels.\n\n"
        f"{format_rows(rows, WIDTH)}\n\n"
        "Examples:\n"
        "  kgctl lab up examples/file/three-clouds\n"
        "  kgctl lab exec oregon-1 -- ping -c3 frankfurt-1\n"
        "  kgctl lab check && kgctl lab down\n\n"
        "kgctl lab COMMAND --help lists a command's flags.\n"
    )


def open_lab(parsed: Parsed) -> Lab:
    """The lab that ``--name`` says."""
    return Lab.open(parsed.value(NAME))


def run_up(parsed: Parsed) -> int:
    """Build, then watch the mesh form."""
    lab = Lab.up(
        Path(parsed.arguments[0]),
        name=parsed.value(NAME),
        backend=parsed.value(BACKEND),
        members=parsed.value(MEMBERS),
        agents=parsed.value(AGENTS),
        granularity=parsed.value(GRANULARITY) or None,
        progress=lambda words: print(words, file=sys.stderr),
    )
    if parsed.value(AGENTS) and parsed.value(WAIT):
        watch_mesh(lab, parsed.value(WAIT))
    return 0


def watch_mesh(lab: Lab, timeout: float) -> Reachability:
    """Show who reaches whom until everybody does; ``LabError`` after ``timeout`` seconds."""
    screen = Screen(sys.stdout)
    return lab.wait_reachable(timeout, watch=screen.show_reachability)


def run_down(parsed: Parsed) -> int:
    """Take down."""
    name = parsed.value(NAME)
    print(f"lab {name!r} {'is down' if take_down(name) else 'was not there'}", file=sys.stderr)
    return 0


def run_demo(parsed: Parsed) -> int:
    """Show everything."""
    directory = Path(*parsed.arguments[:1]) if parsed.arguments else demo.EXAMPLE
    return demo.run_demo(directory, backend=parsed.value(BACKEND), members=parsed.value(MEMBERS))


def run_check(parsed: Parsed) -> int:
    """Ping and print."""
    result = open_lab(parsed).check()
    as_json = parsed.value(OUTPUT) == "json"
    print(json.dumps(result.as_document(), indent=2) if as_json else draw_table(result))
    return 0 if result.complete else 1


def run_status(parsed: Parsed) -> int:
    """Print what hosts do; or watch."""
    lab = open_lab(parsed)
    print(draw_status(lab))
    if parsed.value(WATCH):
        watch_mesh(lab, timeout=float("inf"))
    return 0


def run_exec(parsed: Parsed) -> int:
    """Run a command with our own input and output; its exit status."""
    host, *words = parsed.arguments
    box = open_lab(parsed).host(host).box
    command = drop_dashes(words)
    if not command:
        raise ConfigError(f"exec {host}: no command is given")
    return run_through(box.wrap(command))


def drop_dashes(words: Sequence[str]) -> Sequence[str]:
    """The words of a command, which may be set off from flags of ours."""
    return words[1:] if words[:1] == ["--"] else words


def run_through(command: Sequence[str]) -> int:
    """Run it with our own input and output; its exit status."""
    return subprocess.run(command, check=False, env=make_environment()).returncode  # noqa: S603 - running what it is told is what it is for


def run_kubectl(parsed: Parsed) -> int:
    """Run ``kubectl`` with our own input, output and files; its exit status."""
    return run_through(open_lab(parsed).plane.wrap_kubectl(drop_dashes(parsed.arguments)))


def run_etcdctl(parsed: Parsed) -> int:
    """Run ``etcdctl`` likewise."""
    return run_through(open_lab(parsed).etcd.wrap_etcdctl(drop_dashes(parsed.arguments)))


def run_store(parsed: Parsed) -> int:
    """Do something to the store, or to members of it."""
    word, *members = parsed.arguments
    open_lab(parsed).store.befall(word, members)
    return 0


def run_logs(parsed: Parsed) -> int:
    """Print a log."""
    host = open_lab(parsed).host(parsed.arguments[0])
    if not host.log.exists():
        raise LabError(f"host {host.name}: no agent has been started")
    command = ["tail", "-n", "+1", *(["-F"] if parsed.value(FOLLOW) else []), str(host.log)]
    return subprocess.run(command, check=False).returncode  # noqa: S603 - a file of ours


def run_cut(parsed: Parsed) -> int:
    """Cut."""
    open_lab(parsed).cut(*parsed.arguments)
    return 0


def run_heal(parsed: Parsed) -> int:
    """Heal."""
    open_lab(parsed).heal(*parsed.arguments)
    return 0


def run_kill(parsed: Parsed) -> int:
    """Kill an agent or a host."""
    lab, name = open_lab(parsed), parsed.arguments[0]
    if parsed.value(AGENT):
        lab.host(name).kill_agent()
    else:
        lab.kill(name)
    return 0


def run_start(parsed: Parsed) -> int:
    """Start an agent or a host."""
    lab, name = open_lab(parsed), parsed.arguments[0]
    if parsed.value(AGENT):
        lab.host(name).start_agent()
    else:
        lab.start(name)
    return 0


def run_restart(parsed: Parsed) -> int:
    """Restart an agent or a host."""
    lab, name = open_lab(parsed), parsed.arguments[0]
    if parsed.value(AGENT):
        lab.host(name).restart_agent()
    else:
        lab.kill(name)
        lab.start(name)
    return 0


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "up": Command(
            run=run_up,
            arguments="DIR",
            help="build the lab of a directory with lab.yaml and mesh/",
            flags=(NAME, BACKEND, MEMBERS, GRANULARITY, AGENTS, WAIT),
            least=1,
            most=1,
        ),
        "check": Command(
            run=run_check,
            arguments="",
            help="ping everything from everything; status 1 if not everything answers",
            flags=(NAME, OUTPUT),
        ),
        "status": Command(
            run=run_status,
            arguments="",
            help="what every host is and does",
            flags=(NAME, WATCH),
        ),
        "exec": Command(
            run=run_exec,
            arguments="HOST -- COMMAND",
            help="run a command on a host",
            least=2,
            most=None,
            interspersed=False,
        ),
        "logs": Command(
            run=run_logs,
            arguments="HOST",
            help="print what a host's agent has logged",
            flags=(NAME, FOLLOW),
            least=1,
            most=1,
        ),
        "kubectl": Command(
            run=run_kubectl,
            arguments="-- WORDS",
            help="run kubectl on the API server of --backend=kubernetes, as its administrator",
            least=1,
            most=None,
            interspersed=False,
        ),
        "etcdctl": Command(
            run=run_etcdctl,
            arguments="-- WORDS",
            help="run etcdctl on the members of --backend=etcd that can answer",
            least=1,
            most=None,
            interspersed=False,
        ),
        "store": Command(
            run=run_store,
            arguments="WORD [MEMBER ...]",
            help="what may befall an API server or an etcd, or members of this: kill, start, freeze"
            " (stop where it is), thaw (let go on); of an API server also save, restore",
            least=1,
            most=None,
        ),
        "cut": Command(
            run=run_cut,
            arguments="HOST [HOST]",
            help="drop all packets of a host, or those between two",
            least=1,
            most=2,
        ),
        "heal": Command(
            run=run_heal,
            arguments="[HOST [HOST]]",
            help="undo a cut, or all of them",
            most=2,
        ),
        "kill": Command(
            run=run_kill,
            arguments="HOST",
            help="switch a host off, or kill its agent (SIGKILL)",
            flags=(NAME, AGENT),
            least=1,
            most=1,
        ),
        "start": Command(
            run=run_start,
            arguments="HOST",
            help="switch a host on, or start its agent",
            flags=(NAME, AGENT),
            least=1,
            most=1,
        ),
        "restart": Command(
            run=run_restart,
            arguments="HOST",
            help="switch a host off and on, or stop its agent (SIGTERM) and start it",
            flags=(NAME, AGENT),
            least=1,
            most=1,
        ),
        "down": Command(
            run=run_down, arguments="", help="take the lab down, whatever state it is in"
        ),
        "demo": Command(
            run=run_demo,
            arguments="[DIR]",
            help="show everything: granularities, faults, a new peer",
            flags=(BACKEND, MEMBERS),
            most=1,
        ),
    }
)
