"""One file -> what it holds. Trusts neither its type, nor its size, nor a byte of it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from kilo.backends.documents import read_document
from kilo.backends.file.scanning import Stamp, describe_file, show_path
from kilo.backends.formats import LATEST_SECOND
from kilo.backends.objects import Found, ReportedNode
from kilo.backends.yamltext import Document, load_documents
from kilo.mesh.model import Problem

MAX_BYTES = 16 * 2**20
"""Of one file. A thousand peers need about 200 kB, a thousand Kubernetes nodes 12 MB. While it is
read, which takes up to 10 s of a processor, no other file is."""
MAX_PROBLEMS = 100
"""Of one file, so that a file of nothing but errors does not flood the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What one file holds."""

    found: tuple[Found, ...] = ()
    problems: tuple[Problem, ...] = ()
    documents: int = 0
    objects: int = 0
    """Objects in the documents, good or bad: a list holds many."""
    broken: bool = False
    """The file could not be read, or not to its end."""
    rest: bytes = field(default=b"", repr=False)
    """Of a node's report: by what its text is known, but for when it was written."""


NOTHING = Content()
"""Also of a file that went before it could be opened."""


class UnusableFileError(Exception):
    """The file as a whole cannot be read; the text says why."""


_STAMP = re.compile(rb'^( *"?lastSeen"?: )([1-9][0-9]{0,11})(?=,?$)', re.MULTILINE)
"""A line that says when a report was written, as everybody writes it."""


def read_content(
    directory: Path, path: str, topology_label: str, before: Content
) -> tuple[Content, Stamp | None]:
    """The content, and the stamp it had once it was read; None where nobody can tell. ``before``
    is what the file held when it was last read; it changes no result.
    """
    try:
        data, stamp = read_bytes(directory / path)
    except UnusableFileError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return NOTHING, None
        return make_broken(path, str(error)), None
    return _recognise(data, before) or parse_content(data, path, topology_label), stamp


def _recognise(data: bytes, before: Content) -> Content | None:
    """The content of a report of which nothing has changed but when it was written."""
    rest, last_seen = _split_stamp(data)
    match before.found:
        case (Found(value=ReportedNode() as report) as found,) if rest and rest == before.rest:
            value = replace(report, last_seen=last_seen)
            return replace(before, found=(replace(found, value=value),))
    return None


def _split_stamp(data: bytes) -> tuple[bytes, int | None]:
    """A digest of the text without the stamp, and the stamp; nothing where it is not the one line
    that speaks of such a thing.
    """
    found = _STAMP.search(data)
    if found is None or data.count(b"lastSeen") != 1 or int(found[2]) > LATEST_SECOND:
        return b"", None
    rest = data[: found.start(2)] + data[found.end(2) :]
    return hashlib.blake2b(rest, digest_size=16).digest(), int(found[2])


def read_bytes(path: Path) -> tuple[bytes, Stamp]:
    """All of a regular file. ``UnusableFileError`` if it is none, too large or unreadable."""
    try:
        # O_NONBLOCK: should a FIFO have taken the file's place, open() must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UnusableFileError(f"cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableFileError("is not a regular file")
        if status.st_size > MAX_BYTES:
            raise UnusableFileError(describe_size(status.st_size))
        try:
            data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise UnusableFileError(f"cannot be read: {error.strerror}") from error
        if len(data) > MAX_BYTES:
            raise UnusableFileError(describe_size(len(data)))
        return data, Stamp.of(os.fstat(descriptor))


def describe_size(size: int) -> str:
    """Why a file of so many bytes is refused."""
    return f"is too large: {size} bytes, at most {MAX_BYTES} are read"


def make_broken(path: str, reason: str) -> Content:
    """Of a file that cannot be read."""
    return Content(problems=(describe_file(path, reason),), broken=True)


def parse_content(data: bytes, path: str, topology_label: str) -> Content:
    """What bytes that stand in that file hold. Never raises."""
    try:
        content = _parse_text(data.decode("utf-8"), path, topology_label)
    except UnicodeDecodeError as error:
        return make_broken(path, f"is not UTF-8 text (byte {error.start + 1})")
    rest, last_seen = _split_stamp(data)
    match [one.value for one in content.found]:
        case [ReportedNode(last_seen=int(read))] if read == last_seen:
            return replace(content, rest=rest)
    return content


def _parse_text(text: str, path: str, topology_label: str) -> Content:
    found: list[Found] = []
    problems: list[Problem] = []
    documents = objects = 0
    broken = False
    for document in load_documents(text, as_json=path.endswith(".json")):
        documents += 1
        broken = broken or document.cut
        source = f"{show_path(path)}, document {document.number}"
        if document.fault:
            problems.append(Problem(source=source, object="", reason=_describe_fault(document)))
            continue
        reading = read_document(document.value, source=source, topology_label=topology_label)
        found += reading.found
        problems += reading.problems
        objects += _count_objects(document.value)
    if not documents:
        problems.append(describe_file(path, "is empty: it holds no document"))
    return Content(
        found=tuple(found),
        problems=_limit(problems, path),
        documents=documents,
        objects=objects,
        broken=broken,
    )


def _limit(problems: list[Problem], path: str) -> tuple[Problem, ...]:
    """The first ones and, as the last of a broken file says why it is broken, that one."""
    more = len(problems) - MAX_PROBLEMS
    if more <= 0:
        return tuple(problems)
    summary = describe_file(path, f"has {more} more problems, not shown here")
    return (*problems[: MAX_PROBLEMS - 1], summary, problems[-1])


def _describe_fault(document: Document) -> str:
    return document.fault if document.cut else f"{document.fault}; the document is left out"


def _count_objects(value: object) -> int:
    items = value.get("items") if isinstance(value, dict) else None
    return len(items) if isinstance(items, list) else 1
