"""A store that is away, silent or late changes nothing in the kernel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

from structlog.testing import capture_logs

from kilo.backends.memory import MemoryBackend
from kilo.errors import BackendError
from kilo.lastgood import SnapshotFile
from kilo.mesh.model import Snapshot
from tests.builders import make_key, make_peer, make_preshared_key
from tests.engine.world import (
    LIMIT_SECONDS,
    NEIGHBOUR,
    REMOTE,
    Clock,
    World,
    hold_addresses,
    let_everything_run,
    make_backend,
    running,
)


class SilentBackend(MemoryBackend):
    """A store that accepts the connection and never says a word."""

    async def watch(self) -> AsyncIterator[Snapshot | BackendError]:
        await asyncio.Event().wait()
        yield Snapshot()


class BreakingBackend(MemoryBackend):
    """A store whose watch ends with an error, once, instead of telling of it."""

    has_broken = False

    async def watch(self) -> AsyncIterator[Snapshot | BackendError]:
        if not self.has_broken:
            self.has_broken = True
            raise BackendError("memory: the watch broke")
        async for item in super().watch():
            yield item


async def test_nothing_is_removed_while_the_store_is_away_though_stamps_grow_old(
    world: World,
) -> None:
    stamp = int(time.time()) - 54
    world.backend.put_report(REMOTE, last_seen=stamp)
    async with running(world):
        state = await world.settled()
        assert world.names == {"a", "b", "c"}
        world.backend.go_away("the disk is gone")
        await world.eventually(lambda: world.status.store_error)
        await world.eventually(lambda: time.time() > stamp + 61)
        await world.next_pass()

        assert await world.dataplane.read() == state
        assert world.names == {"a", "b", "c"}


async def test_the_status_says_that_the_store_is_away_and_that_it_is_back(world: World) -> None:
    async with running(world):
        await world.settled()
        assert world.read("kilo_store_up") == 1

        world.backend.go_away("the disk is gone")
        await world.eventually(lambda: world.status.store_error == "memory: the disk is gone")
        assert world.read("kilo_store_up") == 0
        assert world.read("kilo_errors_total", {"event": "store"}) == 1

        world.backend.come_back()
        await world.eventually(lambda: world.status.store_error == "")
        assert world.read("kilo_store_up") == 1


async def test_drift_is_repaired_while_the_store_is_away(world: World) -> None:
    async with running(world):
        state = await world.settled()
        world.backend.go_away("the disk is gone")
        await world.eventually(lambda: world.status.store_error)
        world.dataplane.remove(next(iter(state.routes)))

        assert await world.settled() == state


async def test_a_silent_node_leaves_once_the_store_is_back(world: World) -> None:
    stamp = int(time.time()) - 54
    world.backend.put_report(REMOTE, last_seen=stamp)
    async with running(world):
        await world.settled()
        world.backend.go_away("the disk is gone")
        await world.eventually(lambda: time.time() > stamp + 61)
        assert world.names == {"a", "b", "c"}
        world.backend.come_back()

        await world.eventually(lambda: world.names == {"a", "b"})


async def test_the_own_report_is_published_at_once_when_the_store_is_back(world: World) -> None:
    clock = Clock()
    world.backend = make_backend(clock)
    async with running(world):
        await world.eventually(world.find_report)
        world.backend.go_away("the disk is gone")
        await world.eventually(lambda: world.status.store_error)
        clock.ahead = 1000.0
        world.backend.come_back()

        await world.eventually(lambda: world.backend._read().last_seen["a"] > time.time() + 900)


async def test_a_report_that_changed_while_the_store_was_away_is_published_then(
    world: World,
) -> None:
    async with running(world):
        await world.eventually(world.find_report)
        world.backend.go_away("the disk is gone")
        await world.eventually(lambda: world.status.store_error)
        world.dataplane.set_facts(hold_addresses("198.51.100.77/24", "192.168.1.77/24"))
        await world.eventually(lambda: world.read("kilo_errors_total", {"event": "publish"}))
        world.backend.come_back()

        await world.eventually(lambda: "198.51.100.77" in str(world.find_report()))


async def test_a_start_without_the_store_takes_the_last_good_snapshot(world: World) -> None:
    async with running(world):
        state = await world.settled()
        await world.eventually((world.path / "snapshot.json").exists)
    world.backend.go_away("the disk is gone")
    writes = world.writes

    async with running(world):
        assert await world.settled() == state
        assert world.names == {"a", "b", "c"}
        assert world.writes == writes


async def test_a_network_is_built_from_the_last_good_snapshot_alone(world: World) -> None:
    async with running(world):
        state = await world.settled()
        await world.eventually((world.path / "snapshot.json").exists)
    world.backend.go_away("the disk is gone")
    for resource in list((await world.dataplane.read()).resources()):
        world.dataplane.remove(resource)

    async with running(world):
        assert await world.settled() == state


async def test_a_silent_store_is_as_good_as_none(world: World) -> None:
    async with running(world):
        state = await world.settled()
        await world.eventually((world.path / "snapshot.json").exists)
    world.store = SilentBackend()

    async with running(world):
        assert await world.settled() == state
        assert "no answer" in world.status.store_error


async def test_without_store_and_snapshot_the_kernel_is_not_touched(world: World) -> None:
    world.backend.go_away("the disk is gone")
    async with running(world):
        await world.eventually(lambda: world.status.store_error)
        await let_everything_run()
        world.dataplane.interfere()
        await let_everything_run()

        assert world.writes == 0
        assert world.status.not_ready


async def test_what_the_store_says_replaces_what_the_disk_said(world: World) -> None:
    async with running(world):
        await world.settled()
        await world.eventually((world.path / "snapshot.json").exists)
    world.backend.go_away("the disk is gone")
    async with running(world):
        await world.settled()
        world.backend.delete_document("Peer phone")
        world.backend.come_back()

        await world.eventually(lambda: world.read("kilo_peers") == 0)


async def test_a_watch_that_breaks_is_begun_again(world: World) -> None:
    backend = BreakingBackend()
    world.store = backend
    async with running(world):
        await world.eventually(lambda: world.status.store_error == "memory: the watch broke")
        await world.eventually(lambda: world.read("kilo_nodes") == 1)

        assert world.status.store_error == ""


async def test_a_withheld_preshared_key_leaves_the_kernels_alone(world: World) -> None:
    await world.backend.put_peer(make_peer("safe", "10.5.0.9/32", preshared=True))
    async with running(world):
        state = await world.settled()
        await world.eventually(lambda: "safe" in _read_text(world.path))
    world.backend.go_away("the disk is gone")
    writes = world.writes

    async with running(world):
        assert await world.settled() == state
        assert world.writes == writes
        (peer,) = (p for p in state.peers if p.public_key == make_key("safe"))
        assert peer.preshared_key == make_preshared_key("safe")


async def test_a_new_peer_whose_preshared_key_is_withheld_waits_for_the_store(
    world: World,
) -> None:
    await world.backend.put_peer(make_peer("safe", "10.5.0.9/32", preshared=True))
    async with running(world):
        await world.settled()
        await world.eventually(lambda: "safe" in _read_text(world.path))
        (link,) = (await world.dataplane.read()).links
    world.backend.go_away("the disk is gone")
    world.dataplane.remove(link)

    async with running(world):
        state = await world.settled()
        assert make_key("safe") not in {peer.public_key for peer in state.peers}
        assert make_key("phone") in {peer.public_key for peer in state.peers}
        world.backend.come_back()
        await world.eventually(lambda: not world.status.store_error)
        state = await world.settled()
        assert make_key("safe") in {peer.public_key for peer in state.peers}


def _read_text(path: Path) -> str:
    file = path / "snapshot.json"
    return file.read_text() if file.exists() else ""


async def test_nodes_that_were_silent_when_the_snapshot_was_kept_do_not_rise_from_it(
    world: World,
) -> None:
    world.backend.put_report(NEIGHBOUR, last_seen=int(time.time()) - 3600)
    async with running(world):
        await world.settled()
        await world.eventually((world.path / "snapshot.json").exists)
    kept = SnapshotFile(world.path / "snapshot.json").load()
    world.backend.go_away("the disk is gone")

    async with running(world):
        await world.settled()
        assert world.names == {"a", "c"}
    assert kept is not None
    assert kept.last_seen.keys() == {"a", "c"}


async def test_a_snapshot_that_cannot_be_kept_is_one_warning(world: World) -> None:
    (world.path / "snapshot.tmp").mkdir()
    with capture_logs() as logs:
        async with running(world):
            await world.settled()
            await world.next_pass()

    assert [log["event"] for log in logs].count("snapshot not kept") == 1


async def test_a_report_that_is_refused_is_one_warning_and_tried_again(world: World) -> None:
    with capture_logs() as logs:
        async with running(world):
            await world.settled()
            world.backend.go_away("the disk is read-only")
            await world.eventually(lambda: world.status.store_error)
            world.dataplane.set_facts(hold_addresses("198.51.100.77/24", "192.168.1.77/24"))
            await world.eventually(
                lambda: world.read("kilo_errors_total", {"event": "publish"}) > 1
            )

    assert [log["event"] for log in logs].count("report not published") == 1


async def test_an_agent_that_finds_the_store_empty_at_its_start_goes_by_its_snapshot(
    world: World,
) -> None:
    """As where /etc/kilo/mesh is a mount point and the mount came too late, or never."""
    async with running(world):
        state = await world.settled()
        await world.eventually((world.path / "snapshot.json").exists)
    full, world.backend = world.backend, MemoryBackend()

    async with running(world):
        await world.eventually(lambda: "is it mounted?" in world.status.store_error)
        await world.eventually(world.find_report, seconds=LIMIT_SECONDS)
        assert await world.settled() == state
        assert world.read("kilo_store_up") == 0
        assert world.names == {"a", "b", "c"}
    world.backend = full

    async with running(world):
        assert await world.settled() == state
        assert world.status.store_error == ""


async def test_an_agent_without_a_snapshot_believes_that_the_store_is_empty(world: World) -> None:
    world.backend = MemoryBackend()
    async with running(world):
        await world.settled()
        assert world.status.store_error == ""
        assert world.names == {"a"}


async def test_a_host_whose_clock_is_ahead_takes_nobody_for_dead_when_it_starts(
    world: World,
) -> None:
    """To it all the others' stamps look old."""
    stamp = int(time.time()) - 600
    world.backend.put_report(NEIGHBOUR, last_seen=stamp)
    world.backend.put_report(REMOTE, last_seen=stamp - 20)
    async with running(world):
        await world.settled()
        assert world.names == {"a", "b", "c"}
