"""What an agent finds is shown beside the objects, once, and never at a pass's expense."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from structlog.testing import capture_logs

from kilo.backends.memory import MemoryBackend
from kilo.errors import BackendError
from kilo.mesh.model import NodeSpec
from kilo.mesh.remarks import HANDSHAKE_SECONDS, Remarks
from kilo.mesh.state import PeerStats
from kilo.spokesman import Spokesman
from tests.builders import make_key, make_peer, make_spec, networks
from tests.engine.world import LIMIT_SECONDS, NEIGHBOUR, World, make_backend, running


class RememberingBackend(MemoryBackend):
    """A store that keeps all that it was told, and refuses for as long as it is said to."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Remarks] = []
        self.tries = 0
        self.refusal = ""
        self.hangs = asyncio.Event()

    async def remark(self, remarks: Remarks) -> None:
        self.tries += 1
        if self.refusal == "hangs":
            await self.hangs.wait()
        if self.refusal:
            raise BackendError(self.refusal)
        self.told.append(remarks)
        await super().remark(remarks)


def remember(world: World) -> RememberingBackend:
    """The store of the world, which now remembers what it is told."""
    world.backend = backend = fill(RememberingBackend())
    return backend


def fill(backend: RememberingBackend) -> RememberingBackend:
    backend._documents |= make_backend()._documents
    return backend


async def test_a_refused_claim_and_what_becomes_of_the_peer_are_told(world: World) -> None:
    await world.backend.put_peer(make_peer("thief", "10.2.3.0/25"))
    async with running(world):
        await world.eventually(lambda: world.backend.remarks.remarks)
        remarks = world.backend.remarks

    assert [str(one.object) for one in remarks.remarks] == ["Peer thief"]
    assert {name: one.ready for name, one in remarks.peers.items()} == {
        "phone": True,
        "thief": False,
    }
    assert remarks.node == "a"


async def test_what_is_put_right_is_no_longer_remarked_on(world: World) -> None:
    await world.backend.put_peer(make_peer("thief", "10.2.3.0/25"))
    async with running(world):
        await world.eventually(lambda: world.backend.remarks.remarks)
        await world.backend.put_peer(make_peer("thief", "10.5.0.7/32"))
        await world.eventually(lambda: not world.backend.remarks.remarks)

        assert world.backend.remarks.peers["thief"].ready


async def test_an_agent_that_is_not_the_one_to_speak_tells_nothing(world: World) -> None:
    backend = remember(world)
    backend.put_node("b", NodeSpec(location="north", leader=True))
    backend.put_document("Peer bad", {"apiVersion": "kilo.squat.ai/v1alpha1", "kind": "Peer"})
    async with running(world):
        await world.settled()

        assert backend.tries == 0


async def test_the_one_to_speak_changes_with_the_leader(world: World) -> None:
    backend = remember(world)
    backend.put_node("b", NodeSpec(location="north", leader=True))
    async with running(world):
        await world.settled()
        assert backend.remarks == Remarks()
        backend.put_node("b", NodeSpec(location="north"))
        await world.eventually(lambda: backend.remarks.peers)
        backend.put_node("b", NodeSpec(location="north", leader=True))
        await world.eventually(lambda: backend.remarks == Remarks())


async def test_what_has_not_changed_is_told_once(world: World) -> None:
    backend = remember(world)
    async with running(world):
        await world.eventually(lambda: backend.told)
        for number in range(3):
            backend.put_report(NEIGHBOUR, last_seen=int(time.time()) + number)
            await world.next_pass()

        assert len(backend.told) == 1


async def test_a_handshake_is_told_and_the_next_one_only_when_it_is_much_newer(
    world: World,
) -> None:
    backend = remember(world)
    first = int(time.time()) - 2 * HANDSHAKE_SECONDS
    async with running(world):
        await world.settled()
        for at in (first, first + 120, first + 299, first + HANDSHAKE_SECONDS):
            world.dataplane.set_stats(make_key("phone"), _shake_hands(at))
            await world.next_pass()
        await world.eventually(
            lambda: backend.remarks.handshakes.get("phone") == first + HANDSHAKE_SECONDS
        )

    times = [one.handshakes["phone"] for one in backend.told if one.handshakes]
    assert times == [first, first + HANDSHAKE_SECONDS]


def _shake_hands(at: float) -> PeerStats:
    return PeerStats(endpoint=None, latest_handshake=at, received_bytes=1, sent_bytes=1)


async def test_a_store_that_refuses_remarks_is_asked_again_and_the_agent_stays_ready(
    world: World,
) -> None:
    backend = remember(world)
    backend.refusal = "memory: no room for remarks"
    with capture_logs() as logs:
        async with running(world):
            await world.eventually(lambda: backend.tries == 2)
            assert world.read("kilo_ready") == 1
            assert world.read("kilo_errors_total", {"event": "remark"}) == 2
            backend.refusal = ""
            await world.eventually(lambda: backend.told)

    lines = [log for log in logs if log["event"] == "remarks not shown"]
    assert [log["detail"] for log in lines] == ["memory: no room for remarks"]


async def test_no_pass_waits_for_a_store_that_takes_its_time_over_remarks(world: World) -> None:
    backend = remember(world)
    backend.refusal = "hangs"
    async with running(world):
        await world.eventually(lambda: backend.tries)
        world.backend.put_node("c", make_spec(pod_subnets=networks("10.2.33.0/24")))
        state = await world.settled()

        assert "10.2.33.0/24" in {str(route.destination) for route in state.routes}
        assert backend.tries == 1


async def test_nothing_is_told_by_a_snapshot_from_the_disk(world: World) -> None:
    async with running(world):
        await world.settled()
    backend = remember(world)
    backend.go_away("refused")
    async with running(world):
        await world.settled()
        assert backend.tries == 0
        backend.come_back()

        await world.eventually(lambda: backend.told)


async def test_a_remark_names_no_secret(world: World) -> None:
    peer = make_peer("thief", "10.2.3.0/25", preshared=True)
    other = replace(peer, name="twin")
    await world.backend.put_peer(peer)
    await world.backend.put_peer(other)
    async with running(world):
        await world.eventually(lambda: len(world.backend.remarks.remarks) == 2)

    assert peer.preshared_key is not None
    assert peer.preshared_key.reveal() not in repr(world.backend.remarks)  # type: ignore[union-attr]  # it is not withheld: made above


async def test_what_lasts_is_told_again_now_and_then_and_silence_never() -> None:
    backend = fill(RememberingBackend())
    spokesman = Spokesman(backend, failed=lambda: None, repeat_seconds=0.01)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(spokesman.run())
        spokesman.offer(Remarks(handshakes={"phone": 1_700_000_000}))
        await _eventually(lambda: len(backend.told) >= 3)
        spokesman.offer(Remarks())
        await _eventually(lambda: backend.told[-1] == Remarks())
        tries = backend.tries
        await asyncio.sleep(0.1)  # ten times as long as it takes to repeat something
        assert backend.tries == tries
        task.cancel()


async def _eventually(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while not holds():  # noqa: ASYNC110  the store is no event's
            await asyncio.sleep(0.005)
