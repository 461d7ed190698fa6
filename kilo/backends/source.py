"""What a store that can be listed and watched offers: one kind of object, as a stream of events.

``kilo/backends/listwatch.py`` keeps a copy of the objects from it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from kilo.errors import BackendError

V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)


class ExpiredError(BackendError):
    """The store no longer knows that revision: all is to be listed anew."""


class BusyError(BackendError):
    """The store asks to be left alone for a while."""

    def __init__(self, text: str, *, seconds: float) -> None:
        super().__init__(text)
        self.seconds = seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Item(Generic[V_co]):
    """An object as it is held."""

    value: V_co
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Generic[V_co]):
    """All objects at one moment, by key."""

    items: Mapping[str, Item[V_co]]
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a small read of the store itself shows: its revision, and those of some objects."""

    revision: str
    revisions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Opened:
    """The store has accepted the watch."""


@dataclass(frozen=True, slots=True)
class Put(Generic[V_co]):
    """An object is now this."""

    key: str
    item: Item[V_co]


@dataclass(frozen=True, slots=True)
class Delete:
    """An object is gone since that revision."""

    key: str
    revision: str


@dataclass(frozen=True, slots=True)
class Bookmark:
    """All up to that revision has been told."""

    revision: str


Event = Opened | Put[V] | Delete | Bookmark


class Source(Protocol[V]):
    """One kind of object in one store. All methods raise ``BackendError``.

    ``held`` is the copy that is kept, so that what did not change need not be decoded again.
    """

    async def list(self, held: Mapping[str, Item[V]]) -> Listing[V]:
        """All objects, as the store itself has them now; no cache in between may answer."""
        ...

    def watch(self, revision: str, held: Mapping[str, Item[V]]) -> AsyncGenerator[Event[V], None]:
        """``Opened``, then every change after that revision, each once and in order.

        Ends when the time agreed with the store is over; ``ExpiredError`` if the store no longer
        has that revision.
        """
        ...

    async def probe(self) -> Probe:
        """A few objects as the store itself has them now: the cheapest proof that it answers."""
        ...


def is_older(one: str, other: str) -> bool:
    """Whether revision ``one`` came before ``other``; False where that cannot be told.

    A store's revisions mean something to the store only; in practice all are numbers.
    """
    return one.isdecimal() and other.isdecimal() and int(one) < int(other)
