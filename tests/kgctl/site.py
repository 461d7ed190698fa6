"""A mesh in a directory, as an operator and agents leave it, and ``kgctl`` asked about it.

Node ``a1`` leads the location ``north``, ``a2`` is its neighbour there; ``b1`` leads ``south``
from behind a NAT; ``phone`` and ``office`` are peers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from kilo.backends.documents import (
    make_node_document,
    make_peer_document,
    make_report_document,
    make_settings_document,
)
from kilo.kgctl import main
from kilo.mesh.model import Endpoint, NodeReport, NodeSpec, PartialSettings, Peer
from tests.builders import make_peer, make_report, make_spec, networks

NODES: Mapping[str, NodeSpec] = {
    "a1": make_spec(
        location="north",
        pod_subnets=networks("10.2.1.0/24"),
        allowed_location_ips=networks("192.168.9.9/32"),
    ),
    "a2": make_spec(location="north", pod_subnets=networks("10.2.2.0/24")),
    "b1": make_spec(
        location="south",
        endpoint=Endpoint(host="203.0.113.21", port=51821),
        pod_subnets=networks("10.2.3.0/24"),
        persistent_keepalive_seconds=25,
    ),
}
REPORTS = (
    make_report("a1", endpoint="198.51.100.11:51820", internal_ips=("192.168.1.11/24",)),
    make_report("a2", endpoint="192.168.1.12:51820", internal_ips=("192.168.1.12/24",)),
    make_report("b1", endpoint="192.168.2.11:51820", internal_ips=("192.168.2.11/24",)),
)
PHONE = make_peer("phone", "10.5.0.1/32", "fd00:5::1/128", preshared=True)
OFFICE = make_peer("office", "10.5.0.2/32", "192.168.77.0/24")


class Said(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str


class Site:
    """A directory of documents, and the words to ask about it."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._capsys = capsys
        # Ages are told to the second, so all count from the same one.
        self._now = int(time.time())

    def put(self, name: str, *documents: object) -> Path:
        """Write a file of documents in one go."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump_all(documents))
        return path

    def put_node(self, name: str, spec: NodeSpec) -> None:
        self.put(f"nodes/{name}.yaml", make_node_document(name, spec))

    def put_report(self, report: NodeReport, *, age_seconds: int = 0) -> None:
        document = make_report_document(report, last_seen=self._now - age_seconds)
        self.put(f"reports/{report.name}.yaml", document)

    def put_peer(self, peer: Peer) -> None:
        self.put(f"peers/{peer.name}.yaml", make_peer_document(peer))

    def put_settings(self, settings: PartialSettings) -> None:
        self.put("settings.yaml", make_settings_document(settings))

    def ask(self, *words: str) -> Said:
        """Run ``kgctl`` on the directory."""
        return self.run(*words, "--backend=file", f"--directory={self.directory}")

    def run(self, *words: str) -> Said:
        """Run ``kgctl`` with these words alone."""
        self._capsys.readouterr()
        status = main(words)
        captured = self._capsys.readouterr()
        return Said(status, captured.out, captured.err)


def fill(
    site: Site,
    *,
    nodes: Mapping[str, NodeSpec] = NODES,
    reports: Sequence[NodeReport] = REPORTS,
    peers: Sequence[Peer] = (PHONE, OFFICE),
) -> None:
    """Write the mesh described above, everybody seen just now."""
    for name, spec in nodes.items():
        site.put_node(name, spec)
    for report in reports:
        site.put_report(report)
    for peer in peers:
        site.put_peer(peer)
