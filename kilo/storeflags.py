"""The flags that say where the mesh is written down, and the configuration they come to.

They are the agent's and ``kgctl``'s alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kilo.backends.documents import DEFAULT_TOPOLOGY_LABEL
from kilo.backends.etcd.config import DEFAULT_ENDPOINTS, DEFAULT_PREFIX, EtcdConfig
from kilo.backends.opening import (
    BACKENDS,
    DEFAULT_DIRECTORY,
    BackendConfig,
)
from kilo.errors import ConfigError
from kilo.flags import STRING, STRINGS, Flag, Parsed
from kilo.flagvalues import OPTIONAL_PATH, PATH

STORE_FLAGS: tuple[Flag[Any], ...] = (
    Flag(
        "backend",
        STRINGS,
        ("kubernetes",),
        "where the mesh is written down; of several, this host's own facts go to the first",
        choices=BACKENDS,
        default_text="kubernetes",
    ),
    Flag("directory", PATH, DEFAULT_DIRECTORY, "of --backend=file: where the files are"),
    Flag(
        "etcd-cacert",
        OPTIONAL_PATH,
        None,
        "of --backend=etcd: certificates of the authorities to trust, PEM",
        default_text="",
    ),
    Flag(
        "etcd-cert",
        OPTIONAL_PATH,
        None,
        "of --backend=etcd: certificate to show to the store, PEM",
        default_text="",
    ),
    Flag(
        "etcd-endpoints",
        STRINGS,
        DEFAULT_ENDPOINTS,
        "of --backend=etcd: the store's members, as URLs or host:port",
    ),
    Flag(
        "etcd-key",
        OPTIONAL_PATH,
        None,
        "of --backend=etcd: the certificate's private key, PEM",
        default_text="",
    ),
    Flag(
        "etcd-password-file",
        OPTIONAL_PATH,
        None,
        "of --backend=etcd: file that holds the password",
        default_text="",
    ),
    Flag("etcd-prefix", STRING, DEFAULT_PREFIX, "of --backend=etcd: what all keys begin with"),
    Flag("etcd-username", STRING, "", "of --backend=etcd: who asks"),
    Flag("kubeconfig", STRING, "", "of --backend=kubernetes: path of a kubeconfig"),
    Flag("master", STRING, "", "of --backend=kubernetes: address of the API server"),
    Flag("topology-label", STRING, DEFAULT_TOPOLOGY_LABEL, "node label that names the location"),
)

OWNERS = {
    "kubeconfig": "kubernetes",
    "master": "kubernetes",
    **{flag.name: "etcd" for flag in STORE_FLAGS if flag.name.startswith("etcd-")},
}
"""Flags that mean something to one backend alone."""


def find_backend(parsed: Parsed) -> BackendConfig:
    """The store that these flags name; ``ConfigError`` for those of a store that they do not."""
    values = parsed.values
    kind, others = find_kinds(parsed)
    for name, owner in OWNERS.items():
        if values[name] and parsed.given(name) and owner not in (kind, *others):
            raise ConfigError(
                f"--{name} {_show(values[name])!r}: is for --backend={owner},"
                f" and this is --backend={','.join((kind, *others))}"
            )
    return BackendConfig(
        kind=kind,
        others=others,
        directory=values["directory"],
        topology_label=values["topology-label"],
        kubeconfig=values["kubeconfig"],
        master=values["master"],
        etcd=EtcdConfig(
            endpoints=values["etcd-endpoints"],
            prefix=values["etcd-prefix"],
            cacert=values["etcd-cacert"],
            cert=values["etcd-cert"],
            key=values["etcd-key"],
            username=values["etcd-username"],
            password_file=values["etcd-password-file"],
        ),
    )


def find_kinds(parsed: Parsed) -> tuple[str, tuple[str, ...]]:
    """The backend of this host's own facts, and those that are read beside it."""
    kinds: tuple[str, ...] = parsed.values["backend"]
    if not kinds:
        raise ConfigError(f"--backend: names none of {', '.join(BACKENDS)}")
    if len(set(kinds)) != len(kinds):
        raise ConfigError(f"--backend {','.join(kinds)!r}: names one twice")
    return kinds[0], kinds[1:]


def _show(value: str | Path | tuple[str, ...]) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)
