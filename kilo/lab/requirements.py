"""What a lab asks of the machine that it is made on."""

from __future__ import annotations

import os
import shutil

from kilo.errors import ConfigError

TOOLS = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "setsid": "util-linux",
    "sysctl": "procps",
    "fping": "fping",
    "wg": "wireguard-tools",
}
"""The programs a lab runs, and the Debian packages they come in."""


def require_root() -> None:
    """``ConfigError`` for anybody else."""
    if os.geteuid() != 0:
        raise ConfigError("a lab is made of namespaces: be root")


def require_tools() -> None:
    """``ConfigError`` naming a program that is missing, and its package."""
    for tool, package in TOOLS.items():
        if shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            raise ConfigError(f"{tool}: is not installed; on Debian: apt-get install {package}")
