"""What is measured of one agent in one mesh, phase by phase."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import _limit
from _fleet import Fleet, make_key, make_peer, make_spec, name_node
from _host import Agent, Counts, RouteWatch, read_daemon_cpu, wait_for_peer
from _stores import Store

from kilo.mesh.model import PartialSettings

BEAT_SECONDS = 30.0
SETTLE_SECONDS = 3.0
"""After the start, and after a change of the settings, until it is measured."""
PAUSE_SECONDS = 0.2
"""Between two changes: what the first one brings about afterwards is its own."""
FAST = 4.0
"""How many times faster than real nodes do they check in where an hour of it is measured."""
MODULES = {
    "directory": "kilo.backends.file.backend",
    "etcd": "kilo.backends.etcd.backend",
    "kubernetes": "kilo.backends.kubernetes.backend",
}

Figures = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long, and how often, each thing is done."""

    changes: int
    rest_seconds: float
    pass_seconds: float
    beat_seconds: float
    """0: left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """An agent at work, and what is around it."""

    store: Store
    fleet: Fleet
    agent: Agent


def measure_fleet(
    store: Store, fleet: Fleet, plan: Plan, *, directory: Path, code: Path
) -> Figures:
    """All figures of one agent; its store is filled."""
    figures: Figures = {"store": store.name, **asdict(fleet), "peers": fleet.peers}
    figures["imports_cpu_seconds"] = measure_imports(store.name, code)
    calls = store.count_calls()
    with checking_in(store, fleet, 1.0):
        agent = Agent(store.flags(), directory, code=code)
        with agent:
            bench = Bench(store=store, fleet=fleet, agent=agent)
            figures |= measure_start(bench)
            figures["start_calls"] = dict(store.count_calls() - calls)
            time.sleep(SETTLE_SECONDS)
            figures["rest"] = rest = measure_rest(bench, plan.rest_seconds)
            figures |= measure_changes(bench, plan.changes, rest["cpu_share"])
            figures["no_change"] = measure_passes(bench, plan.pass_seconds, rest["cpu_share"])
            figures["memory_mib"] = agent.read_memory()
            state = _limit.capture() if fleet.leads else None
    if plan.beat_seconds:
        figures["beats"] = measure_beats(store, fleet, plan.beat_seconds, directory, code)
    if state is not None:
        figures["limit"] = _limit.measure(state)
    return figures


def measure_imports(store: str, code: Path) -> float:
    """Seconds of CPU until the program is loaded and has done nothing yet; the best of three."""
    lines = f"import kilo.kg, {MODULES[store]}, time; print(time.process_time())"
    command = [sys.executable, "-c", lines]
    runs = (
        subprocess.run(command, cwd=code, capture_output=True, check=True)  # noqa: S603 - as above
        for _ in range(3)
    )
    return min(float(run.stdout) for run in runs)


def measure_start(bench: Bench) -> Figures:
    """From the start of the process until it says that a pass has succeeded."""
    agent = bench.agent
    return {
        "start_seconds": agent.start_seconds,
        "start_cpu_seconds": agent.start_cpu_seconds,
        "start_tools_cpu_seconds": agent.start_children_cpu_seconds,
        "start_daemon_cpu_seconds": read_daemon_cpu(),
        "start_writes": agent.read_counts().writes,
        "start_passes": agent.read_counts().passes,
        "start_memory_mib": agent.read_memory(),
    }


# At rest.


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What an agent used while something happened."""

    seconds: float
    cpu_seconds: float
    counts: Counts
    calls: dict[str, int]


@contextmanager
def spanning(bench: Bench) -> Iterator[Callable[[], Span]]:
    """Counts what happens until the end of the block; afterwards the call tells."""
    agent, store, spans = bench.agent, bench.store, list[Span]()
    counts, calls = agent.read_counts(), store.count_calls()
    started_at, cpu = time.monotonic(), agent.read_total_cpu()

    def tell() -> Span:
        (span,) = spans  # none before the block has ended
        return span

    yield tell
    cpu, seconds = agent.read_total_cpu() - cpu, time.monotonic() - started_at
    spans.append(
        Span(
            seconds=seconds,
            cpu_seconds=cpu,
            counts=agent.read_counts() - counts,
            calls=dict(store.count_calls() - calls),
        )
    )


def measure_rest(bench: Bench, seconds: float) -> dict[str, float]:
    """Nothing happens but that all others check in every 30 s."""
    with spanning(bench) as tell:
        time.sleep(seconds)
    span = tell()
    return {
        "seconds": span.seconds,
        "cpu_share": span.cpu_seconds / span.seconds,
        "passes": span.counts.passes,
        "writes": span.counts.writes,
        **{f"calls {name}": count for name, count in span.calls.items()},
    }


def measure_passes(bench: Bench, seconds: float, idle: float) -> dict[str, float]:
    """Passes by the clock that change nothing, one a second; without what rest costs."""
    bench.store.put_settings(PartialSettings(resync_period_seconds=1.0))
    time.sleep(SETTLE_SECONDS)
    with spanning(bench) as tell:
        time.sleep(seconds)
    bench.store.put_settings(PartialSettings(resync_period_seconds=3600.0))
    span = tell()
    return {
        "passes": span.counts.passes,
        "writes": span.counts.writes,
        "cpu_seconds": (span.cpu_seconds - idle * span.seconds) / max(1.0, span.counts.passes),
    }


def measure_beats(
    store: Store, fleet: Fleet, seconds: float, directory: Path, code: Path
) -> dict[str, float]:
    """Others check in faster than they would, the agent makes no pass by the clock."""
    with checking_in(store, fleet, FAST), Agent(store.flags(), directory, code=code) as agent:
        bench = Bench(store=store, fleet=fleet, agent=agent)
        time.sleep(SETTLE_SECONDS)
        with spanning(bench) as tell:
            time.sleep(seconds)
    span = tell()
    share = span.cpu_seconds / span.seconds / FAST
    return {
        "passes": span.counts.passes,
        "cpu_share": share,
        "cpu_seconds_an_hour": share * 3600,
    }


@contextmanager
def checking_in(store: Store, fleet: Fleet, speed: float) -> Iterator[None]:
    """All nodes but the agent's own check in, one after the other, evenly."""
    stop = threading.Event()
    pause = BEAT_SECONDS / speed / (fleet.nodes - 1)
    thread = threading.Thread(target=beat, args=(store, fleet, pause, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def beat(store: Store, fleet: Fleet, pause: float, stop: threading.Event) -> None:
    """One node after the other, until told to stop."""
    start, count = time.monotonic(), 0
    while not stop.wait(max(0.0, start + count * pause - time.monotonic())):
        store.beat(fleet, 1 + count % (fleet.nodes - 1))
        count += 1


# Changes.


def measure_changes(bench: Bench, times: int, idle: float) -> Figures:
    """Of each kind so many, one after the other; a mesh as it was at the end."""
    fleet, store = bench.fleet, bench.store
    node, peer = find_newcomer(fleet), fleet.peers
    with RouteWatch() as watch:
        pods, roaming = make_spec(fleet, node).pod_subnets[0], make_peer(peer).allowed_ips[0]
        figures = measure_pair(
            bench,
            times,
            idle,
            ("join", lambda: store.add_node(fleet, node), lambda: watch.expect(pods, there=True)),
            ("leave", lambda: store.remove_node(node), lambda: watch.expect(pods, there=False)),
        )
        figures |= measure_pair(
            bench,
            times,
            idle,
            ("peer_added", lambda: store.put_peer(peer), lambda: watch.expect(roaming, there=True)),
            (
                "peer_removed",
                lambda: store.remove_peer(peer),
                lambda: watch.expect(roaming, there=False),
            ),
        )
        if fleet.leads:
            first, second = 1, 1 + fleet.locations
            figures |= measure_pair(
                bench,
                max(1, times // 2),
                idle,
                (
                    "leader_changed",
                    lambda: store.declare_node(fleet, second, leader=True),
                    lambda: partial(wait_for_peer, key_of(first), there=False),
                ),
                (
                    "leader_back",
                    lambda: store.declare_node(fleet, second, leader=False),
                    lambda: partial(wait_for_peer, key_of(second), there=False),
                ),
            )
    return figures


def find_newcomer(fleet: Fleet) -> int:
    """The first number that is free and that is of location 1."""
    return next(n for n in range(fleet.nodes, 2 * fleet.nodes) if n % fleet.locations == 1)


def key_of(number: int) -> bytes:
    """The public key of a node."""
    return make_key(name_node(number)).to_bytes()


Step = tuple[str, Callable[[], None], Callable[[], Callable[[], float]]]
"""Its name, what is written to the store, and what begins to wait for the kernel to have it."""


def measure_pair(bench: Bench, times: int, idle: float, *steps: Step) -> Figures:
    """One and its opposite in turn; seconds from the store's answer until the kernel has it."""
    seconds: dict[str, list[float]] = {name: [] for name, *_ in steps}
    cpu: dict[str, list[float]] = {name: [] for name, *_ in steps}
    with spanning(bench) as tell:
        for _ in range(times):
            for name, write, expect in steps:
                time.sleep(PAUSE_SECONDS)
                before, began_at = bench.agent.read_total_cpu(), time.monotonic()
                wait = expect()
                write()
                written_at = time.monotonic()
                seconds[name].append(max(0.0, wait() - written_at))
                time.sleep(PAUSE_SECONDS)
                used = bench.agent.read_total_cpu() - before
                cpu[name].append(used - idle * (time.monotonic() - began_at))
    span = tell()
    count = times * len(steps)
    shared = {
        "writes": span.counts.writes / count,
        "passes": span.counts.passes / count,
        **{f"calls {name}": calls / count for name, calls in span.calls.items()},
    }
    return {
        name: {
            "p50_seconds": statistics.median(seconds[name]),
            "p99_seconds": find_percentile(seconds[name], 0.99),
            "cpu_seconds": statistics.mean(cpu[name]),
            **shared,
        }
        for name, *_ in steps
    }


def find_percentile(values: list[float], share: float) -> float:
    """The least value that so many of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
