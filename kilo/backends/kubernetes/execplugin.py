"""Credential plugins: programs that a kubeconfig names, which print a token or a certificate.

The protocol is Kubernetes' ``client.authentication.k8s.io``; every version that it has ever had
prints the same fields.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from kilo.backends.kubernetes.kubeconfig import Section

LIMIT_SECONDS = 10.0
MAX_COMPLAINT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginCredential:
    """What a plugin printed."""

    token: str = field(default="", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    expires_at: float | None = None
    """Seconds since the epoch; None: until the server refuses it."""


def run_plugin(
    section: Section, cluster: Mapping[str, object], *, limit_seconds: float = LIMIT_SECONDS
) -> PluginCredential:
    """Run the plugin that an ``exec`` section of a kubeconfig names. Blocks until it ends.

    ``cluster`` is what it is told of the cluster if the section asks for that. ``BackendError``
    if it cannot be started, fails, takes longer than it may or prints no credential.
    """
    if section.text("interactiveMode") == "Always":
        raise section.complain("interactiveMode", "Always needs a terminal, and there is none")
    printed = _run(section, _make_environment(section, cluster), limit_seconds)
    try:
        status = json.loads(printed)["status"]
        credential = PluginCredential(
            token=_get_text(status, "token"),
            certificate=_get_text(status, "clientCertificateData").encode(),
            key=_get_text(status, "clientKeyData").encode(),
            expires_at=_read_time(_get_text(status, "expirationTimestamp")),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # Without the error's text: what the plugin printed may be half a token.
        raise section.complain("command", "printed no ExecCredential with a status") from error
    if not (credential.token or (credential.certificate and credential.key)):
        raise section.complain("command", "printed neither a token nor a certificate with its key")
    return credential


def check_plugin(section: Section) -> None:
    """``BackendError`` if the section is not one that could be run."""
    for key in ("command", "apiVersion"):
        if not section.text(key):
            raise section.complain(key, "is not set")


def _get_text(status: Mapping[str, object], key: str) -> str:
    found = status.get(key) or ""
    if not isinstance(found, str):
        raise TypeError(f"{key}: is not text")
    return found


def _read_time(text: str) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


def _make_environment(section: Section, cluster: Mapping[str, object]) -> dict[str, str]:
    asked: dict[str, object] = {"interactive": False}
    if section.flag("provideClusterInfo"):
        asked["cluster"] = cluster
    information = {
        "apiVersion": section.text("apiVersion"),
        "kind": "ExecCredential",
        "spec": asked,
    }
    added = {item.text("name"): item.text("value") for item in section.sections("env")}
    return {**os.environ, **added, "KUBERNETES_EXEC_INFO": json.dumps(information)}


def _run(section: Section, environment: Mapping[str, str], limit_seconds: float) -> bytes:
    command = section.text("command")
    if "/" in command:
        command = str(section.file.parent / command)
    try:
        plugin = subprocess.Popen(  # noqa: S603 - what to run is the operator's to say
            [command, *section.texts("args")],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that it can be ended with whatever it started
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "has a NUL in it"
        raise section.complain("command", f"{command} cannot be run: {reason}") from error
    with plugin:
        return _wait(section, plugin, limit_seconds)


def _wait(section: Section, plugin: subprocess.Popen[bytes], limit_seconds: float) -> bytes:
    try:
        printed, complaints = plugin.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired as error:
        # Its own session, so nobody else's processes. Not waited for yet, so its id is still its.
        with suppress(ProcessLookupError):
            os.killpg(plugin.pid, signal.SIGKILL)
        raise section.complain("command", f"did not end in {limit_seconds:g} s") from error
    if plugin.returncode:
        said = " ".join(complaints.decode(errors="replace").split())[-MAX_COMPLAINT:]
        raise section.complain("command", f"ended with {plugin.returncode}: {said or 'in silence'}")
    return printed
