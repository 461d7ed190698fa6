"""Making, keeping and deriving WireGuard keys: the one place that needs a cryptographic library.

A private key is written once, whole, and never again: whatever is found in its file is either
used or reported, but not replaced.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from kilo.errors import ConfigError
from kilo.log import get_logger
from kilo.mesh.keys import KEY_BYTES, PrivateKey, PublicKey

OTHERS = 0o077
"""The permission bits of group and world."""

log = get_logger("keyfile")


def generate_private_key() -> PrivateKey:
    """A new Curve25519 private key, clamped as RFC 7748 section 5 says and ``wg genkey`` does."""
    raw = bytearray(secrets.token_bytes(KEY_BYTES))
    raw[0] &= 248
    raw[31] = raw[31] & 127 | 64
    return PrivateKey(bytes(raw))


def public_key(private: PrivateKey) -> PublicKey:
    """The public key that belongs to a private one."""
    derived = X25519PrivateKey.from_private_bytes(private.raw).public_key()
    return PublicKey.from_bytes(derived.public_bytes_raw())


def load_or_create_private_key(path: Path) -> PrivateKey:
    """The key in the file, which is made (0600, in a directory of mode 0700) if there is none.

    Programs that start at the same time agree on one key. A file that is broken, empty or out of
    reach raises ``ConfigError``, which names the path and never quotes the content.
    """
    try:
        if not os.path.lexists(path):
            create_key_file(path)
        key = load_private_key(path)
        # Only now: what holds no key, a directory say, is not ours to change.
        tighten_permissions(path)
    except OSError as error:
        raise ConfigError(f"private key {path}: {error.strerror}") from error
    return key


def load_private_key(path: Path) -> PrivateKey:
    """The key in the file, which is not touched: ``FileNotFoundError`` if there is none.

    ``ConfigError`` as above if it cannot be read or holds no key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(1024).strip()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"private key {path}: {error.strerror}") from error
    return parse_private_key(path, content)


def parse_private_key(path: Path, content: bytes) -> PrivateKey:
    """The key that a file's content is; ``ConfigError`` names the path and the reason only."""
    if not content:
        raise ConfigError(f"private key {path}: is empty")
    try:
        key = PrivateKey.parse(content.decode("ascii"))
    except UnicodeDecodeError:
        # Here and below without its cause, which may hold what could not be decoded.
        raise ConfigError(f"private key {path}: is not base64") from None
    except ValueError as error:
        raise ConfigError(f"private key {path}: {error}") from None
    if not any(key.raw):
        raise ConfigError(f"private key {path}: is all zeros")
    return key


def tighten_permissions(path: Path) -> None:
    """Take a key file's access from everybody but its owner; a warning where that is refused."""
    mode = path.stat().st_mode
    if not mode & OTHERS:
        return
    try:
        path.chmod(mode & 0o7700)
    except OSError as error:
        # A mounted secret is often read-only and readable by all. The key is still good.
        log.warning("private key can be read by others", path=str(path), error=error.strerror)


def create_key_file(path: Path) -> None:
    """Put a new key at the path, unless another program has put one there first."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"private key {path}: {path.parent} is not a directory") from error
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123 - a descriptor, no path
            file.write(generate_private_key().reveal() + "\n")
            file.flush()
            os.fsync(descriptor)
        publish_draft(draft, path)
    finally:
        draft.unlink()


def publish_draft(draft: Path, path: Path) -> None:
    """Give the complete file its name: a link, unlike a rename, never replaces another's key."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return
    # The name must be on the disk before the mesh learns the public key.
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
