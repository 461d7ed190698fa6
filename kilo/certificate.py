"""The certificate that a server shows: read from two files, and again when they are replaced.

A pair that is half written, or does not fit, is reported once, and the one before stays in use.
"""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import Certificate, load_pem_x509_certificates

from kilo.errors import ConfigError
from kilo.log import get_logger
from kilo.notices import Notices

Stamp = tuple[tuple[int, int, int], ...]
"""What changes when a file is replaced or written."""


class ServingCertificate:
    """A certificate with its private key, as ``--cert-file`` and ``--key-file`` hold them now."""

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        """Raises ``ConfigError`` that names the flag, the file and what is wrong with it."""
        self._cert_file = cert_file
        self._key_file = key_file
        self._log = get_logger("certificate")
        self._notices = Notices("certificate")
        # Connections come in threads.
        self._lock = threading.Lock()
        self._failures: frozenset[str] = frozenset()
        self._stamp: Stamp | None = self._find_stamp()
        self._context = self._load()

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """TLS with the certificate that the files hold now."""
        with self._lock:
            self._refresh()
            context = self._context
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def note_failure(self, error: ssl.SSLError) -> None:
        """Said once for each reason: it is all that clients who do not trust us leave here."""
        with self._lock:
            self._failures |= {error.reason or str(error)}
            self._notices.tell("TLS handshake failed", self._failures)

    def _refresh(self) -> None:
        """Load again what was replaced. Blocks on the disk: two stats if nothing was."""
        stamp = self._find_stamp()
        if stamp is not None and stamp == self._stamp:
            return
        kind = "not loaded, the one before stays in use"
        try:
            self._context = self._load()
        except ConfigError as error:
            self._notices.tell(kind, [str(error)])
        else:
            self._notices.tell(kind, ())
            # Taken before the files were read: what was written since is found at the next look.
            self._stamp = stamp

    def _find_stamp(self) -> Stamp | None:
        """None while a file is missing. Follows links: a volume of Kubernetes swaps one."""
        try:
            stats = [path.stat() for path in (self._cert_file, self._key_file)]
        except OSError:
            return None
        return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)

    def _load(self) -> ssl.SSLContext:
        certificate = check_pair(self._cert_file, self._key_file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # With no password OpenSSL would ask the terminal for that of a key that has one.
            context.load_cert_chain(self._cert_file, self._key_file, password="")
        except (OSError, ValueError) as error:  # an SSLError is an OSError, too
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise ConfigError(f"--cert-file {self._cert_file}: {reason}") from error
        self._log.info("loaded", valid_until=certificate.not_valid_after_utc.isoformat())
        return context


def check_pair(cert_file: Path, key_file: Path) -> Certificate:
    """The certificate (the first of a chain); ``ConfigError`` if the two files are not a pair."""
    try:
        certificate = load_pem_x509_certificates(read_file("--cert-file", cert_file))[0]
        public_key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"--cert-file {cert_file}: holds no certificate in PEM") from error
    pem = read_file("--key-file", key_file)
    try:
        private_key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a passphrase
        # Without its cause: nothing that came of a private key is to be shown.
        text = f"--key-file {key_file}: holds no private key in PEM without a passphrase"
        raise ConfigError(text) from None
    if private_key.public_key() != public_key:
        raise ConfigError(f"--key-file {key_file}: is not the key of --cert-file {cert_file}")
    return certificate


def read_file(flag: str, path: Path) -> bytes:
    """What the file of a flag holds; ``ConfigError`` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from error
