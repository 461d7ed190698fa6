"""Which store can be heard and which cannot, for operators: log, status, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kilo.errors import BackendError
from kilo.log import get_logger
from kilo.mesh.model import Snapshot
from kilo.status import Status


class StoreNews:
    """Tells of each change once."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._log = get_logger("engine")

    def tell_lost(self, error: BackendError, known: Snapshot | None) -> None:
        """Nothing can be heard. ``known`` is the snapshot that holds meanwhile."""
        self._status.store_error = str(error)
        self._status.away = MappingProxyType({})
        self._show(known, lost=True)
        self._status.errors.labels("store").inc()
        self._log.error("store cannot be heard: the network stays as it is", error=str(error))

    def tell_heard(self, snapshot: Snapshot) -> bool:
        """A store, or some of several, says this. True if one is back."""
        was_lost, self._status.store_error = bool(self._status.store_error), ""
        earlier, self._status.away = self._status.away, snapshot.away
        self._show(snapshot, lost=False)
        self._tell_away(snapshot.away, earlier)
        back = sorted(earlier.keys() - snapshot.away.keys())
        for kind in back:
            self._log.info("store is heard again", store=kind)
        if was_lost:
            self._log.info("store is heard again")
        return was_lost or bool(back)

    def _tell_away(self, away: Mapping[str, str], earlier: Mapping[str, str]) -> None:
        for kind, reason in away.items():
            if earlier.get(kind) != reason:
                self._status.errors.labels("store").inc()
                self._log.error(
                    "store cannot be heard: what stands in it stays as it is",
                    store=kind,
                    error=reason,
                )

    def _show(self, snapshot: Snapshot | None, *, lost: bool) -> None:
        away = snapshot.away if snapshot else {}
        self._status.store_up.set(not (lost or away))
        for kind in snapshot.parts if snapshot else ():
            self._status.each_store_up.labels(kind).set(not (lost or kind in away))
