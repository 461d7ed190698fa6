"""WireGuard keys: 32 bytes, written as base64. A secret one never shows itself.

The core only carries keys about; deriving and generating them needs a cryptographic
library and happens in ``kilo.keyfile``.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Self

KEY_BYTES = 32


def decode_key(text: str) -> bytes:
    """The 32 bytes of a key in base64; ``ValueError`` says what is wrong without quoting it."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64") from None
    if len(raw) != KEY_BYTES:
        raise ValueError(f"is {len(raw)} bytes long, a WireGuard key has {KEY_BYTES}")
    if base64.b64encode(raw).decode() != text:
        raise ValueError("is not canonical base64")
    return raw


@dataclass(frozen=True, slots=True, order=True)
class PublicKey:
    """A public key, held as its base64 text, by which the whole mesh knows a device."""

    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """From base64; raises ``ValueError`` for anything but 32 bytes."""
        decode_key(text)
        return cls(text)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """From the 32 bytes the kernel speaks of."""
        return cls(base64.b64encode(raw).decode())

    def to_bytes(self) -> bytes:
        """The 32 raw bytes."""
        return base64.b64decode(self.text)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Secret:
    """A private or preshared key: equal by value, but never printed, formatted or repr'd."""

    raw: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From base64; the ``ValueError`` for a bad one does not quote it."""
        return cls(decode_key(text))

    def reveal(self) -> str:
        """The base64 text, for the one place that must hand it on: the device or a 0600 file."""
        return base64.b64encode(self.raw).decode()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(redacted)"

    __str__ = __repr__


class PrivateKey(Secret):
    """The key of this host's WireGuard device."""

    __slots__ = ()


class PresharedKey(Secret):
    """A symmetric key that one peer adds to its handshakes."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Withheld:
    """Stands for a preshared key that exists but was not written to a snapshot on disk."""


WITHHELD = Withheld()
