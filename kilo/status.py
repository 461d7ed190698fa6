"""What the engine last saw and did. The engine writes it, HTTP and kgctl read it.

One writer, the engine's task; readers in other threads take one attribute at a time, each
an immutable value replaced whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from kilo import __version__
from kilo.mesh.diff import Change
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Snapshot
from kilo.mesh.state import DataplaneState, PeerStats
from kilo.mesh.topology import Topology

T = TypeVar("T")

MOST_REPAIRS = 10
"""Of those that are remembered: more do not tell more."""

WRITE_KINDS = (
    "link",
    "tunnel",
    "address",
    "device",
    "peer",
    "firewall",
    "route",
    "rule",
    "sysctl",
)
CHANGE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """A step that put back what the pass before had left, and somebody else had changed since."""

    at: float
    """Unix seconds."""
    change: str


class Dated(Generic[T]):
    """An attribute that is empty while all is well; ``Status.since`` has when that changed last."""

    def __set_name__(self, _: type[Status], name: str) -> None:
        self._name = name

    def __get__(self, status: Status, _: type[Status]) -> T:
        value: T = vars(status)[self._name]
        return value

    def __set__(self, status: Status, value: T) -> None:
        found = vars(status)
        if self._name not in found or bool(found[self._name]) != bool(value):
            status.since = {**status.since, self._name: time.time()}
        found[self._name] = value


class Status:
    """The state of one agent, for people and dashboards. Holds no secret."""

    not_ready = Dated[str]()
    """Why the last pass did not succeed, one line; empty when it did."""
    store_error = Dated[str]()
    """Why the store cannot be heard, one line; empty while it can. Of several: why none can."""
    away = Dated[Mapping[str, str]]()
    """Of several stores those that cannot be heard while others can, and why, a line each."""

    def __init__(self, *, name: str, interface: str) -> None:
        self.name = name
        self.interface = interface
        self.since: Mapping[str, float] = MappingProxyType({})
        """Attribute -> when it became empty, or ceased to be, in Unix seconds."""
        self.snapshot = Snapshot()
        self._topology: Topology | None = None
        self.leader_since: Mapping[str, float] = MappingProxyType({})
        """Segment -> since when its leader leads it, as far as we have seen, in Unix seconds."""
        self.planned_at = 0.0
        """When the mesh was last computed, in Unix seconds; 0: not yet."""
        self.state = DataplaneState()
        """What the kernel looked like after the last pass."""
        self.stats: Mapping[PublicKey, PeerStats] = MappingProxyType({})
        self.not_ready = "no pass yet"
        self.failures: tuple[str, ...] = ()
        """All that failed in the last pass, a line each; ``not_ready`` is the first."""
        self.repairs: tuple[Repair, ...] = ()
        """The latest of them, the newest last."""
        self.pass_began_at: float | None = None
        """When the pass that is being made began, on the monotonic clock; None between passes."""
        self.warnings: tuple[str, ...] = ()
        """What an operator should look at, though the last pass could go on."""
        self.store_error = ""
        self.away = MappingProxyType({})
        self.registry = CollectorRegistry()
        self._make_counters()
        self._make_gauges()

    @property
    def topology(self) -> Topology | None:
        """The mesh as of the last pass; None before the first."""
        return self._topology

    @topology.setter
    def topology(self, topology: Topology | None) -> None:
        now, earlier, known = time.time(), self._topology, self.leader_since
        before = {s.name: s.leader.name for s in earlier.segments} if earlier else {}
        self.leader_since = {
            s.name: known[s.name] if before.get(s.name) == s.leader.name else now
            for s in (topology.segments if topology else ())
        }
        self._topology, self.planned_at = topology, now

    def note_applied(self, changes: Iterable[Change], desired: DataplaneState) -> None:
        """A pass has made ``changes``, and the kernel is as ``desired``.

        What was desired before, and is again, was there in between, unless passes have failed.
        """
        if not self.not_ready:
            now, before = time.time(), self.state
            found = (one for one in changes if one.new is not None and before.holds(one.new))
            repairs = (Repair(at=now, change=str(change)) for change in found)
            self.repairs = (*self.repairs, *repairs)[-MOST_REPAIRS:]
        self.state = desired

    def _make_counters(self) -> None:
        self.errors = Counter("kilo_errors", "Errors by event.", ["event"], registry=self.registry)
        self.reconciles = Counter("kilo_reconciles", "Passes made.", registry=self.registry)
        self.writes = Counter(
            "kilo_kernel_writes", "Changes written to the kernel.", ["kind"], registry=self.registry
        )
        for kind in WRITE_KINDS:
            self.writes.labels(kind)
        self.session_resets = Counter(
            "kilo_wireguard_session_resets",
            "WireGuard sessions ended by a change of ours to a peer that stayed.",
            registry=self.registry,
        )
        self.change_seconds = Histogram(
            "kilo_change_to_kernel_seconds",
            "Seconds from hearing of a change until the kernel had it.",
            buckets=CHANGE_BUCKETS,
            registry=self.registry,
        )

    def _make_gauges(self) -> None:
        registry = self.registry
        self.leader = Gauge("kilo_leader", "1 if this node leads its segment.", registry=registry)
        self.nodes = Gauge("kilo_nodes", "Nodes that take part.", registry=registry)
        self.peers = Gauge("kilo_peers", "Peers that take part.", registry=registry)
        self.invalid = Gauge(
            "kilo_invalid_objects", "Objects or fields left out of the mesh.", registry=registry
        )
        self.refused = Gauge(
            "kilo_refused_claims", "Claims on addresses that were refused.", registry=registry
        )
        self.store_up = Gauge(
            "kilo_store_up",
            "1 while the store, or all of several, can be heard.",
            registry=registry,
        )
        self.each_store_up = Gauge(
            "kilo_each_store_up",
            "Of several stores, 1 while this one can be heard.",
            ["store"],
            registry=registry,
        )
        self.ready = Gauge("kilo_ready", "1 if the last pass succeeded.", registry=registry)
        info = Gauge("kilo_build_info", "Always 1.", ["version"], registry=registry)
        info.labels(__version__).set(1)
