"""What a watch has told already, and so whether the next outcome is news."""

from __future__ import annotations

from kilo.errors import BackendError
from kilo.mesh.model import Snapshot


class News:
    """Keeps one watch's promise: each different error once, each change, and the return."""

    def __init__(self) -> None:
        self._told: Snapshot | None = None
        self._errors: set[str] = set()
        """Texts told since the last snapshot."""

    def notice(self, outcome: Snapshot | BackendError) -> bool:
        """Whether to yield it; counts it as told."""
        if isinstance(outcome, BackendError):
            is_new = str(outcome) not in self._errors
            self._errors.add(str(outcome))
            return is_new
        told = self._told
        is_new = (
            told is None
            or bool(self._errors)
            or outcome != told
            or outcome.last_seen != told.last_seen
        )
        self._told = outcome
        self._errors.clear()
        return is_new
