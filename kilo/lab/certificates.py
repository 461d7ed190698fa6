"""A certificate authority of our own, for control planes and webhooks on this machine.

It signs what is used here for days, never what guards anything elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=365)
CLOCK_SKEW = timedelta(hours=1)
"""Valid from a while ago: the clocks of emulated machines differ."""
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A certificate and its private key, both PEM."""

    certificate: str
    key: str = field(repr=False)

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """As ``NAME.crt`` and ``NAME.key`` (mode 0600), each replaced atomically."""
        paths = directory / f"{name}.crt", directory / f"{name}.key"
        for path, text in zip(paths, (self.certificate, self.key), strict=True):
            write_private(path, text)
        return paths


class Authority:
    """Issues certificates; whoever trusts ``certificate`` trusts them."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def create(cls, name: str = "kilo-lab") -> Self:
        """A new one, self-signed."""
        key = make_key()
        subject = _make_name(name)
        unsigned = _begin(subject, subject, key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        return cls(key, unsigned.sign(key, hashes.SHA256()))

    @classmethod
    def open(cls, directory: Path) -> Self:
        """The one kept in ``directory`` as ``ca.crt`` and ``ca.key``; made if there is none."""
        certificate, key = directory / "ca.crt", directory / "ca.key"
        if not key.exists():
            cls.create().write(directory)
        private = load_pem_private_key(key.read_bytes(), password=None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{key}: is not the key of an authority made here")
        return cls(private, x509.load_pem_x509_certificate(certificate.read_bytes()))

    @property
    def certificate(self) -> str:
        """Its own certificate, PEM."""
        return self._certificate.public_bytes(Encoding.PEM).decode()

    def write(self, directory: Path) -> None:
        """Keep it there, for ``open``; ``ca.crt`` is what clients trust."""
        Credential(certificate=self.certificate, key=encode_key(self._key)).write(directory, "ca")

    def issue_server(self, hosts: Sequence[str], *, lifetime: timedelta = LIFETIME) -> Credential:
        """For a server reached under these DNS names and addresses; at least one.

        It is valid for ``lifetime`` from now, or was until then if that is negative.
        """
        names = [_make_alternatives(hosts)]
        return self._issue(_make_name(hosts[0]), [SERVER], names, lifetime=lifetime)

    def issue_peer(self, hosts: Sequence[str]) -> Credential:
        """For a member of a cluster, a server for the others and a client of theirs."""
        return self._issue(_make_name(hosts[0]), [SERVER, CLIENT], [_make_alternatives(hosts)])

    def issue_client(
        self, user: str, *, groups: Iterable[str] = (), lifetime: timedelta = LIFETIME
    ) -> Credential:
        """For a user of Kubernetes or etcd, who is known by the common name, in these groups."""
        return self._issue(_make_name(user, groups), [CLIENT], [], lifetime=lifetime)

    def _issue(
        self,
        subject: x509.Name,
        usages: Iterable[x509.ObjectIdentifier],
        extensions: Iterable[x509.ExtensionType],
        *,
        lifetime: timedelta = LIFETIME,
    ) -> Credential:
        key = make_key()
        unsigned = _begin(subject, self._certificate.subject, key, lifetime)
        for extension in (x509.ExtendedKeyUsage(usages), *extensions):
            unsigned = unsigned.add_extension(extension, critical=False)
        # Go and OpenSSL find the issuer by it where two authorities have one name.
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        signed = unsigned.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())
        return Credential(
            certificate=signed.public_bytes(Encoding.PEM).decode(), key=encode_key(key)
        )


def make_key() -> ec.EllipticCurvePrivateKey:
    """A new private key; P-256 is made a hundred times faster than RSA."""
    return ec.generate_private_key(ec.SECP256R1())


def encode_key(key: ec.EllipticCurvePrivateKey) -> str:
    """The private key as PEM."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return pem.decode()


def write_private(path: Path, text: str) -> None:
    """Replace a file at once by one that only its owner may read."""
    made = path.with_name(f".{path.name}.new")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    made.replace(path)


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    lifetime: timedelta = LIFETIME,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(identifier, critical=False)
    )


def _make_name(common: str, organizations: Iterable[str] = ()) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _make_alternatives(hosts: Iterable[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_make_alternative(host) for host in hosts])


def _make_alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
