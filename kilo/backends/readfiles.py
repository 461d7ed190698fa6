"""Files that credentials come from: read, and looked at again for changes."""

from __future__ import annotations

from pathlib import Path

from kilo.errors import BackendError

MAX_BYTES = 16 * 1024 * 1024
"""A kubeconfig of thousands of clusters has a tenth of that; ``/dev/zero`` has more."""

Mark = tuple[int, ...] | None
"""What tells one state of a file from another; None: it is not there."""


class ReadFiles:
    """Reads files and remembers what they were like, to tell when one of them is another.

    Everything here blocks on the file system.
    """

    def __init__(self, store: str) -> None:
        """``store``: what messages begin with, ``etcd`` say."""
        self._store = store
        self._marks: dict[Path, Mark] = {}

    def read(self, path: Path, what: str) -> bytes:
        """The file's content. ``BackendError`` names ``what`` it is, and the file."""
        # Looked at before it is read: a change in between is seen at the next look.
        self._marks[path] = _look(path)
        try:
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
            reason = getattr(error, "strerror", None) or str(error)
            raise BackendError(f"{self._store}: {what} {path}: cannot be read: {reason}") from error
        if len(content) > MAX_BYTES:
            raise BackendError(f"{self._store}: {what} {path}: is larger than {MAX_BYTES} bytes")
        return content

    def read_text(self, path: Path, what: str) -> str:
        """The file's content as text. ``BackendError`` as ``read``, or if it is not UTF-8."""
        try:
            return self.read(path, what).decode()
        except UnicodeDecodeError as error:
            raise BackendError(f"{self._store}: {what} {path}: is not UTF-8 text") from error

    def watch(self, path: Path) -> bool:
        """Whether the file is there; its coming or going counts as a change."""
        self._marks[path] = _look(path)
        return self._marks[path] is not None

    def have_changed(self) -> bool:
        """Whether one of the files read is not what it was, replaced, edited, come or gone."""
        return any(_look(path) != mark for path, mark in self._marks.items())


def _look(path: Path) -> Mark:
    """Follows symbolic links: Kubernetes renews a projected volume by swapping one."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
