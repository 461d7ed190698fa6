"""Listing, watching, resuming and backing off, in virtual time against a store with faults."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.backends.listwatch import FOLLOWER, PULSE, Collection, Pace
from kilo.errors import BackendError
from tests.backends.faultystore import AWAY, BUSY, FaultyStore
from tests.backends.virtualtime import in_virtual_time, now

SILENCE_SECONDS = 20.0
"""Within which a store that says nothing any more is to be told."""
RETURN_SECONDS = 10.0
"""Within which its return is."""


class Copy:
    """A collection at work, and what it told."""

    def __init__(
        self,
        store: FaultyStore,
        *,
        pace: Pace = PULSE,
        pulse: Collection[str] | None = None,
        seed: int = 1,
    ) -> None:
        self.changes: list[tuple[str | None, str | None]] = []
        self.errors: list[tuple[float, str]] = []
        """When the store was lost, and why; an empty text for its return."""
        self.put_backs = 0
        self.collection = Collection(
            store,
            self,
            pace=pace,
            pulse=pulse.heard if pulse else None,
            draw=random.Random(seed).random,
        )
        self._store = store

    def note_change(self, old: str | None, new: str | None) -> None:
        self.changes.append((old, new))

    def note_state(self) -> None:
        text = str(self.collection.error or "")
        if text != (self.errors[-1][1] if self.errors else ""):
            self.errors.append((now(), text))

    def note_put_back(self) -> None:
        self.put_backs += 1

    @property
    def is_right(self) -> bool:
        return self.collection.items == self._store.items

    @property
    def is_lost(self) -> bool:
        return self.collection.error is not None


@asynccontextmanager
async def copying(*copies: Copy) -> AsyncIterator[None]:
    """Their collections run meanwhile."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(copy.collection.run()) for copy in copies]
        await asyncio.sleep(1.0)
        yield
        for task in tasks:
            task.cancel()


async def until(holds: Callable[[], bool], *, within: float) -> float:
    """Seconds until that holds; fails after ``within``."""
    begin = now()
    while not holds():
        assert now() < begin + within
        await asyncio.sleep(0.01)
    return now() - begin


# All is well.


@in_virtual_time
async def test_the_copy_begins_with_a_list_and_follows_every_change() -> None:
    store = FaultyStore("a")
    copy = Copy(store)
    async with copying(copy):
        store.put("b", "new")
        store.put("a", "changed")
        store.delete("b")
        await asyncio.sleep(0.1)
        assert copy.is_right
        assert copy.changes == [
            (None, "here"),
            (None, "new"),
            ("here", "changed"),
            ("new", None),
        ]
        assert len(store.lists) == 1


@in_virtual_time
async def test_what_decodes_to_the_same_value_is_no_change() -> None:
    store = FaultyStore("a")
    copy = Copy(store)
    async with copying(copy):
        before = store.items["a"]
        store.put("a", "here")
        await asyncio.sleep(0.1)
        assert copy.changes == [(None, "here")]
        assert copy.collection.items["a"].revision > before.revision


@in_virtual_time
async def test_a_watch_that_ends_as_agreed_resumes_where_it_was_without_a_list() -> None:
    store = FaultyStore("a", watch_seconds=20.0)
    copy = Copy(store)
    async with copying(copy):
        for number in range(100):
            store.put("a", f"value {number}")
            await asyncio.sleep(1.0)
        assert copy.is_right
        assert len(copy.changes) == 101
        assert (len(store.lists), len(store.watches)) == (1, 6)


@in_virtual_time
async def test_a_bookmark_saves_a_list_after_compaction() -> None:
    store = FaultyStore("a", watch_seconds=20.0)
    copy = Copy(store)
    async with copying(copy):
        store.pass_by()
        await asyncio.sleep(1.0)
        store.compact()
        await asyncio.sleep(30.0)
        assert len(store.watches) == 2
        assert len(store.lists) == 1


@in_virtual_time
async def test_an_idle_store_is_probed_and_never_told_as_away() -> None:
    store = FaultyStore("a", "b")
    copy = Copy(store)
    async with copying(copy):
        await asyncio.sleep(3600)
        assert copy.errors == []
        assert len(store.lists) == 1
        assert 300 < len(store.probes) < 370


@in_virtual_time
async def test_a_store_that_is_busy_with_news_is_not_probed() -> None:
    store = FaultyStore("a")
    copy = Copy(store)
    async with copying(copy):
        for number in range(100):
            store.put("a", f"value {number}")
            await asyncio.sleep(9.0)
        assert store.probes == []
        assert copy.is_right


@in_virtual_time
async def test_a_follower_that_hears_nothing_resumes_and_asks_for_no_proof() -> None:
    store = FaultyStore("a", watch_seconds=10_000.0)
    copy = Copy(store, pace=FOLLOWER, pulse=Copy(FaultyStore()).collection)
    async with copying(copy):
        await asyncio.sleep(1000)
        assert (len(store.lists), len(store.probes)) == (1, 0)
        assert 10 <= len(store.watches) <= 12


@in_virtual_time
async def test_bookmarks_keep_a_follower_s_stream() -> None:
    store = FaultyStore("a", watch_seconds=10_000.0)
    copy = Copy(store, pace=FOLLOWER, pulse=Copy(FaultyStore()).collection)
    async with copying(copy):
        for _ in range(20):
            await asyncio.sleep(60)
            store.bookmark()
        assert len(store.watches) == 1


# Something breaks.


@in_virtual_time
async def test_a_stream_that_breaks_is_not_told_if_the_store_still_answers() -> None:
    store = FaultyStore("a")
    copy = Copy(store)
    async with copying(copy):
        store.cut()
        store.put("a", "changed while nobody listened")
        await until(lambda: copy.is_right, within=2.0)
        assert copy.errors == []


@in_virtual_time
async def test_after_a_break_all_is_listed_once_more_soon_in_a_small_mesh() -> None:
    store = FaultyStore(*"abcdef")
    copy = Copy(store)
    async with copying(copy):
        store.cut()
        await until(lambda: len(store.lists) == 2, within=2.5)
        await asyncio.sleep(100)
        assert len(store.lists) == 2


@in_virtual_time
async def test_a_revision_that_expired_makes_a_new_list() -> None:
    store = FaultyStore("a", "b", watch_seconds=10.0)
    copy = Copy(store)
    async with copying(copy):
        store.deafen()
        store.put("a", "changed")
        store.delete("b")
        store.compact()
        await until(lambda: copy.is_right, within=15.0)
        assert copy.errors == []


@in_virtual_time
async def test_a_store_whose_every_revision_expires_is_not_listed_all_the_time() -> None:
    store = FaultyStore("a")
    store.refusal = None
    copy = Copy(store)
    async with copying(copy):
        store._compacted = 10**9
        store.cut()
        await asyncio.sleep(60)
        assert len(store.lists) < 40


@in_virtual_time
async def test_a_watch_cut_every_second_misses_nothing() -> None:
    store = FaultyStore("a")
    copy = Copy(store)
    async with copying(copy):
        for number in range(60):
            store.put("a", f"value {number}")
            await asyncio.sleep(0.5)
            store.cut()
            await asyncio.sleep(0.5)
        await until(lambda: copy.is_right, within=5.0)
        assert copy.errors == []


# The store is away.


@pytest.mark.parametrize("seed", range(20))
@in_virtual_time
async def test_a_store_that_is_away_is_told_at_once_and_its_return_soon(seed: int) -> None:
    store = FaultyStore(*"abcdef")
    copy = Copy(store, seed=seed)
    async with copying(copy):
        store.trouble = AWAY
        store.cut()
        await until(lambda: copy.is_lost, within=2.0)
        tries = len(store.probes)
        await asyncio.sleep(300)
        assert 40 < len(store.probes) - tries < 300
        assert len(store.lists) == 1
        store.put("a", "changed meanwhile")
        store.trouble = None
        await until(lambda: not copy.is_lost and copy.is_right, within=RETURN_SECONDS)
        assert [text for _, text in copy.errors] == ["refused", ""]
        await until(lambda: len(store.lists) == 2, within=3.0)


@in_virtual_time
async def test_a_store_that_is_away_at_the_start_is_listed_when_it_comes() -> None:
    store = FaultyStore("a")
    store.trouble = AWAY
    copy = Copy(store)
    async with copying(copy):
        assert copy.is_lost
        assert not copy.collection.is_listed
        await asyncio.sleep(60)
        store.trouble = None
        await until(lambda: copy.collection.is_listed and not copy.is_lost, within=RETURN_SECONDS)


@in_virtual_time
async def test_a_store_that_asks_to_be_left_alone_is() -> None:
    store = FaultyStore("a")
    store.trouble = BUSY
    copy = Copy(store)
    async with copying(copy):
        await asyncio.sleep(60)
        gaps = [two - one for one, two in zip(store.lists, store.lists[1:], strict=False)]
        assert min(gaps) >= BUSY.seconds


@in_virtual_time
async def test_a_store_that_is_gone_behind_its_cache_is_told_in_time() -> None:
    store = FaultyStore("a")
    copy = Copy(store)
    async with copying(copy):
        store.is_uncached = True
        await asyncio.sleep(9.0)
        store.bookmark()  # the cache's own doing
        await until(lambda: copy.is_lost, within=SILENCE_SECONDS - 9.0)
        await asyncio.sleep(60)
        assert [text for _, text in copy.errors] == ["no answer in 5 s"]
        store.is_uncached = False
        await until(lambda: not copy.is_lost, within=RETURN_SECONDS)


@pytest.mark.parametrize("seed", range(10))
@in_virtual_time
async def test_a_store_that_is_frozen_is_told_in_time_and_so_is_its_thaw(seed: int) -> None:
    store = FaultyStore("a")
    copy = Copy(store, seed=seed)
    async with copying(copy):
        store.is_frozen = True
        await until(lambda: copy.is_lost, within=SILENCE_SECONDS)
        await asyncio.sleep(300)
        store.put("a", "changed")
        store.is_frozen = False
        await until(lambda: not copy.is_lost and copy.is_right, within=RETURN_SECONDS)


@in_virtual_time
async def test_a_stream_that_has_gone_deaf_is_found_out() -> None:
    store = FaultyStore("a", "b")
    copy = Copy(store)
    async with copying(copy):
        store.deafen()
        store.put("a", "changed")
        store.put("c", "new")
        store._generation += 1  # whoever watches anew hears
        await until(lambda: copy.is_right, within=13.0)
        assert copy.errors == []


@in_virtual_time
async def test_a_stream_is_opened_anew_after_more_silence_than_there_can_be() -> None:
    store = FaultyStore(*(f"{number:02}" for number in range(30)))
    copy = Copy(store)
    async with copying(copy):
        store.deafen()
        store.put("29", "changed where no probe looks")
        store._generation += 1
        await until(lambda: copy.is_right, within=40.0)


@in_virtual_time
async def test_a_watch_that_is_refused_by_a_store_that_answers_ends_in_a_list() -> None:
    store = FaultyStore("a")
    copy = Copy(store)
    async with copying(copy):
        store.refusal = BackendError("resource version too large")
        store.cut()
        await until(lambda: len(store.lists) == 2, within=30.0)
        store.refusal = None
        await until(lambda: not copy.is_lost, within=RETURN_SECONDS)


# The store comes back another.


@in_virtual_time
async def test_a_store_put_back_to_an_older_state_is_noticed_by_its_revision() -> None:
    store = FaultyStore("a")
    copy = Copy(store)
    async with copying(copy):
        saved = store.save()
        store.put("a", "to be lost")
        store.put("b", "to be lost")
        await asyncio.sleep(1.0)
        store.restore(saved)
        await until(lambda: copy.is_right, within=13.0)
        assert copy.put_backs == 1
        store.put("a", "later")
        await until(lambda: copy.is_right, within=1.0)


@in_virtual_time
async def test_an_older_state_that_has_gone_on_is_noticed_after_the_outage() -> None:
    store = FaultyStore(*"abc")
    copy = Copy(store)
    async with copying(copy):
        saved = store.save()
        store.put("a", "to be lost")
        await asyncio.sleep(1.0)
        store.trouble = AWAY
        store.cut()
        await asyncio.sleep(60)
        store.restore(saved)
        for number in range(10):
            store.put("b", f"value {number}")
        store.trouble = None
        await until(lambda: not copy.is_lost and copy.is_right, within=RETURN_SECONDS)


@in_virtual_time
async def test_all_is_listed_anew_when_another_collection_says_so() -> None:
    store = FaultyStore("a")
    copy = Copy(store, pace=FOLLOWER, pulse=Copy(FaultyStore()).collection)
    async with copying(copy):
        saved = store.save()
        store.put("a", "to be lost")
        await asyncio.sleep(1.0)
        store.restore(saved)
        copy.collection.renew()
        await until(lambda: copy.is_right, within=1.0)
        assert copy.put_backs == 0


@pytest.mark.parametrize("stream", ["lives on", "broke"])
@in_virtual_time
async def test_followers_of_a_store_put_back_do_not_all_list_at_once(stream: str) -> None:
    """An API server may start anew with it, or not."""
    nodes, store = FaultyStore("node"), FaultyStore(*map(str, range(1000)))
    pulse = Copy(nodes)
    copies = [Copy(store, pace=FOLLOWER, pulse=pulse.collection, seed=seed) for seed in range(40)]
    async with copying(pulse, *copies):
        store.lists.clear()
        if stream == "broke":
            store.cut()
            await asyncio.sleep(0.001)
        for copy in copies:
            copy.collection.renew()
        await asyncio.sleep(40)
        assert len(store.lists) == 40
        assert max(store.lists) - min(store.lists) > 15


@in_virtual_time
async def test_agents_that_lost_a_store_together_do_not_knock_together() -> None:
    store = FaultyStore("a")
    async with copying(*(Copy(store, seed=seed) for seed in range(50))):
        store.trouble = AWAY
        store.cut()
        await asyncio.sleep(60)
        store.probes.clear()
        await asyncio.sleep(10)
        moments = Counter(round(at, 1) for at in store.probes)
        assert moments.total() > 100
        assert max(moments.values()) < 15


# Many collections.


@in_virtual_time
async def test_a_follower_tells_only_of_what_lasts() -> None:
    pulse, store = Copy(FaultyStore("node")), FaultyStore("a")
    copy = Copy(store, pace=FOLLOWER, pulse=pulse.collection)
    async with copying(pulse, copy):
        store.trouble = BackendError("404 for a moment")
        store.cut()
        await asyncio.sleep(3)
        store.trouble = None
        await asyncio.sleep(20)
        assert copy.errors == []
        store.trouble = AWAY
        store.cut()
        await until(lambda: copy.is_lost, within=13.0)
        assert not pulse.is_lost


@in_virtual_time
async def test_a_follower_does_not_knock_while_the_pulse_cannot_be_heard() -> None:
    nodes, store = FaultyStore("node"), FaultyStore("a")
    pulse = Copy(nodes)
    copy = Copy(store, pace=FOLLOWER, pulse=pulse.collection)
    async with copying(pulse, copy):
        for one in (nodes, store):
            one.trouble = AWAY
            one.cut()
        await asyncio.sleep(3)
        knocks = len(store.watches)
        await asyncio.sleep(300)
        assert len(store.watches) == knocks
        assert copy.errors == []
        store.put("a", "changed")
        nodes.trouble = store.trouble = None
        await until(lambda: pulse.is_right and copy.is_right, within=RETURN_SECONDS)
        assert copy.errors == []


@in_virtual_time
async def test_agents_that_lost_a_store_together_do_not_list_it_together() -> None:
    store = FaultyStore(*(f"{number:03}" for number in range(200)))
    copies = [Copy(store, seed=seed) for seed in range(100)]
    async with copying(*copies):
        store.trouble = AWAY
        store.cut()
        await asyncio.sleep(120)
        store.trouble = None
        back = now()
        await asyncio.sleep(RETURN_SECONDS)
        assert not any(copy.is_lost for copy in copies)
        await asyncio.sleep(100)
        lists = [at for at in store.lists if at > back]
        assert len(lists) == 100
        most = max(sum(at <= other < at + 1.0 for other in lists) for at in lists)
        assert most <= 10  # evenly it would be 1.7 a second


@in_virtual_time
async def test_a_bug_ends_the_collection_and_is_not_taken_for_an_outage() -> None:
    class Buggy(FaultyStore):
        async def probe(self) -> None:  # type: ignore[override]  # the bug
            raise ZeroDivisionError

    copy = Copy(Buggy("a"))
    with pytest.raises(ZeroDivisionError):
        await copy.collection.run()


# Whatever happens.

FAULTS = (
    "put",
    "delete",
    "cut",
    "compact",
    "away",
    "back",
    "freeze",
    "thaw",
    "lose",
    "find",
    "deafen",
    "restore",
    "wait",
)


def strike(store: FaultyStore, fault: str, number: int) -> None:
    saved = store.save()
    actions: dict[str, Callable[[], object]] = {
        "put": lambda: store.put("abcdef"[number % 6], f"value {number}"),
        "delete": lambda: store.delete("abcdef"[number % 6]),
        "cut": store.cut,
        "compact": store.compact,
        "deafen": store.deafen,
    }
    if fault in actions:
        actions[fault]()
    elif fault == "restore":
        # As a real one is: everything stops, and starts again.
        store.restore(({k: i for k, i in saved[0].items() if int(i.revision) < 5}, 5))
        store._compacted = 0
        store.cut()
    else:
        store.trouble = {"away": AWAY, "back": None}.get(fault, store.trouble)
        store.is_frozen = {"freeze": True, "thaw": False}.get(fault, store.is_frozen)
        store.is_uncached = {"lose": True, "find": False}.get(fault, store.is_uncached)


@settings(deadline=None, max_examples=150)
@given(
    faults=st.lists(st.tuples(st.sampled_from(FAULTS), st.floats(0.0, 30.0)), max_size=25),
    seed=st.integers(0, 1000),
)
@in_virtual_time
async def test_whatever_happens_the_copy_is_right_in_the_end(
    faults: list[tuple[str, float]], seed: int
) -> None:
    store = FaultyStore("a", "b")
    copy = Copy(store, seed=seed)
    async with copying(copy):
        for number, (fault, seconds) in enumerate(faults):
            strike(store, fault, number)
            await asyncio.sleep(seconds)
        for fault in ("back", "thaw", "find"):
            strike(store, fault, 0)
        store.cut()
        await until(lambda: not copy.is_lost and copy.is_right, within=60.0)
        await asyncio.sleep(60)
        assert copy.is_right
        assert not copy.is_lost
