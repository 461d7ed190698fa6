"""What the engine last saw and did. The engine writes it, HTTP and kgctl read it.

One writer, the engine's task; readers in other threads take one attribute at a time, each
an immutable value replaced whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from kilo import __version__
from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Snapshot
from kilo.mesh.state import DataplaneState, PeerStats
from kilo.mesh.topology import Topology

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


class Status:
    """The state of one agent, for people and dashboards. Holds no secret."""

    def __init__(self, *, name: str, interface: str) -> None:
        self.name = name
        self.interface = interface
        self.snapshot = Snapshot()
        self.topology: Topology | None = None
        self.state = DataplaneState()
        """What the kernel looked like after the last pass."""
        self.stats: Mapping[PublicKey, PeerStats] = MappingProxyType({})
        self.not_ready = "no pass yet"
        """Why the last pass did not succeed, one line; empty when it did."""
        self.pass_began_at: float | None = None
        """When the pass that is being made began, on the monotonic clock; None between passes."""
        self.warnings: tuple[str, ...] = ()
        """What an operator should look at, though the last pass could go on."""
        self.store_error = ""
        """Why the store cannot be heard, one line; empty while it can. Of several: why none can."""
        self.away: Mapping[str, str] = MappingProxyType({})
        """Of several stores those that cannot be heard while others can, and why, a line each."""
        self.registry = CollectorRegistry()
        self._make_counters()
        self._make_gauges()

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
