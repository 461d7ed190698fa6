"""``kgctl doctor``: what is wrong with this host, as a node of a mesh, and what helps."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from kilo.agentflags import OWN_FLAGS, find_name
from kilo.doctor.checks import Subject, examine
from kilo.doctor.findings import Outcome, Severity, find_worst
from kilo.errors import ConfigError
from kilo.flags import DURATION, STRING, Flag, Parsed
from kilo.kgctl.asking import ask_agent
from kilo.kgctl.meshing import MESH_FLAGS, find_mesh_flags
from kilo.kgctl.status import AGENT
from kilo.kgctl.statustext import Colour, Paint, choose_paint
from kilo.kgctl.storing import Usage, UsageError, find_store, run_command
from kilo.listening import parse_listen
from kilo.mesh.overview import AgentView

NAMES = ("cni-path", "hostname", "interface", "listen")
HOST_FLAGS = tuple(flag for flag in OWN_FLAGS if flag.name in NAMES)
OWN_AGENT = replace(AGENT, default_text="on this host, at the port of --listen")
OUTPUT = Flag("output", STRING, "text", "how to print it", choices=("text", "json"), short="o")
TIMEOUT = Flag("timeout", DURATION, 10.0, "how long to wait for the store, and for a name")
PATIENCE = 3
"""How many times as long a whole check may take, by default as long as a program that it runs."""
MARKS: Mapping[Severity | None, tuple[str, Colour]] = {
    None: ("ok", Colour.GOOD),
    Severity.INFO: ("ok", Colour.GOOD),
    Severity.WARNING: ("warning", Colour.IDLE),
    Severity.ERROR: ("error", Colour.BAD),
}
"""Of a check, by its worst finding."""

USAGE = Usage(
    command="kgctl doctor",
    help="Looks at this host as a node of a mesh, before or after its agent is started, and changes"
    " nothing:\nkernel, programs, settings, firewall, sizes of packets, ports, clock, names, store,"
    " key, leftovers,\nagent. Each finding has a code, which docs/doctor.md explains. Give it the"
    " flags of the agent. Ends\nwith 1 if there is an error. Who is not root sees less of it.",
    examples=(
        "kgctl doctor",
        "kgctl doctor --backend=file --interface=wg9 --port=51821",
        "kgctl doctor -o json | jq -r '.checks[].findings[].code'",
    ),
    flags=(OWN_AGENT, OUTPUT, TIMEOUT, *HOST_FLAGS, *MESH_FLAGS),
)


def run(words: Sequence[str]) -> int:
    """Run the command; its exit status."""
    return run_command(USAGE, words, show)


def show(parsed: Parsed) -> int:
    """Look, and tell."""
    subject = find_subject(parsed)
    outcomes = asyncio.run(examine(subject, check_seconds=PATIENCE * subject.limit_seconds))
    if parsed.value(OUTPUT) == "json":
        print(json.dumps(describe(outcomes), indent=2))
    else:
        print("\n".join(list_lines(outcomes, choose_paint())))
    findings = (finding for outcome in outcomes.values() for finding in outcome.findings)
    return 1 if any(finding.severity is Severity.ERROR for finding in findings) else 0


def find_subject(parsed: Parsed) -> Subject:
    """What the flags say of this host; ``UsageError``."""
    values = parsed.values
    try:
        host, port = parse_listen(values["listen"])
        node = find_name(values["hostname"])
    except ConfigError as error:
        raise UsageError(str(error)) from error
    address = f"http://{f'[{host}]' if ':' in host else host or '127.0.0.1'}:{port}"
    return Subject(
        node=node,
        interface=values["interface"],
        port=values["port"],
        listen=values["listen"],
        cni_path=values["cni-path"],
        store=find_store(parsed, os.environ),
        find_flags=partial(find_mesh_flags, parsed),
        agent=parsed.value(AGENT) if parsed.given(AGENT.name) else address,
        ask=ask_view,
        limit_seconds=parsed.value(TIMEOUT),
    )


def ask_view(address: str) -> AgentView | None:
    """What the agent there says of itself; ``SilentAgentError``."""
    return ask_agent(address)["agent"]


def describe(outcomes: Mapping[str, Outcome]) -> dict[str, object]:
    """All of it as a document."""
    return {"checks": [_describe_check(name, one) for name, one in outcomes.items()]}


def _describe_check(name: str, outcome: Outcome) -> dict[str, object]:
    worst = find_worst(outcome.findings)
    findings = [
        {
            "code": finding.code.value,
            "severity": finding.severity.value,
            "sentence": finding.sentence,
            "remedy": finding.remedy,
        }
        for finding in outcome.findings
    ]
    return {
        "name": name,
        "result": worst.value if worst else "ok",
        "summary": outcome.summary,
        "findings": findings,
    }


def list_lines(outcomes: Mapping[str, Outcome], paint_line: Paint) -> Iterator[str]:
    """A line a check, and below it two a finding: what is wrong, and what helps."""
    width = max(map(len, outcomes))
    for name, outcome in outcomes.items():
        mark, colour = MARKS[find_worst(outcome.findings)]
        yield f"{paint_line(mark.ljust(7), colour)}  {name.ljust(width)}  {outcome.summary}"
        for finding in outcome.findings:
            is_info = finding.severity is Severity.INFO
            told = f"{finding.code} {finding.severity}: {finding.sentence}"
            shade = Colour.PLAIN if is_info else MARKS[finding.severity][1]
            yield f"         {paint_line(told, shade)}"
            yield f"           Remedy: {finding.remedy}"
