"""The metrics of an agent in Prometheus' text format, the WireGuard series included.

The WireGuard series bear the names and labels of the exporter that Kilo's dashboards were made
for, so that nobody has to run it as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from kilo.mesh.keys import PublicKey
from kilo.mesh.model import Snapshot
from kilo.mesh.state import WireGuardPeer, sort_networks
from kilo.status import Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LABELS = ("interface", "public_key", "allowed_ips", "friendly_name")


def write_metrics(status: Status) -> bytes:
    """Everything that is measured, as a scrape's answer. May be called from any thread."""
    return generate_latest(_Everything(status))


class _Everything(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield from Counted(self._status.registry).collect()
        yield from collect_wireguard(self._status)


class Counted(Collector):
    """A registry's metrics without the times at which its counters were made: those tell nobody
    anything, and no dashboard knows the series.
    """

    def __init__(self, registry: Collector) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


def collect_wireguard(status: Status) -> Iterator[Metric]:
    """Bytes and handshake of every peer that the device has measured."""
    sent = CounterMetricFamily(
        "wireguard_sent_bytes_total", "Bytes sent to the peer.", labels=LABELS
    )
    received = CounterMetricFamily(
        "wireguard_received_bytes_total", "Bytes received from the peer.", labels=LABELS
    )
    handshake = GaugeMetricFamily(
        "wireguard_latest_handshake_seconds",
        "When the last handshake with the peer was, in Unix seconds; 0 if there was none.",
        labels=LABELS,
    )
    # Each attribute once: the engine replaces them meanwhile.
    stats, names = status.stats, find_names(status.snapshot)
    for peer in sorted(status.state.peers, key=lambda peer: (peer.link, peer.public_key)):
        measured = stats.get(peer.public_key)
        if measured is None:
            continue
        labels = _label(peer, names)
        sent.add_metric(labels, measured.sent_bytes)
        received.add_metric(labels, measured.received_bytes)
        handshake.add_metric(labels, measured.latest_handshake)
    yield from (sent, received, handshake)


def find_names(snapshot: Snapshot) -> Mapping[PublicKey, str]:
    """Public key -> the name of the node or peer; of two with one key, the node's."""
    peers = {peer.public_key: peer.name for peer in snapshot.peers}
    nodes = {node.public_key: node.name for node in snapshot.nodes if node.public_key}
    return peers | nodes


def _label(peer: WireGuardPeer, names: Mapping[PublicKey, str]) -> tuple[str, ...]:
    allowed_ips = ",".join(map(str, sort_networks(peer.allowed_ips)))
    return peer.link, str(peer.public_key), allowed_ips, names.get(peer.public_key, "")
