"""The flags of ``kg webhook`` (spec section 11), and the configuration they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kilo.agentflags import FLAGS, collect_settings
from kilo.backends.opening import BackendConfig
from kilo.errors import ConfigError
from kilo.flags import STRING, Flag, FlagSet
from kilo.flagvalues import PATH
from kilo.mesh.model import PartialSettings

OWN_FLAGS: tuple[Flag[Any], ...] = (
    Flag("cert-file", PATH, None, "certificate to serve with, PEM; used anew when it is replaced"),
    Flag("key-file", PATH, None, "its private key, PEM"),
    Flag("listen", STRING, ":8443", "where to serve POST /validate, over HTTPS"),
    Flag("listen-metrics", STRING, ":1107", "where to serve health, readiness and metrics"),
)
SHARED = (
    "kubeconfig",
    "log-level",
    "master",
    "mesh-granularity",
    "service-cidr",
    "subnet",
    "topology-label",
)
"""Flags that are the agent's, and must be as the agents have them: what is judged with them is
what the agents will compute."""

WEBHOOK_FLAGS = tuple(
    sorted(
        (*OWN_FLAGS, *(flag for flag in FLAGS if flag.name in SHARED)), key=lambda flag: flag.name
    )
)

WEBHOOK_FLAG_SET = FlagSet(
    "kg webhook",
    WEBHOOK_FLAGS,
    "kg webhook judges Peers for a cluster's API server before they are stored.\n\n"
    "Usage:\n  kg webhook --cert-file FILE --key-file FILE [flags]\n\n"
    "It works until SIGTERM. Every flag can be given as an environment variable too:\n"
    "--log-level as KG_LOG_LEVEL.",
    max_arguments=0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookConfig:
    """What ``kg webhook`` was asked to do."""

    cert_file: Path
    key_file: Path
    listen: str
    listen_metrics: str
    log_level: str
    backend: BackendConfig
    settings: PartialSettings
    """Only those that were given."""


def parse_webhook_flags(words: Sequence[str], environ: Mapping[str, str]) -> WebhookConfig:
    """The configuration, from the words after ``webhook``; ``ConfigError`` in one line.

    Prints the help and raises ``SystemExit`` where that was asked for.
    """
    parsed = WEBHOOK_FLAG_SET.parse(words, environ)
    values = parsed.values
    for name in ("cert-file", "key-file"):
        if values[name] is None:
            raise ConfigError(f"--{name}: is missing: API servers speak HTTPS only to a webhook")
    return WebhookConfig(
        cert_file=values["cert-file"],
        key_file=values["key-file"],
        listen=values["listen"],
        listen_metrics=values["listen-metrics"],
        log_level=values["log-level"],
        backend=BackendConfig(
            kind="kubernetes",
            topology_label=values["topology-label"],
            kubeconfig=values["kubeconfig"],
            master=values["master"],
        ),
        settings=collect_settings(parsed),
    )
