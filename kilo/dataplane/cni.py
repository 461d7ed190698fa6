"""The CNI configuration file: kept saying which subnets this node's pods have, and which MTU.

The file is the administrator's; we make one, from a template, only where we were given that and
there is none. In each plugin that has an ``ipam`` we set the ranges, and the MTU where the plugin
takes one; everything else in it stays as it is, and so does every other file in the directory. A
reader finds the old file or the new one, never half of either.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kilo.errors import DataplaneError
from kilo.mesh.model import IPNetwork

PLUGINS_WITH_MTU = frozenset({"bridge", "ipvlan", "macvlan", "ptp"})
"""Of the CNI project's own plugins, those whose configuration may hold ``mtu``."""
SINGLE_RANGE = ("subnet", "rangeStart", "rangeEnd", "gateway")
"""How host-local was told of its only range before it knew ``ranges``; it adds one to the other."""

Config = dict[str, Any]


def update_config(config: Config, subnets: Sequence[IPNetwork], mtu: int) -> None:
    """Set ranges and MTU (bytes) in a configuration, be it a list of plugins or a single one.

    Ranges that are of these very subnets stay as they are: they may say more, a gateway say.
    """
    for plugin in _list_plugins(config):
        ipam = plugin["ipam"]
        if _read_subnets(ipam) != list(map(str, subnets)):
            for name in SINGLE_RANGE:
                ipam.pop(name, None)
            ipam["ranges"] = [[{"subnet": str(subnet)}] for subnet in subnets]
        if plugin.get("type") in PLUGINS_WITH_MTU:
            plugin["mtu"] = mtu


def _list_plugins(config: Config) -> Iterator[Config]:
    """Those that assign addresses. A single network's configuration is its only plugin."""
    plugins = config.get("plugins", [config])
    for plugin in plugins if isinstance(plugins, list) else []:
        if isinstance(plugin, dict) and isinstance(plugin.get("ipam"), dict):
            yield plugin


def _read_subnets(ipam: Config) -> list[object] | None:
    """The subnet of each range; None where there are none, or some are of another shape."""
    if any(name in ipam for name in SINGLE_RANGE):
        return None
    try:
        return [ranges[0]["subnet"] for ranges in ipam["ranges"] if len(ranges) == 1]
    except (KeyError, IndexError, TypeError):
        return None


class CNIFile:
    """One file, ``--cni-path``."""

    def __init__(self, path: Path, template: Path | None = None) -> None:
        """``template`` is what a missing file is made from; None: somebody else makes it."""
        self._path = path
        self._template = template

    def keep(self, subnets: Sequence[IPNetwork], mtu: int) -> bool:
        """Bring the file up to date; whether that took a change. Blocks: file system.

        ``DataplaneError`` where it is missing and there is no template, where either is no such
        configuration, or where the file cannot be written; it is left alone then.
        """
        sweep(self._path)
        content = read_content(self._path)
        if content is None and self._template is not None:
            self._make(self._template, subnets, mtu)
            return True
        config = parse_config(self._path, content)
        before = json.dumps(config)
        update_config(config, subnets, mtu)
        if json.dumps(config) == before:
            return False
        try:
            replace_file(self._path, format_config(config))
        except OSError as error:
            raise fail(self._path, f"cannot be replaced: {error.strerror}") from error
        return True

    def _make(self, template: Path, subnets: Sequence[IPNetwork], mtu: int) -> None:
        config = parse_config(template, read_content(template))
        update_config(config, subnets, mtu)
        try:
            create_file(self._path, format_config(config))
        except OSError as error:
            raise fail(self._path, f"cannot be made: {error.strerror}") from error


def read_content(path: Path) -> bytes | None:
    """What the file holds; None if there is none. ``DataplaneError`` if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise fail(path, f"cannot be read: {error.strerror}") from error


def parse_config(path: Path, content: bytes | None) -> Config:
    """The configuration that the content of a file, None if it is missing, is to be."""
    if content is None:
        raise fail(path, f"cannot be read: {os.strerror(errno.ENOENT)}")
    try:
        config = json.loads(content)
    except ValueError as error:
        raise fail(path, f"is not JSON: {error}") from error
    if not isinstance(config, dict) or not any(True for _ in _list_plugins(config)):
        raise fail(path, "names no plugin with an ipam")
    return config


def format_config(config: Config) -> str:
    """As it stands in a file."""
    return json.dumps(config, indent=2) + "\n"


def fail(path: Path, reason: str) -> DataplaneError:
    """The error about a file."""
    return DataplaneError(f"CNI configuration {path}: {reason}")


def replace_file(path: Path, text: str) -> None:
    """Put a file with this text in the place of one that is there, atomically; ``OSError``.

    A symlink stays one; mode and owner are those of the file before.
    """
    target = path.resolve(strict=True)
    before = target.stat()
    with write_beside(target, text) as temporary:
        os.chown(temporary, before.st_uid, before.st_gid)
        temporary.chmod(before.st_mode & 0o7777)  # after chown, which takes some bits away
        temporary.replace(target)


def create_file(path: Path, text: str) -> None:
    """Make a file with this text, and the directory it is to be in, at once and for all to read.

    ``FileExistsError`` if somebody was faster, so that nothing of theirs is lost; ``OSError``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(path, text) as temporary:
        temporary.chmod(0o644)
        os.link(temporary, path)


def name_temporary(path: Path) -> Path:
    """Where a file is written before it takes its place.

    The name begins with a dot and ends in ``.tmp``, so that no runtime takes it for a
    configuration, and is always the same, so that what a crash leaves is found.
    """
    return path.with_name(f".{path.name}.tmp")


def sweep(path: Path) -> None:
    """Remove what an agent left that was killed while it wrote the file."""
    with suppress(OSError):  # where nothing can be removed, say read-only, nothing was written
        name_temporary(path.resolve()).unlink(missing_ok=True)


@contextmanager
def write_beside(path: Path, text: str) -> Iterator[Path]:
    """A temporary file with this text, on the disk, for its owner only; gone afterwards."""
    temporary = name_temporary(path)
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
