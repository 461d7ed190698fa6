"""What every host of a lab is and does, as a table."""

from __future__ import annotations

from kilo.errors import LabError
from kilo.lab.host import Host
from kilo.lab.lab import Lab
from kilo.lab.reach import align

HEADER = ("host", "plays", "state", "addresses")


def draw_status(lab: Lab) -> str:
    """A line a host, the store, and the cuts."""
    rows = [HEADER, *(_describe(host) for host in lab.hosts.values())]
    lines = align(rows)
    lines.append(f"store: {lab.store.describe()}")
    lines += [f"cut: {' and '.join(cut)}" for cut in lab.cuts]
    return "\n".join(lines)


def _describe(host: Host) -> tuple[str, str, str, str]:
    addresses = ", ".join(map(str, host.spec.addresses))
    return host.name, _describe_part(host), _describe_state(host), addresses


def _describe_part(host: Host) -> str:
    if host.spec.peer:
        return f"peer {host.spec.peer}"
    return "node" if host.spec.agent else "plain machine"


def _describe_state(host: Host) -> str:
    if not host.box.alive:
        return "off"
    if not host.spec.agent:
        return "on"
    if not host.agents():
        return "no agent"
    try:
        ready = host.http("/ready")
        leads = host.metrics().get("kilo_leader") == 1.0
    except LabError:
        return "agent does not answer"
    if ready.status != 200:
        return f"not ready: {ready.text.strip()}"
    return "ready, leads" if leads else "ready"
