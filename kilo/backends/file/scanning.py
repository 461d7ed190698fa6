"""Which files there are below a directory, and which of them are meant to be read. Reads none.

Everything here blocks on the file system and is called in the backend's own thread.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from kilo.errors import BackendError
from kilo.mesh.model import Problem

SUFFIXES = (".yaml", ".yml", ".json")
TEMPORARY = ".tmp"
MAX_DIRECTORIES = 50
"""How deep to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """By what a file is known to be unchanged."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    """Also changes where a tool sets the modification time back."""

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The stamp of a file with this status."""
        return cls(
            device=status.st_dev,
            inode=status.st_ino,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files to read, by path relative to the directory and in that order."""

    files: dict[str, Stamp] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    """Files and directories that are there but could not be looked at."""
    problems: list[Problem] = field(default_factory=list)
    has_twins: bool = False
    """Whether a file is reached by more than one path."""


def identify_directory(directory: Path) -> tuple[int, int]:
    """Device and inode; ``BackendError`` where there is no such directory."""
    try:
        status = directory.stat()
    except OSError as error:
        raise BackendError(f"{directory}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise BackendError(f"{directory}: is not a directory")
    return status.st_dev, status.st_ino


def list_files(directory: Path) -> Listing:
    """Every file to be read, each real file once even if links lead to it.

    ``BackendError`` where the directory itself cannot be read, or went away meanwhile.
    """
    identity = identify_directory(directory)
    listing = Listing()
    try:
        found = dict(_walk(str(directory), "", {identity}, listing))
    except OSError as error:
        raise BackendError(f"{directory}: {error.strerror}") from error
    if identify_directory(directory) != identity:
        # What was seen is a bit of each of two directories.
        raise BackendError(f"{directory}: was replaced while it was being read")
    seen: set[tuple[int, int]] = set()
    for path in sorted(found):
        stamp = found[path]
        if (stamp.device, stamp.inode) not in seen:
            seen.add((stamp.device, stamp.inode))
            listing.files[path] = stamp
    return replace(listing, has_twins=len(listing.files) < len(found))


def find_stamp(directory: Path, path: str) -> Stamp | None:
    """Of a file to be read that is reached by no other path; None for anything else."""
    try:
        status = os.lstat(f"{directory}/{path}")
    except OSError:
        return None
    is_alone = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    return Stamp.of(status) if is_alone and path.endswith(SUFFIXES) else None


def is_ignored(name: str) -> bool:
    """Hidden files, and what editors and writers put beside the file they work on."""
    return name.startswith((".", "#")) or name.endswith(("~", ".swp", TEMPORARY))


def show_path(path: str) -> str:
    """The path fit for a message, whatever bytes it is made of."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else ascii(text)


# The directory as text: thousands of files are looked at several times a second while others
# check in, and to make a Path object of each costs more than to look.


def _walk(
    directory: str, below: str, visited: set[tuple[int, int]], listing: Listing
) -> Iterator[tuple[str, Stamp]]:
    """Files of one directory and of those in it; ``visited`` breaks loops of links."""
    with os.scandir(f"{directory}/{below}") as entries:
        names = sorted(entry.name for entry in entries if not is_ignored(entry.name))
    for name in names:
        path = f"{below}/{name}" if below else name
        try:
            status = _look_at(directory, path, listing)
            if status is None:
                continue
            if not stat.S_ISDIR(status.st_mode):
                yield path, Stamp.of(status)
            elif (status.st_dev, status.st_ino) not in visited:
                visited.add((status.st_dev, status.st_ino))
                yield from _walk(directory, path, visited, listing)
        except FileNotFoundError:
            continue
        except OSError as error:
            listing.unknown.append(path)
            reason = f"cannot be read: {error.strerror}; what was last read there stays in force"
            listing.problems.append(describe_file(path, reason))


def _look_at(directory: str, path: str, listing: Listing) -> os.stat_result | None:
    """The status of what is there, links followed; None for what is not to be looked into."""
    is_named_so = path.endswith(SUFFIXES)
    try:
        status = os.stat(f"{directory}/{path}")  # noqa: PTH116 - see above
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        if is_named_so and Path(directory, path).is_symlink():
            reason = "is a link that leads nowhere; left out"
            listing.problems.append(describe_file(path, reason))
        return None
    if stat.S_ISDIR(status.st_mode):
        if path.count("/") < MAX_DIRECTORIES:
            return status
        listing.problems.append(describe_file(path, "lies too deep; left out"))
        return None
    if is_named_so and not stat.S_ISREG(status.st_mode):
        listing.problems.append(describe_file(path, "is not a regular file; left out"))
        return None
    return status if is_named_so else None


def describe_file(path: str, reason: str) -> Problem:
    """A problem of a whole file."""
    return Problem(source=show_path(path), object="", reason=reason)
