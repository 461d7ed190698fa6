"""How all that is below a prefix of an etcd is listed and watched, as one collection."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from kilo.backends.entries import Entry, Items
from kilo.backends.etcd.asks import decode_key, follow_prefix, get_prefix
from kilo.backends.etcd.client import Client
from kilo.backends.etcd.entries import decode_entry
from kilo.backends.etcd.failures import EtcdError
from kilo.backends.etcd.keys import Keys
from kilo.backends.etcd.library import pairs
from kilo.backends.source import (
    Bookmark,
    Delete,
    Event,
    ExpiredError,
    Item,
    Listing,
    Opened,
    Probe,
    Put,
)
from kilo.errors import BackendError

PAGE, FEW = 100, 10
"""Keys of a page of a list, and of a probe. A value may have 1.5 MB, so a page may have 150. All
reports of a small mesh, which is the one whose stream may fall silent, are in a probe."""
PROBE_SECONDS = 5.0
MAX_RESTARTS = 5
"""Of one list whose revision is compacted while it is read."""


class KeySource:
    """Everything below the prefix. Implements ``Source``."""

    def __init__(
        self, client: Client, keys: Keys, *, note_change: Callable[[str], None] | None = None
    ) -> None:
        """``note_change`` is told of each key that has another value than the one held, or none."""
        self._client = client
        self._keys = keys
        self._note_change = note_change or (lambda _key: None)

    async def list(self, held: Items) -> Listing[Entry]:
        """All keys, in pages of one moment; a majority of the members answers for it."""
        for _ in range(MAX_RESTARTS):
            try:
                with _translated():
                    return await self._list_pages(held)
            except ExpiredError as error:
                expired = error
        raise BackendError(str(expired))

    async def _list_pages(self, held: Items) -> Listing[Entry]:
        items: dict[str, Item[Entry]] = {}
        revision, after = 0, ""
        while True:
            ask = get_prefix(self._keys.prefix, after=after, limit=PAGE, revision=revision)
            page = await self._client.call(ask)
            items |= (self._make_item(pair, held) for pair in page.kvs)
            revision = revision or page.header.revision
            if not page.more:
                for key in held.keys() - items.keys():
                    self._note_change(key)
                return Listing(items=items, revision=str(revision))
            after = decode_key(page.kvs[-1].key)

    async def watch(self, revision: str, held: Items) -> AsyncGenerator[Event[Entry], None]:
        """The changes since then, for as long as the member keeps the stream."""
        ask = follow_prefix(self._keys.prefix, after_revision=int(revision))
        with _translated():
            async with aclosing(self._client.stream(ask)) as answers:
                async for answer in answers:
                    # Nothing is awaited between the events of one answer: those of a transaction
                    # have one revision, and whoever stopped half-way would resume behind all.
                    for event in self._read_answer(answer, held):
                        yield event
        raise BackendError(f"etcd: {ask.about}: the server ended it")

    async def probe(self) -> Probe:
        """The first reports, without their values."""
        ask = get_prefix(self._keys.reports, limit=FEW, keys_only=True)
        answer = await self._client.call(ask, seconds=PROBE_SECONDS)
        return Probe(
            revision=str(answer.header.revision),
            revisions={decode_key(pair.key): str(pair.mod_revision) for pair in answer.kvs},
        )

    def _make_item(self, pair: Any, held: Items) -> tuple[str, Item[Entry]]:
        key, revision = decode_key(pair.key), str(pair.mod_revision)
        before = held.get(key)
        entry = decode_entry(self._keys, key, pair.value, before.value if before else None)
        # In a store that was put back a revision that was held can come again, with another value.
        if before is not None and before.revision == revision and before.value == entry:
            return key, before
        self._note_change(key)
        return key, Item(value=entry, revision=revision)

    def _read_answer(self, answer: Any, held: Items) -> Iterator[Event[Entry]]:
        if answer.compact_revision:
            raise ExpiredError(f"etcd: revisions before {answer.compact_revision} are compacted")
        if answer.created:
            yield Opened()
        elif not answer.events:
            yield Bookmark(str(answer.header.revision))
        for event in answer.events:
            if event.type == pairs.Event.DELETE:
                key = decode_key(event.kv.key)
                self._note_change(key)
                yield Delete(key, str(event.kv.mod_revision))
            else:
                yield Put(*self._make_item(event.kv, held))


@contextmanager
def _translated() -> Iterator[None]:
    """The client's errors, into those that say what to do."""
    try:
        yield
    except EtcdError as error:
        if error.is_compacted:
            raise ExpiredError(str(error)) from error
        raise
