"""What a Kubernetes control plane runs on: its directory, its files, its command lines.

Nothing here starts a process: ``controlplane`` does, on this machine, and so may who wants one
in a box. The flags are those that API servers from 1.20 on have in common.

    etcd/ etcd.log               etcd's data and output
    apiserver/ apiserver.log     what the API server writes by itself, its output
    audit.yaml audit.log         what it notes of requests: one JSON object a line
    ca.* server.* admin.*        certificates; the authority's key stays here
    service-accounts.key         signs and checks the tokens of ServiceAccounts
    *.kubeconfig                 ways in: ``admin`` and those that were made
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from kilo.errors import LabError
from kilo.lab.certificates import Authority, Credential, encode_key, make_key, write_private

APISERVER_VERSION = "1.20.2"
"""The one that tools/kube-apiserver builds."""
ISSUER = "https://kubernetes.default.svc"
SERVICE_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
ADMIN = "admin"

# One line a request, once it has been answered; a watch is when it ends. Not what the server asks
# of itself.
AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- {level: None, users: ["system:apiserver"]}
- {level: Metadata}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The programs of a control plane."""

    apiserver: Path
    etcd: Path
    etcdctl: Path
    """Takes snapshots and compacts."""
    restorer: Path
    """Restores snapshots: ``etcdutl`` where there is one, for newer ``etcdctl`` do not."""
    kubectl: Path


def find_programs() -> Programs:
    """Those in ``KUBEBUILDER_ASSETS``, else the machine's and the API server built for us.

    ``LabError`` names what is missing and how to get it.
    """
    etcdctl = find_program("etcdctl")
    return Programs(
        apiserver=_find_apiserver(),
        etcd=find_program("etcd"),
        etcdctl=etcdctl,
        restorer=_look_for("etcdutl") or etcdctl,
        kubectl=find_program("kubectl"),
    )


def _find_apiserver() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built = cache / "kilo" / f"kubernetes-{APISERVER_VERSION}" / "kube-apiserver"
    if "KUBEBUILDER_ASSETS" not in os.environ and os.access(built, os.X_OK):
        return built
    found = _look_for("kube-apiserver")
    if found is None:
        raise LabError(
            f"kube-apiserver: neither in KUBEBUILDER_ASSETS nor {built} nor on PATH;"
            " tools/kube-apiserver makes one"
        )
    return found


PACKAGES = {"etcd": "etcd-server", "etcdctl": "etcd-client", "kubectl": "kubernetes-client"}
"""Program -> the Debian package that it comes in."""


def find_program(name: str) -> Path:
    """A program of a store, in ``KUBEBUILDER_ASSETS`` or on PATH.

    ``LabError`` says how to get one that is missing.
    """
    found = _look_for(name)
    if found is None:
        raise LabError(
            f"{name}: neither in KUBEBUILDER_ASSETS nor on PATH;"
            f" on Debian: apt-get install {PACKAGES[name]}"
        )
    return found


def _look_for(name: str) -> Path | None:
    places = os.pathsep.join(
        (os.environ.get("KUBEBUILDER_ASSETS", ""), os.environ.get("PATH", os.defpath))
    )
    found = shutil.which(name, path=places.lstrip(os.pathsep))
    return Path(found) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneFiles:
    """Where a control plane lives: a directory, an address, ports."""

    directory: Path
    address: str = "127.0.0.1"
    """Of the API server. etcd listens on loopback only, without TLS."""
    port: int = 6443
    etcd_port: int = 2379
    etcd_peer_port: int = 2380
    service_cidr: str = "10.43.0.0/16"

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return f"https://{bracket(self.address)}:{self.port}"

    @property
    def etcd_url(self) -> str:
        """The URL of etcd's clients."""
        return f"http://127.0.0.1:{self.etcd_port}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.directory / f"{ADMIN}.kubeconfig"

    @property
    def audit_log(self) -> Path:
        """What the API server notes of requests."""
        return self.directory / "audit.log"

    @property
    def authority(self) -> Authority:
        """Signs the certificates of servers and clients."""
        return Authority.open(self.directory)

    def write(self) -> None:
        """Make the directory, the certificates and the administrator's kubeconfig.

        What is there already stays: a control plane may be started again.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "audit.yaml").write_text(AUDIT_POLICY)
        if self.kubeconfig.exists():
            return
        authority = self.authority
        hosts = dict.fromkeys((self.address, "127.0.0.1", "::1", *SERVICE_NAMES))
        authority.issue_server(list(hosts)).write(self.directory, "server")
        write_private(self.directory / "service-accounts.key", encode_key(make_key()))
        admin = authority.issue_client(ADMIN, groups=["system:masters"])
        admin.write(self.directory, ADMIN)
        self.make_kubeconfig(ADMIN, credential=admin)

    def make_kubeconfig(
        self,
        name: str,
        *,
        server: str = "",
        token: str = "",
        credential: Credential | None = None,
    ) -> Path:
        """Write ``NAME.kubeconfig``, which needs no other file, and return its path.

        ``server``: the URL if not the API server's own, say a relay's. Who it lets in is told by
        the token or the client certificate; with neither, nobody.
        """
        user: dict[str, str] = {}
        if token:
            user["token"] = token
        if credential:
            user["client-certificate-data"] = _encode(credential.certificate)
            user["client-key-data"] = _encode(credential.key)
        cluster = {
            "server": server or self.server,
            "certificate-authority-data": _encode(self.authority.certificate),
        }
        path = self.directory / f"{name}.kubeconfig"
        write_private(path, json.dumps(_make_config(name, cluster, user), indent=1))
        return path


def _make_config(name: str, cluster: dict[str, str], user: dict[str, str]) -> dict[str, object]:
    """A kubeconfig; JSON is YAML too."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
        "current-context": "lab",
    }


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def bracket(address: str) -> str:
    """The address as it stands in a URL."""
    return f"[{address}]" if ":" in address else address


def make_etcd_command(files: PlaneFiles, programs: Programs) -> list[str]:
    """Runs etcd in the foreground."""
    peer_url = f"http://127.0.0.1:{files.etcd_peer_port}"
    return [
        str(programs.etcd),
        f"--data-dir={files.directory / 'etcd'}",
        f"--listen-client-urls={files.etcd_url}",
        f"--advertise-client-urls={files.etcd_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=default={peer_url}",
    ]


def make_restore_command(files: PlaneFiles, programs: Programs, backup: Path) -> list[str]:
    """Makes etcd's data directory, which must not be there, out of a snapshot."""
    peer_url = f"http://127.0.0.1:{files.etcd_peer_port}"
    return [
        str(programs.restorer),
        "snapshot",
        "restore",
        str(backup),
        f"--data-dir={files.directory / 'etcd'}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=default={peer_url}",
    ]


def make_apiserver_command(files: PlaneFiles, programs: Programs) -> list[str]:
    """Runs the API server in the foreground."""
    directory = files.directory
    return [
        str(programs.apiserver),
        f"--etcd-servers={files.etcd_url}",
        f"--bind-address={files.address}",
        f"--advertise-address={files.address}",
        f"--secure-port={files.port}",
        # Endpoints on loopback are refused, for ever and with a log line each.
        "--endpoint-reconciler-type=none",
        f"--service-cluster-ip-range={files.service_cidr}",
        f"--cert-dir={directory / 'apiserver'}",
        f"--tls-cert-file={directory / 'server.crt'}",
        f"--tls-private-key-file={directory / 'server.key'}",
        f"--client-ca-file={directory / 'ca.crt'}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={directory / 'service-accounts.key'}",
        f"--service-account-signing-key-file={directory / 'service-accounts.key'}",
        "--authorization-mode=RBAC",
        # Its controller, which makes a token for every account, does not run here.
        "--disable-admission-plugins=ServiceAccount",
        f"--audit-policy-file={directory / 'audit.yaml'}",
        f"--audit-log-path={files.audit_log}",
    ]
