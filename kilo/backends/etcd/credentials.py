"""What we trust an etcd by and who we are to it: files -> ``Credentials``."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from kilo.backends.etcd.config import EtcdConfig
from kilo.backends.readfiles import ReadFiles
from kilo.backends.tls import present_certificate
from kilo.errors import BackendError

_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where distributions keep the authorities that a system trusts, as Go's programs look for them.
gRPC has a list of its own, of whatever its maker trusted then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """As they were read."""

    authorities: bytes = field(default=b"", repr=False)
    """PEM; empty where no TLS is spoken."""
    trust: str = ""
    """Where they are from, for messages."""
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    username: str = ""
    password: str = field(default="", repr=False)

    def make_context(self) -> ssl.SSLContext:
        """A TLS context that trusts, and shows, what gRPC is given. Blocks on no file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Red Hat's bundle, for one, names authorities in comments that are not ASCII.
        context.load_verify_locations(cadata=self.authorities.decode("ascii", "ignore"))
        # As gRPC's TLS: authorities made by older tools lack extensions that Python 3.13 wants.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.certificate:
            present_certificate(context, self.certificate, self.key, store="etcd")
        return context


def load_credentials(config: EtcdConfig, files: ReadFiles, *, is_tls: bool) -> Credentials:
    """Read all files of the configuration; ``files`` learns of each. Blocks.

    ``BackendError`` in one line that names the file and what is wrong with it.
    """
    authorities, trust = _read_authorities(config.cacert, files) if is_tls else (b"", "")
    found = Credentials(
        authorities=authorities,
        trust=trust,
        certificate=files.read(config.cert, "--etcd-cert") if config.cert else b"",
        key=files.read(config.key, "--etcd-key") if config.key else b"",
        username=config.username,
        password=_read_password(config.password_file, files),
    )
    if is_tls:
        _check(found)
    return found


def _read_authorities(path: Path | None, files: ReadFiles) -> tuple[bytes, str]:
    if path is not None:
        return files.read(path, "--etcd-cacert"), str(path)
    candidates = (ssl.get_default_verify_paths().cafile or "", *_BUNDLES)
    bundle = next((Path(one) for one in candidates if one and Path(one).is_file()), None)
    if bundle is None:
        raise BackendError("etcd: this system has no list of authorities to trust: --etcd-cacert")
    return files.read(bundle, "the system's authorities"), f"the system's authorities, {bundle}"


def _read_password(path: Path | None, files: ReadFiles) -> str:
    if path is None:
        return ""
    password = files.read_text(path, "--etcd-password-file").rstrip("\r\n")
    if not password:
        raise BackendError(f"etcd: --etcd-password-file {path}: is empty")
    return password


def _check(found: Credentials) -> None:
    """``BackendError`` for PEM that is none: gRPC would say no more than that TLS failed."""
    try:
        context = found.make_context()
    except (ssl.SSLError, ValueError) as error:
        raise BackendError(f"etcd: {found.trust}: holds no usable certificate") from error
    if not context.cert_store_stats()["x509"]:
        raise BackendError(f"etcd: {found.trust}: holds no usable certificate")
