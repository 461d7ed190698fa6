"""``kgctl connect`` and what a real API server lets it do; the kernel is made of a dict."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kilo.dataplane.memory import MemoryDataplane
from kilo.errors import BackendError
from kilo.kgctl.connect import Visit
from kilo.kgctl.connectpeer import OwnPeer, Receipt
from kilo.kgctl.connectplan import Guest
from kilo.mesh.model import Settings
from kilo.mesh.state import DataplaneState
from kilo.mesh.survey import Flags
from tests.builders import make_key, networks
from tests.cluster.agents import ERROR_SECONDS, open_agent, within
from tests.cluster.planes import PEERS, Cluster
from tests.mesh.fleets import make_facts

OWN = networks("10.5.0.9/32")


async def visit(
    kubeconfig: Path, dataplane: MemoryDataplane, receipt: Path, stop: asyncio.Event
) -> int:
    """Be the peer ``laptop``, with these credentials; the exit status."""

    def tell(line: str) -> None:
        if line.startswith("connected as"):
            stop.set()

    async with open_agent(kubeconfig) as backend:
        guest = Guest(
            name="laptop", public_key=make_key("laptop"), interface="kilo0", keepalive_seconds=10
        )
        own = OwnPeer(
            backend=backend,
            guest=guest,
            receipt=Receipt(path=receipt, store="cluster", peer="laptop"),
            flags=lambda _: Flags(settings={}, defaults=Settings()),
        )
        one = Visit(own=own, dataplane=dataplane, clean_up=True, tell=tell)
        return await within(ERROR_SECONDS, one.last(OWN, stop))


async def test_who_may_not_create_peers_is_told_so_and_nothing_is_changed(
    cluster: Cluster, tmp_path: Path
) -> None:
    dataplane = MemoryDataplane(facts=make_facts(eth0="203.0.113.50/24"))
    with pytest.raises(BackendError, match=r"peer laptop: cannot be made: .* 403 Forbidden"):
        await visit(
            cluster.make_agent_kubeconfig(), dataplane, tmp_path / "receipt", asyncio.Event()
        )
    assert cluster.plane.call("GET", PEERS)["items"] == []
    assert dataplane.applied == []


async def test_an_operators_peer_is_made_and_removed(cluster: Cluster, tmp_path: Path) -> None:
    kubeconfig = cluster.plane.make_kubeconfig("operator", groups=["system:masters"])
    dataplane = MemoryDataplane(facts=make_facts(eth0="203.0.113.50/24"))
    assert await visit(kubeconfig, dataplane, tmp_path / "receipt", asyncio.Event()) == 0
    assert any(str(change).startswith("+ address 10.5.0.9/32") for change in dataplane.applied)
    assert await dataplane.read() == DataplaneState()
    assert cluster.plane.call("GET", PEERS)["items"] == []
