"""How an etcd is reached, as flags say it. Imports nothing: every program has these flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_ENDPOINTS = ("http://127.0.0.1:2379",)
DEFAULT_PREFIX = "/kilo"


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """Where an etcd is, and who asks it."""

    endpoints: tuple[str, ...] = DEFAULT_ENDPOINTS
    """Its members: ``http://host:port``, ``https://host:port``, or ``host:port``."""
    prefix: str = DEFAULT_PREFIX
    """What all keys begin with."""
    cacert: Path | None = None
    """PEM; None: the system's authorities."""
    cert: Path | None = None
    key: Path | None = None
    username: str = ""
    password_file: Path | None = None
