"""Where an etcd's members are, and whether a configuration makes sense before anything is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from kilo.backends.etcd.config import EtcdConfig
from kilo.backends.fields import shorten
from kilo.errors import ConfigError

DEFAULT_PORT = 2379
_HOST = re.compile(r"[0-9A-Za-z._:%-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One member."""

    host: str
    """A name or an address, an IPv6 one without brackets."""
    port: int
    is_tls: bool

    def __str__(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.authority}"

    @property
    def authority(self) -> str:
        """``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether what is said to it never leaves this host."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def read_endpoints(config: EtcdConfig) -> tuple[Endpoint, ...]:
    """The members, each once. ``ConfigError`` for flags that cannot be meant so."""
    _check_pairs(config)
    if not config.endpoints:
        raise ConfigError("--etcd-endpoints: names no member")
    uses_tls = bool(config.cacert or config.cert)
    found = [_read_endpoint(text, uses_tls=uses_tls) for text in config.endpoints]
    for endpoint in found:
        if uses_tls and not endpoint.is_tls:
            flag = "--etcd-cacert" if config.cacert else "--etcd-cert"
            raise ConfigError(
                f"--etcd-endpoints {str(endpoint)!r}: is without TLS, and {flag} is for TLS"
            )
    return tuple(dict.fromkeys(found))


def read_prefix(prefix: str) -> str:
    """What all keys begin with, a slash at the end. ``ConfigError`` for one of no use."""
    trimmed = prefix.rstrip("/")
    if not trimmed.strip():
        raise ConfigError(f"--etcd-prefix {prefix!r}: is empty, and so every key of the store's")
    if not (trimmed.isprintable() and trimmed == trimmed.strip()):
        raise ConfigError(
            f"--etcd-prefix {shorten(prefix)!r}: has spaces at an end, or what cannot be printed"
        )
    return f"{trimmed}/"


def _check_pairs(config: EtcdConfig) -> None:
    """``ConfigError`` where one of two flags is given that go together."""
    pairs = (
        ("--etcd-cert", config.cert, "--etcd-key", config.key),
        ("--etcd-username", config.username, "--etcd-password-file", config.password_file),
    )
    for one, value, other, other_value in pairs:
        if bool(value) != bool(other_value):
            given, missing = (one, other) if value else (other, one)
            raise ConfigError(
                f"{given} {str(value or other_value)!r}: is nothing without {missing}"
            )


def _read_endpoint(text: str, *, uses_tls: bool) -> Endpoint:
    scheme, separator, rest = text.strip().partition("://")
    scheme, rest = (
        (scheme.lower(), rest) if separator else ("https" if uses_tls else "http", scheme)
    )
    host, port = _split(rest)
    if scheme not in ("http", "https") or not _HOST.fullmatch(host):
        # Not the whole text: there may be a password in it.
        raise ConfigError(
            f"--etcd-endpoints {shorten(text.rpartition('@')[2])!r}:"
            " is not http://host:port, https://host:port or host:port"
        )
    return Endpoint(host=host, port=port, is_tls=scheme == "https")


def _split(rest: str) -> tuple[str, int]:
    """Host and port; an empty host for what is neither."""
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "", parts.port or DEFAULT_PORT
    except ValueError:
        return "", 0
    is_more = parts.path.strip("/") or parts.query or parts.fragment or "@" in rest
    # ``::1`` without brackets is a host and a port to urlsplit.
    return ("", 0) if is_more or (":" in host and not rest.startswith("[")) else (host, port)
