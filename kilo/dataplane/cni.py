"""The CNI configuration file: kept saying which subnets this node's pods have, and which MTU.

The file is the administrator's. In each plugin that has an ``ipam`` we set the ranges, and the
MTU where the plugin takes one; everything else in it stays as it is, and so does every other
file in the directory. A reader finds the old file or the new one, never half of either.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
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
    """One file, ``--cni-path``, which somebody else has made."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self, subnets: Sequence[IPNetwork], mtu: int) -> bool:
        """Bring the file up to date; whether that took a change. Blocks: file system.

        ``DataplaneError`` where it is missing, is no such configuration or cannot be written;
        it is left alone then.
        """
        config = self._read()
        before = json.dumps(config)
        update_config(config, subnets, mtu)
        if json.dumps(config) == before:
            return False
        try:
            replace_file(self._path, json.dumps(config, indent=2) + "\n")
        except OSError as error:
            raise self._fail(f"cannot be replaced: {error.strerror}") from error
        return True

    def _read(self) -> Config:
        try:
            config = json.loads(self._path.read_bytes())
        except OSError as error:
            raise self._fail(f"cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise self._fail(f"is not JSON: {error}") from error
        if not isinstance(config, dict) or not any(True for _ in _list_plugins(config)):
            raise self._fail("names no plugin with an ipam")
        return config

    def _fail(self, reason: str) -> DataplaneError:
        return DataplaneError(f"CNI configuration {self._path}: {reason}")


def replace_file(path: Path, text: str) -> None:
    """Put a file with this text in the place of one that is there, atomically; ``OSError``.

    A symlink stays one. The temporary's name begins with a dot and ends in ``.tmp``, so that no
    runtime takes it for a configuration; mode and owner are those of the file before.
    """
    target = path.resolve(strict=True)
    before = target.stat()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), before.st_mode & 0o7777)
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
