"""The agent, its key, and what agents have left behind: what was seen -> findings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kilo.doctor.findings import Code, Finding, Outcome
from kilo.keyfile import OTHERS
from kilo.mesh.overview import AgentView

SHOWN = 3
"""How many of many things a sentence names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFile:
    """The file of the private key, and never what is in it."""

    path: str
    exists: bool
    mode: int = 0o600
    """Its permission bits."""
    complaint: str = ""
    """What is wrong with what is in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """What agents have made in this host's network, a few words each."""

    own: tuple[str, ...] = ()
    """By agents such as ours."""
    others: tuple[str, ...] = ()
    """By Kilo's own."""
    agent: str = ""
    """Who is running, ``process 7, interface kilo0``; empty: nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The agent, as far as one is there."""

    holder: str = ""
    """Who has the agents' lock; empty: nobody who can be seen."""
    address: str
    view: AgentView | None = None
    """What it says of itself at that address."""
    silence: str = ""
    """Why it says nothing."""

    def __str__(self) -> str:
        """Who is running; empty: nobody."""
        # The lock of an agent in another container is not to be seen.
        return self.holder or (f"at {self.address}" if self.view else "")


def judge_key(key: KeyFile) -> Outcome:
    """Of the private key."""
    if not key.exists:
        finding = Finding(
            code=Code.NO_KEY,
            sentence=f"private key {key.path}: there is none yet",
            remedy="nothing need be done: the agent makes it at its first start",
        )
        return Outcome(summary=f"{key.path}: none yet", findings=(finding,))
    summary = f"{key.path}: mode {key.mode:04o}"
    return Outcome(summary=summary, findings=tuple(_list_key_findings(key)))


def _list_key_findings(key: KeyFile) -> Iterator[Finding]:
    if key.complaint:
        yield Finding(
            code=Code.KEY_UNUSABLE,
            sentence=key.complaint,
            remedy="put the right key back; if it is lost remove the file, and the agent makes"
            " another, which peers have to be told",
        )
    if key.mode & OTHERS:
        yield Finding(
            code=Code.KEY_EXPOSED,
            sentence=f"private key {key.path} has mode {key.mode:04o}: not only its owner may use"
            " it",
            remedy=f"chmod 600 {key.path}; if others have read it, remove it for a new one",
        )


def judge_leftovers(leftovers: Leftovers) -> Outcome:
    """Of what stands in the kernel without an agent that minds it."""
    findings = []
    if leftovers.others:
        findings.append(
            Finding(
                code=Code.OTHERS_LEFTOVERS,
                sentence=f"there is {_enumerate(leftovers.others)}, as Kilo's own agent makes them",
                remedy="if that agent runs no more, delete them, or restart the host; never run"
                " both on one host",
            )
        )
    if leftovers.own and not leftovers.agent:
        findings.append(
            Finding(
                code=Code.OWN_LEFTOVERS,
                sentence=f"no agent runs, and there is {_enumerate(leftovers.own)} of one",
                remedy="start the agent, which takes them over, or run kg uninstall",
            )
        )
    minded = f", minded by the agent ({leftovers.agent})" if leftovers.agent else ""
    return Outcome(
        summary=f"links, routes, rules, chains: {len(leftovers.own)} of ours{minded},"
        f" {len(leftovers.others)} of Kilo's own agent",
        findings=tuple(findings),
    )


def _enumerate(things: tuple[str, ...]) -> str:
    more = len(things) - SHOWN
    return ", ".join(things[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def judge_agent(agent: Agent) -> Outcome:
    """Of whether one runs, and is well."""
    if agent.view is not None:
        version, node = agent.view["version"], agent.view["node"]
        return Outcome(
            summary=f"{version} of Node {node} at {agent.address}",
            findings=tuple(_list_agent_findings(agent.view)),
        )
    if agent.holder:
        silent = Finding(
            code=Code.AGENT_SILENT,
            sentence=f"an agent runs ({agent.holder}), but {agent.silence}",
            remedy="name its address by --agent; if it is the right one, look at the agent's log",
        )
        return Outcome(summary=agent.holder, findings=(silent,))
    none = Finding(
        code=Code.NO_AGENT,
        sentence=f"no agent runs on this host: {agent.silence}",
        remedy="start kg: systemctl start kg, or the DaemonSet's pod",
    )
    return Outcome(summary="none runs", findings=(none,))


def _list_agent_findings(view: AgentView) -> Iterator[Finding]:
    for reason in view["reasons"]:
        yield Finding(
            code=Code.AGENT_NOT_READY,
            sentence=f"the agent of Node {view['node']} is not ready: {reason}",
            remedy="mend what it names; the agent tries again by itself",
        )
    for warning in view["warnings"]:
        yield Finding(
            code=Code.AGENT_WARNING,
            sentence=f"the agent of Node {view['node']} warns: {warning}",
            remedy="mend what it names",
        )
