"""What the members of an etcd run on: their files, their addresses, their command lines.

Nothing here starts a process. Everybody shows a certificate: members to each other, members to
clients, and clients, who are known by its common name, to members.

    ca.*                       authority of all certificates; its key stays here
    MEMBER.crt MEMBER.key      what a member shows
    MEMBER/ MEMBER.log         its data, its output
    admin/                     who works the store by hand: ca.crt client.crt client.key
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kilo.lab.certificates import Authority
from kilo.lab.planefiles import ADMIN, bracket

CLIENT_PORT, PEER_PORT = 2379, 2380
"""etcd's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member, and the address that it has for itself alone."""

    name: str
    address: str

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"https://{bracket(self.address)}:{CLIENT_PORT}"

    @property
    def peer_url(self) -> str:
        """Where other members reach it."""
        return f"https://{bracket(self.address)}:{PEER_PORT}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdFiles:
    """Where an etcd lives."""

    directory: Path
    members: tuple[Member, ...]

    def write(self) -> None:
        """Make the directory, and the certificates of the members and of the administrator."""
        self.directory.mkdir(parents=True)
        authority = Authority.open(self.directory)
        for member in self.members:
            # A member is its own client, too, for those who speak HTTP to it.
            credential = authority.issue_peer([member.address, member.name, "localhost"])
            credential.write(self.directory, member.name)
        self.let_in(ADMIN, self.admin)

    @property
    def admin(self) -> Path:
        """What the administrator shows."""
        return self.directory / ADMIN

    def let_in(self, user: str, directory: Path) -> None:
        """Write what a client of that name needs into a new directory."""
        authority = Authority.open(self.directory)
        directory.mkdir(mode=0o700, parents=True)
        (directory / "ca.crt").write_text(authority.certificate)
        authority.issue_client(user).write(directory, "client")

    def find_data(self, member: Member) -> Path:
        """A member's data directory."""
        return self.directory / member.name

    def find_log(self, member: Member) -> Path:
        """What a member has said."""
        return self.directory / f"{member.name}.log"


def make_client_flags(
    directory: Path, members: Iterable[Member], *, prefix: str = ""
) -> tuple[str, ...]:
    """How a client is told of members and of its directory: ``prefix`` is ``etcd-`` for Kilo's
    programs, and empty for etcdctl.
    """
    return (
        f"--{prefix}endpoints={','.join(member.url for member in members)}",
        f"--{prefix}cacert={directory / 'ca.crt'}",
        f"--{prefix}cert={directory / 'client.crt'}",
        f"--{prefix}key={directory / 'client.key'}",
    )


def make_member_command(files: EtcdFiles, member: Member, program: Path) -> list[str]:
    """Runs a member in the foreground."""
    cluster = ",".join(f"{one.name}={one.peer_url}" for one in files.members)
    certificate = files.directory / f"{member.name}.crt"
    key = files.directory / f"{member.name}.key"
    authority = files.directory / "ca.crt"
    return [
        str(program),
        f"--name={member.name}",
        f"--data-dir={files.find_data(member)}",
        f"--listen-client-urls={member.url}",
        f"--advertise-client-urls={member.url}",
        f"--listen-peer-urls={member.peer_url}",
        f"--initial-advertise-peer-urls={member.peer_url}",
        f"--initial-cluster={cluster}",
        "--client-cert-auth",
        f"--trusted-ca-file={authority}",
        f"--cert-file={certificate}",
        f"--key-file={key}",
        "--peer-client-cert-auth",
        f"--peer-trusted-ca-file={authority}",
        f"--peer-cert-file={certificate}",
        f"--peer-key-file={key}",
        "--logger=zap",  # the other kind of log went with etcd 3.5
    ]
