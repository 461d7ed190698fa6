"""Kubeconfig files: merged, and of them the cluster and user of the current context.

Read as ``kubectl`` reads them: of several files the first that names a thing wins, and a relative
path is relative to the file that it stands in. No value of a kubeconfig is in any message, only
names and places.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from kilo.backends.readfiles import ReadFiles
from kilo.backends.yamltext import load_documents
from kilo.errors import BackendError

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A mapping of a kubeconfig that knows where it stands."""

    file: Path
    place: str
    """Such as ``users[admin].user``; empty: the whole file."""
    values: Mapping[str, object] = field(repr=False)

    def locate(self, key: str) -> str:
        """File and place of the value of this key, for messages."""
        return f"kubeconfig {self.file}: {'.'.join(filter(None, (self.place, key)))}"

    def complain(self, key: str, what: str) -> BackendError:
        """The error to raise about the value of this key."""
        return BackendError(f"kubernetes: {self.locate(key)}: {what}")

    def text(self, key: str) -> str:
        """The text, empty if there is none. ``BackendError`` if it is something else."""
        return self._get(key, str, "text") or ""

    def flag(self, key: str) -> bool:
        """The value, false if there is none. ``BackendError`` if it is something else."""
        return self._get(key, bool, "true or false") or False

    def section(self, key: str) -> Section | None:
        """The mapping, or None. ``BackendError`` if it is something else."""
        values = self._get(key, dict, "a mapping")
        return None if values is None else self._within(key, values)

    def sections(self, key: str) -> list[Section]:
        """The list of mappings. ``BackendError`` if it is something else."""
        found = []
        for index, item in enumerate(self._get(key, list, "a list") or []):
            if not isinstance(item, dict):
                raise self.complain(f"{key}[{index}]", "is not a mapping")
            found.append(self._within(f"{key}[{index}]", item))
        return found

    def texts(self, key: str) -> list[str]:
        """The list of texts. ``BackendError`` if it is something else."""
        found = self._get(key, list, "a list") or []
        if not all(isinstance(item, str) for item in found):
            raise self.complain(key, "is not a list of texts")
        return found

    def path(self, key: str) -> Path | None:
        """The file named, or None."""
        name = self.text(key)
        return self.file.parent / name if name else None

    def data(self, key: str) -> bytes:
        """The base64 text decoded, empty if there is none. ``BackendError`` if it is not base64."""
        try:
            return base64.b64decode("".join(self.text(key).split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise self.complain(key, "is not base64") from error

    def data_or_file(self, key: str, files: ReadFiles) -> tuple[bytes, str]:
        """What ``<key>-data`` holds, else the file that ``<key>`` names, else nothing.

        And where that was found, for messages.
        """
        if found := self.data(f"{key}-data"):
            return found, self.locate(f"{key}-data")
        path = self.path(key)
        return (files.read(path, key), f"{key} {path}") if path else (b"", "")

    def _get(self, key: str, kind: type[Kind], name: str) -> Kind | None:
        value = self.values.get(key)
        if value is None or isinstance(value, kind):
            return value
        raise self.complain(key, f"is not {name}")

    def _within(self, key: str, values: Mapping[str, object]) -> Section:
        place = ".".join(filter(None, (self.place, key)))
        return Section(file=self.file, place=place, values=values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the current context of a kubeconfig names."""

    cluster: Section
    user: Section


def read_context(kubeconfig: str, files: ReadFiles) -> Context:
    """The current context of the file, or of the files in a list separated by colons.

    In a list some files may be missing. ``BackendError`` says which file, where and what.
    """
    roots = [_parse(path, files) for path in _find(kubeconfig, files)]
    current = next((name for root in roots if (name := root.text("current-context"))), "")
    if not current:
        raise roots[0].complain("current-context", "is not set")
    context = _require(roots, "contexts", current, "context")
    cluster = _require(roots, "clusters", context.text("cluster"), "cluster")
    user = context.text("user")
    return Context(
        cluster=cluster,
        user=_require(roots, "users", user, "user") if user else _nobody(context),
    )


def _nobody(context: Section) -> Section:
    return Section(file=context.file, place="users", values={})


def _find(kubeconfig: str, files: ReadFiles) -> list[Path]:
    """The files to read: all that exist, or the first, whose absence will be the error."""
    named = [Path(name).expanduser() for name in kubeconfig.split(os.pathsep) if name]
    named = named or [Path(kubeconfig)]
    return [path for path in named if files.watch(path)] or named[:1]


def _parse(path: Path, files: ReadFiles) -> Section:
    text = files.read_text(path, "kubeconfig")
    document = next(load_documents(text, as_json=False), None)
    empty = Section(file=path.absolute(), place="", values={})
    if document is None:
        return empty
    if document.fault:
        raise BackendError(f"kubernetes: kubeconfig {path}: {document.fault}")
    if not isinstance(document.value, dict):
        raise BackendError(f"kubernetes: kubeconfig {path}: is not a mapping")
    return Section(file=path.absolute(), place="", values=document.value)


def _require(roots: Sequence[Section], group: str, name: str, key: str) -> Section:
    """What the first entry of that name in ``group`` holds under ``key``."""
    for entry in _entries(roots, group):
        if entry.text("name") == name:
            found = entry.section(key)
            values = {} if found is None else found.values
            return Section(file=entry.file, place=f"{group}[{name}].{key}", values=values)
    raise roots[0].complain(group, f"has no {name!r}, which the current context names")


def _entries(roots: Sequence[Section], group: str) -> Iterable[Section]:
    for root in roots:
        yield from root.sections(group)
