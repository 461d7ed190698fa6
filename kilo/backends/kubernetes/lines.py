"""A stream of bytes into lines, of any length, in time linear to their length."""

from __future__ import annotations


class TooLongError(ValueError):
    """A line has more bytes than is allowed."""


class LineSplitter:
    """Takes bytes as they come and gives back the lines that they complete."""

    def __init__(self, *, longest: int) -> None:
        """``longest``: bytes of a line at most."""
        self._longest = longest
        self._pending: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines complete now, without their ends and without empty ones.

        ``TooLongError`` if the line that is not complete yet is too long already.
        """
        *ends, rest = chunk.split(b"\n")
        lines = []
        for end in ends:
            lines.append(b"".join((*self._pending, end)))
            self._pending.clear()
            self._size = 0
        self._keep(rest)
        return [line for line in lines if line.strip()]

    @property
    def has_rest(self) -> bool:
        """Whether a line has begun that is not complete."""
        return self._size > 0

    def _keep(self, rest: bytes) -> None:
        if rest:
            self._pending.append(rest)
            self._size += len(rest)
        if self._size > self._longest:
            raise TooLongError(f"a line has more than {self._longest} bytes")
