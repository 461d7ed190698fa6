"""Where the API server is and who we are to it: flags and files -> ``Credentials``.

Read with our own eyes, not by ``kubernetes.aio.config``: that leaves keys in temporary files until
the program ends, logs and forgets the errors of plugins, sends a token with the line break that
its file ends with, and cannot say which file is at fault (as of 37.0).
"""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from kilo.backends.kubernetes.execplugin import check_plugin, run_plugin
from kilo.backends.kubernetes.kubeconfig import Context, Section, read_context
from kilo.backends.readfiles import ReadFiles
from kilo.errors import BackendError, ConfigError

HOST, PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"
"""Set in every pod."""
DEFAULT_NAMESPACE = "kube-system"
MIN_SECRET = 4
"""Characters. To replace a shorter one would spoil the text and protect nothing."""
SYSTEM_TRUST = "the CAs that this system trusts"

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_TOKEN = re.compile(r"[!-~]+")
_USER_OF_URL = re.compile(r"//[^/\s]*@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where the API server is, and who we are."""

    kubeconfig: str = ""
    """Path of a kubeconfig, or several, separated by colons; empty with ``master``: in a pod."""
    master: str = ""
    """URL of the API server; overrides the kubeconfig's. Alone: without credentials."""
    service_account: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    """Of the pod: ``token``, ``ca.crt`` and ``namespace``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Everything that a connection needs, read from wherever it was. Compares by content."""

    server: str
    """URL without a slash at its end."""
    authorities: bytes = b""
    """PEM; empty: those that the system trusts."""
    trust: str = SYSTEM_TRUST
    """What a server's certificate is checked with, for messages."""
    insecure: bool = False
    """The server's certificate is not checked at all."""
    server_name: str = ""
    """The name that the server's certificate must have, if not that of the URL."""
    proxy: str = field(default="", repr=False)
    """URL; there may be a password in it."""
    authorization: str = field(default="", repr=False)
    """The header's value."""
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    expires_at: float | None = field(default=None, compare=False)
    """When a plugin must be run again, seconds since the epoch."""

    def redact(self, text: str) -> str:
        """The text without the token, should a server have echoed it, and without the names and
        passwords of URLs: aiohttp quotes that of the proxy.
        """
        secret = self.authorization.partition(" ")[2]
        text = _USER_OF_URL.sub("//", text)
        return text.replace(secret, "(redacted)") if len(secret) >= MIN_SECRET else text


def load_credentials(access: Access, files: ReadFiles) -> Credentials:
    """Read whatever ``access`` says; ``files`` learns of each file. Blocks: files, plugins.

    ``BackendError`` in one line that names the file and what is wrong with it.
    """
    if access.kubeconfig:
        return _load_kubeconfig(access, files)
    if access.master:
        return Credentials(server=_parse_server(access.master, "--master", scheme="http"))
    return _load_service_account(access.service_account, files)


def check_access(access: Access) -> None:
    """``ConfigError`` for flags that cannot become right while the program runs. Blocks.

    That is a kubeconfig that is not there or makes no sense, a malformed ``--master``, and no flag
    at all outside a pod. The files a kubeconfig names may still come.
    """
    try:
        if access.kubeconfig:
            _read_checked_context(access, ReadFiles("kubernetes"))
        elif access.master:
            _parse_server(access.master, "--master", scheme="http")
        else:
            _find_service()
    except BackendError as error:
        raise ConfigError(str(error)) from error


def read_namespace(access: Access) -> str:
    """The namespace of the pod that we are in, else kube-system. Blocks on a small file."""
    try:
        found = (access.service_account / "namespace").read_text().strip()
    except (OSError, ValueError):  # ValueError: no UTF-8
        return DEFAULT_NAMESPACE
    return found or DEFAULT_NAMESPACE


# In a pod


def _load_service_account(directory: Path, files: ReadFiles) -> Credentials:
    server = _find_service()
    authorities = directory / "ca.crt"
    trust = f"CA file {authorities}"
    return Credentials(
        server=server,
        authorities=_pick_certificates(files.read(authorities, "CA file"), trust),
        trust=trust,
        authorization=f"Bearer {_read_token(directory / 'token', files)}",
    )


def _find_service() -> str:
    host, port = os.environ.get(HOST, ""), os.environ.get(PORT, "")
    if not (host and port):
        raise BackendError(
            f"kubernetes: neither --kubeconfig nor --master is given, and this is no pod: "
            f"{HOST} and {PORT} are not set"
        )
    host = f"[{host}]" if ":" in host else host
    return _parse_server(f"https://{host}:{port}", f"{HOST} and {PORT}")


# By a kubeconfig


def _load_kubeconfig(access: Access, files: ReadFiles) -> Credentials:
    context, server = _read_checked_context(access, files)
    cluster = context.cluster
    content, trust = cluster.data_or_file("certificate-authority", files)
    found = Credentials(
        server=server,
        authorities=_pick_certificates(content, trust) if trust else b"",
        trust=trust or SYSTEM_TRUST,
        insecure=cluster.flag("insecure-skip-tls-verify"),
        server_name=cluster.text("tls-server-name"),
        proxy=cluster.text("proxy-url"),
    )
    if plugin := context.user.section("exec"):
        return _identify_by_plugin(found, plugin)
    return _identify_by_user(found, context.user, files)


def _read_checked_context(access: Access, files: ReadFiles) -> tuple[Context, str]:
    """The context and the server's URL, once all is checked that needs no other file."""
    context = read_context(access.kubeconfig, files)
    cluster, user = context.cluster, context.user
    for key, advice in (("auth-provider", "name a plugin by exec"), ("as", "act as yourself")):
        if key in user.values:
            raise user.complain(key, f"is not supported; {advice}")
    if plugin := user.section("exec"):
        check_plugin(plugin)
    if not _is_proxy(cluster.text("proxy-url")):
        raise cluster.complain("proxy-url", "is not an http or https URL with a host")
    if access.master:
        return context, _parse_server(access.master, "--master")
    return context, _parse_server(cluster.text("server"), cluster.locate("server"))


def _is_proxy(url: str) -> bool:
    """Also if there is none."""
    try:
        parts = urlsplit(url)
        # The port checks that it is a number below 65536.
        return not url or (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        )
    except ValueError:
        return False


def _identify_by_plugin(found: Credentials, plugin: Section) -> Credentials:
    cluster = {
        "server": found.server,
        "certificate-authority-data": base64.b64encode(found.authorities).decode(),
        "insecure-skip-tls-verify": found.insecure,
        "tls-server-name": found.server_name,
        "proxy-url": found.proxy,
    }
    printed = run_plugin(plugin, {key: value for key, value in cluster.items() if value})
    token = _check_token(printed.token, plugin.locate("command")) if printed.token else ""
    return replace(
        found,
        authorization=f"Bearer {token}" if token else "",
        certificate=printed.certificate,
        key=printed.key,
        expires_at=printed.expires_at,
    )


def _identify_by_user(found: Credentials, user: Section, files: ReadFiles) -> Credentials:
    certificate, _ = user.data_or_file("client-certificate", files)
    key, _ = user.data_or_file("client-key", files)
    if bool(certificate) != bool(key):
        missing = "client-key" if certificate else "client-certificate"
        raise user.complain(missing, "is empty, though the other half of the pair is there")
    return replace(
        found, certificate=certificate, key=key, authorization=_find_authorization(user, files)
    )


def _find_authorization(user: Section, files: ReadFiles) -> str:
    """The header's value: token file, token, name and password, whichever is there first."""
    if path := user.path("tokenFile"):
        return f"Bearer {_read_token(path, files)}"
    if token := user.text("token"):
        return f"Bearer {_check_token(token, user.locate('token'))}"
    if name := user.text("username"):
        pair = f"{name}:{user.text('password')}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"
    return ""


# What both need


def _read_token(path: Path, files: ReadFiles) -> str:
    return _check_token(files.read_text(path, "token file"), f"token file {path}")


def _check_token(text: str, source: str) -> str:
    """The token without the white space around it, which would spoil the header."""
    token = text.strip()
    if not token:
        raise BackendError(f"kubernetes: {source}: is empty")
    if not _TOKEN.fullmatch(token):
        raise BackendError(f"kubernetes: {source}: holds characters that no token has")
    return token


def _pick_certificates(content: bytes, source: str) -> bytes:
    """The PEM blocks alone: what may stand between them, in any encoding, is for people."""
    found = _CERTIFICATE.findall(content)
    if not found:
        raise BackendError(f"kubernetes: {source}: holds no PEM certificate")
    return b"\n".join(found) + b"\n"


def _parse_server(text: str, source: str, *, scheme: str = "https") -> str:
    """The URL without a slash at its end; ``scheme`` for one that names none."""
    url = text.rstrip("/")
    if url and "://" not in url:
        url = f"{scheme}://{url}"
    try:
        parts = urlsplit(url)
        port = parts.port  # checks that it is a number below 65536
    except ValueError as error:
        raise BackendError(f"kubernetes: {source}: is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise BackendError(f"kubernetes: {source}: is not an http or https URL with a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise BackendError(f"kubernetes: {source}: has more in it than scheme, host, port and path")
    return url
