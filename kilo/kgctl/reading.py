"""Documents that a command is given: files, directories and standard input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from kilo.backends.documents import API_VERSION, Reading
from kilo.backends.file.reading import (
    MAX_BYTES,
    Content,
    describe_size,
    make_broken,
    parse_content,
)
from kilo.backends.file.scanning import list_files
from kilo.backends.objects import Found, join_objects
from kilo.errors import BackendError
from kilo.flags import STRINGS, Flag
from kilo.mesh.model import Problem

FILENAMES = Flag(
    "filename",
    STRINGS,
    (),
    "file of YAML or JSON documents, directory of such files, or - for standard input",
    short="f",
    placeholder="FILE|DIR|-",
)
STDIN = "-"


def read_sources(names: Sequence[str], *, topology_label: str) -> Reading:
    """All objects that stand there, in order, and what is wrong with any. Never raises.

    A directory is read as ``--backend=file`` reads it: ``.yaml``, ``.yml`` and ``.json``, at any
    depth.
    """
    reading = Reading()
    for name in dict.fromkeys(names):
        for content in _read_source(name, topology_label):
            reading.found.extend(content.found)
            reading.problems.extend(content.problems)
    return reading


def read_declarations(names: Sequence[str], *, topology_label: str) -> Reading:
    """As ``read_sources``, of what operators may write: all else is a problem, twice is too."""
    reading = read_sources(names, topology_label=topology_label)
    refused = [problem for one in reading.found for problem in _refuse(one)]
    problems = join_objects(reading.found, (*reading.problems, *refused)).problems
    return Reading(found=reading.found, problems=list(problems))


def _read_source(name: str, topology_label: str) -> Iterator[Content]:
    if name == STDIN:
        yield _read_file("/dev/stdin", "standard input", topology_label)
    elif not Path(name).is_dir():
        yield _read_file(name, name, topology_label)
    else:
        yield from _read_directory(Path(name), topology_label)


def _read_directory(directory: Path, topology_label: str) -> Iterator[Content]:
    try:
        listing = list_files(directory)
    except BackendError as error:
        path, _, reason = str(error).partition(": ")
        yield make_broken(path, reason)
        return
    yield Content(problems=tuple(listing.problems))
    for path in listing.files:
        place = str(directory / path)
        yield _read_file(place, place, topology_label)


def _read_file(path: str, shown: str, topology_label: str) -> Content:
    """Unlike a store's file it may be a pipe, and must be there."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        return make_broken(shown, f"cannot be read: {error.strerror}")
    if len(data) > MAX_BYTES:
        return make_broken(shown, describe_size(len(data)))
    return parse_content(data, shown, topology_label)


def _refuse(one: Found) -> Iterator[Problem]:
    if one.is_foreign:
        reason = f"is the cluster's: use kubectl for it, or write a Node of {API_VERSION}"
        yield _make_problem(one, field="apiVersion", value="v1", reason=reason)
    elif one.kind == "NodeReport":
        yield _make_problem(one, field="kind", value=one.kind, reason="is written by agents only")


def _make_problem(one: Found, *, field: str, value: str, reason: str) -> Problem:
    of = f"{one.kind} {one.name}"
    return Problem(source=one.source, object=of, field=field, value=value, reason=reason)
