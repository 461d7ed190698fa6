"""Who asks for the device at one moment is told by one look; who asks later, by a later one."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import suppress

import pytest

from kilo.dataplane.wireguard import WireGuard
from kilo.dataplane.wireguard_device import DeviceRecord, PeerRecord
from kilo.errors import DataplaneError
from kilo.keyfile import generate_private_key, public_key


class Device(WireGuard):
    """One with a peer that has received as many bytes as it was looked at."""

    def __init__(self) -> None:
        key = generate_private_key()
        super().__init__("kilo0", key)
        self.looks = 0
        self.peer = public_key(key)
        self.has_begun, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()
        self.failure: DataplaneError | None = None

    def _read(self) -> DeviceRecord:
        self.looks += 1
        looks = self.looks
        self.has_begun.set()
        assert self.may_answer.wait(10)
        if self.failure:
            raise self.failure
        peer = PeerRecord(public_key=self.peer, received_bytes=looks)
        return DeviceRecord(public_key=self.peer, peers=(peer,))

    async def count_received(self) -> int:
        return (await self.observe())[self.peer].received_bytes


async def test_a_pass_that_reads_and_measures_looks_once() -> None:
    device = Device()
    async with asyncio.TaskGroup() as group:
        group.create_task(device.read_marked())
        group.create_task(device.fingerprint())
        await device.observe()
    assert device.looks == 1


async def test_who_asks_once_it_has_begun_is_told_by_a_later_look() -> None:
    device = Device()
    device.may_answer.clear()
    early = asyncio.create_task(device.count_received())
    assert await asyncio.to_thread(device.has_begun.wait, 10)
    late = asyncio.create_task(device.count_received())
    device.may_answer.set()
    assert (await early, await late) == (1, 2)


async def test_one_who_gives_up_takes_nothing_from_the_other() -> None:
    device = Device()
    device.may_answer.clear()
    first, second = (asyncio.create_task(device.count_received()) for _ in range(2))
    assert await asyncio.to_thread(device.has_begun.wait, 10)
    first.cancel()
    device.may_answer.set()
    assert await second == 1
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_all_are_told_of_a_failure_and_the_next_look_is_another() -> None:
    device = Device()
    device.failure = DataplaneError("no answer")
    told = await asyncio.gather(device.observe(), device.fingerprint(), return_exceptions=True)
    assert list(map(str, told)) == ["no answer", "no answer"]
    device.failure = None
    assert await device.count_received() == 2


async def test_a_failure_that_nobody_waits_for_any_more_is_no_news() -> None:
    device, told = Device(), list[dict[str, object]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    device.failure = DataplaneError("no answer")
    device.may_answer.clear()
    asking = asyncio.create_task(device.observe())
    assert await asyncio.to_thread(device.has_begun.wait, 10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    device.may_answer.set()
    with pytest.raises(DataplaneError):  # in the same thread, so that the other is over
        await device.observe()
    await asyncio.sleep(0)
    gc.collect()
    assert told == []


def test_a_look_that_an_event_loop_took_along_is_not_waited_for_in_the_next() -> None:
    device = Device()

    async def give_up_at_once() -> None:
        asking = asyncio.create_task(device.observe())
        await asyncio.sleep(0)
        asking.cancel()

    with suppress(asyncio.CancelledError):
        asyncio.run(give_up_at_once())
    assert asyncio.run(device.count_received()) >= 1
