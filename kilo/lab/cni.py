"""What a container runtime does with a CNI configuration: one plugin after the other is called.

Written from the CNI specification 0.4.0, sections "Network Configuration" and "Parameters". The
plugins are the real ones; where they run, in a box say, is up to whoever calls them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from subprocess import CompletedProcess
from types import MappingProxyType
from typing import Any

from kilo.errors import LabError
from kilo.mesh.model import IPInterface

PLUGINS = Path("/usr/lib/cni")
"""Where Debian's ``containernetworking-plugins`` puts them."""
LOOPBACK: Mapping[str, Any] = MappingProxyType(
    {"cniVersion": "0.4.0", "name": "lo", "plugins": [{"type": "loopback"}]}
)
"""The network that every runtime joins its containers to, besides the configured one."""

Config = Mapping[str, Any]
Result = dict[str, Any]

Call = Callable[[Sequence[str], str], CompletedProcess[str]]
"""Runs a command with a text as its input, and waits; whatever it returns is returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What is to be joined to a network."""

    name: str
    """Unique among the containers of the host."""
    namespace: str
    """The path of its network namespace."""
    interface: str = "eth0"
    capabilities: Config = field(default_factory=lambda: MappingProxyType({}))
    """What a plugin that declares the capability is told: ``portMappings``, say."""


def add(call: Call, config: Config, container: Container) -> Result:
    """Join a container to the network; what the last plugin answered.

    Raises ``LabError`` with the plugin that failed and its reason; then nothing was undone: call
    ``delete``, as a runtime does.
    """
    result: Result = {}
    for plugin in _list_plugins(config):
        answer = _run(call, "ADD", _complete(config, plugin, container, result), container)
        result = json.loads(answer)
    return result


def delete(call: Call, config: Config, container: Container, result: Result) -> None:
    """Part a container from the network; ``result`` is that of ``add``, empty if it failed."""
    for plugin in reversed(list(_list_plugins(config))):
        _run(call, "DEL", _complete(config, plugin, container, result), container)


def read_addresses(result: Result) -> tuple[IPInterface, ...]:
    """The addresses that a container was given, in the order of the ranges."""
    return tuple(ip_interface(one["address"]) for one in result["ips"])


def _list_plugins(config: Config) -> Iterator[Config]:
    """Of a list of plugins, or of a configuration that is a single one."""
    yield from config.get("plugins", [config])


def _complete(config: Config, plugin: Config, container: Container, result: Result) -> Config:
    """What one plugin reads: its own part, and what the runtime knows."""
    wanted = {
        name: container.capabilities[name]
        for name, declared in plugin.get("capabilities", {}).items()
        if declared and name in container.capabilities
    }
    complete = {key: value for key, value in plugin.items() if key != "capabilities"}
    complete |= {"cniVersion": config["cniVersion"], "name": config["name"]}
    if wanted:
        complete["runtimeConfig"] = wanted
    if result:
        complete["prevResult"] = result
    return complete


def _run(call: Call, command: str, config: Config, container: Container) -> str:
    parameters = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container.name,
        "CNI_NETNS": container.namespace,
        "CNI_IFNAME": container.interface,
        "CNI_PATH": str(PLUGINS),
    }
    plugin = PLUGINS / str(config["type"])
    words = ["env", *(f"{key}={value}" for key, value in parameters.items()), str(plugin)]
    done = call(words, json.dumps(config))
    if done.returncode:
        reason = _read_reason(done.stdout) or done.stderr.strip() or f"status {done.returncode}"
        raise LabError(f"container {container.name}: CNI {command} by {plugin.name}: {reason}")
    return done.stdout


def _read_reason(answer: str) -> str:
    """A plugin's own words, which it says in JSON."""
    try:
        return " ".join(str(json.loads(answer)["msg"]).split())
    except (ValueError, KeyError, TypeError):
        return ""
