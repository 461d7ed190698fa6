"""The demonstration: one mesh through its granularities, a dead agent and a new peer.

``kgctl lab demo``. Ends with 0 only if everybody reached everybody each time, and nothing was left
on the machine.
"""

# ruff: noqa: T201 - printing is what a demonstration does

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import kilo
from kilo.errors import LabError
from kilo.lab import meshdir
from kilo.lab.box import find_inits
from kilo.lab.lab import Lab
from kilo.lab.machine import describe_machine, find_inhabitants, list_namespaces
from kilo.lab.screen import Screen
from kilo.mesh.model import Granularity
from kilo.mesh.topology import Segment

EXAMPLE = Path(kilo.__file__).parent.parent / "examples/file/three-clouds"
NAME = "demo"
FORMING_SECONDS = 90.0
CHANGE_SECONDS = 60.0
TAKEOVER_SECONDS = 120.0
"""A node counts as gone after 60 s of silence; the rest is patience with slow machines."""
SILENCE_SECONDS = 10.0
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


def run_demo(directory: Path, *, backend: str, members: int) -> int:
    """Show everything; 0, or ``KiloError`` for the first thing that did not hold.

    ``backend`` and ``members`` are as ``Lab.up`` takes them.
    """
    # As Ctrl-C does: takes the lab down on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    before = describe_machine()
    started = time.monotonic()
    _title(f"A mesh of {directory.name}, on this machine only")
    with Lab.up(directory, name=NAME, backend=backend, members=members, progress=_say) as lab:
        namespaces = list_namespaces(find_inits(lab.path))
        _show_forming(lab)
        _show_graph(lab)
        for granularity in (Granularity.FULL, Granularity.CROSS, Granularity.LOCATION):
            _show_granularity(lab, granularity)
        _show_takeover(lab)
        _show_new_peer(lab)
    _show_nothing_left(before, namespaces)
    print(f"\nEverything held; {time.monotonic() - started:.0f} s.")
    return 0


def _say(words: str) -> None:
    print(f"… {words}", flush=True)


def _title(words: str) -> None:
    bold, plain = (BOLD, PLAIN) if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{words}{plain}", flush=True)


def _watch(lab: Lab, timeout: float) -> None:
    """Show who reaches whom until everybody does."""
    screen = Screen(sys.stdout)
    started = time.monotonic()
    result = lab.wait_reachable(timeout, watch=screen.show_reachability)
    answers = sum(map(len, result.answered.values()))
    print(f"all {answers} pings answered, after {time.monotonic() - started:.1f} s", flush=True)


def _await(condition: Callable[[], bool], what: str, timeout: float) -> None:
    """Wait for something that announces itself nowhere but in the store."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"after {timeout:g} s still not so: {what}")
        time.sleep(0.2)


def _show_forming(lab: Lab) -> None:
    _title("The mesh forms: who reaches whom, IPv4 and IPv6")
    print("rows ask, columns answer; ✓ 6: it answered on all its 6 addresses")
    _watch(lab, FORMING_SECONDS)


def _show_graph(lab: Lab) -> None:
    _title("The mesh as its agents see it")
    host = lab.agent_hosts[0]
    print(host.http("/graph?format=gv").text)
    picture = host.http("/graph?format=svg&layout=circo")
    if picture.status != 200 or b"<svg" not in picture.body:
        raise LabError(f"host {host.name}: /graph gave no SVG but status {picture.status}")
    path = Path(tempfile.mkdtemp(prefix="kilo-demo-")) / "mesh.svg"
    path.write_bytes(picture.body)
    print(f"as a picture, the one thing that will be left: {path}")


def _show_granularity(lab: Lab, granularity: Granularity) -> None:
    _title(f"Settings say granularity: {granularity}; no agent is restarted")
    lab.store.set_settings(granularity=granularity.value)
    names = {host.name for host in lab.agent_hosts}

    def adopted() -> bool:
        nodes = [node for node in lab.store.read_snapshot().nodes if node.name in names]
        return all(n.report is not None and n.report.granularity is granularity for n in nodes)

    _await(adopted, f"every agent reports granularity {granularity}", CHANGE_SECONDS)
    segments = _find_segments(lab)
    print(f"{len(segments)} segments: {', '.join(segments)}")
    _watch(lab, CHANGE_SECONDS)


def _find_segments(lab: Lab) -> dict[str, Segment]:
    """The segments as an agent that starts now would build them, by name."""
    topology = meshdir.read_topology(lab.store.read_snapshot())
    return {segment.name: segment for segment in topology.segments}


def _show_takeover(lab: Lab) -> None:
    # The leader of the most nodes, for whom somebody can stand in.
    crowd = max(_find_segments(lab).values(), key=lambda segment: len(segment.nodes))
    leader = crowd.leader.name
    _title(f"kill -9 of the agent of {leader}, a leader; a datagram every 10 ms between all others")
    others = [host.name for host in lab.agent_hosts if host.name != leader]
    with lab.probe(permutations(others, 2)) as probe:
        lab.host(leader).kill_agent()
        _watch(lab, CHANGE_SECONDS)
        time.sleep(SILENCE_SECONDS)  # time to lose something in
        losses = probe.stop()
    print(f"traffic goes on: {losses}")
    if losses.lost:
        raise LabError(f"traffic suffered from the death of an agent: {losses.lost} lost")
    _title("After a minute of silence another one leads")
    _say("waiting until its last report is 60 s old")
    with lab.probe(permutations(others, 2)) as probe:
        _await(
            lambda: _find_segments(lab)[crowd.name].leader.name != leader,
            f"another leader than {leader}",
            TAKEOVER_SECONDS,
        )
        _watch(lab, TAKEOVER_SECONDS)
        print(f"{_find_segments(lab)[crowd.name].leader.name} leads; meanwhile: {probe.stop()}")
    _title(f"The agent of {leader} is back")
    lab.host(leader).start_agent()
    _watch(lab, CHANGE_SECONDS)


def _show_new_peer(lab: Lab) -> None:
    _title("A tablet is let in: one more Peer in the store")
    lab.add_peer("tablet", "10.5.0.2/32", "fd00:5::2/128", endpoint="203.0.113.51:51820")
    _watch(lab, CHANGE_SECONDS)


def _show_nothing_left(before: dict[str, str], namespaces: set[str]) -> None:
    _title("Everything is taken down")
    left = find_inhabitants(namespaces)
    if left:
        raise LabError(f"{len(left)} processes are left, such as {' '.join(left[0])}")
    after = describe_machine()
    for what, text in before.items():
        if after[what] != text:
            raise LabError(f"{what}: is not as before")
        print(f"as before: {what}")
    print(f"no process is left in any of its {len(namespaces)} network namespaces")
