"""The agent's flags (spec section 2), and the configuration they come to."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kilo.backends.documents import is_object_name
from kilo.backends.opening import BackendConfig
from kilo.dataplane.firewall import Choice
from kilo.engine import CleanUp
from kilo.errors import ConfigError
from kilo.flags import BOOL, DURATION, STRING, Flag, FlagSet, Kind, Parsed
from kilo.flagvalues import (
    ENDPOINT,
    INTERFACE,
    LOCATION,
    MTU,
    NETWORKS,
    OPTIONAL_PATH,
    PATH,
    PORT,
    SECONDS,
)
from kilo.log import LEVELS
from kilo.mesh.host import CNI_BRIDGE, AddressPolicy
from kilo.mesh.model import Encapsulation, Granularity, NodeSpec, PartialSettings, Settings
from kilo.mesh.view import Compatibility, RenderOptions
from kilo.storeflags import STORE_FLAGS, find_backend, find_kinds

OWN_FLAGS: tuple[Flag[Any], ...] = (
    Flag(
        "clean-up",
        BOOL,
        default=True,
        help="undo the changes to the host's network at shutdown",
    ),
    Flag(
        "clean-up-interface",
        BOOL,
        default=False,
        help="also delete the WireGuard interface at shutdown",
    ),
    Flag(
        "cni",
        BOOL,
        None,
        "manage the node's CNI configuration",
        default_text="true; false with --backend=file or etcd",
    ),
    Flag("cni-path", PATH, Path("/etc/cni/net.d/10-kilo.conflist"), "path of that configuration"),
    Flag(
        "cni-template",
        OPTIONAL_PATH,
        None,
        "make that configuration from this file where it is missing",
        default_text="none",
    ),
    Flag("compatibility", STRING, "", "run beside another network", choices=("flannel", "cilium")),
    Flag("create-interface", BOOL, default=True, help="create the interface if it is missing"),
    Flag(
        "dry-run",
        BOOL,
        default=False,
        help="print what would be changed now, change nothing, and end",
    ),
    Flag(
        "encapsulate",
        Kind(word="string", parse=Encapsulation),
        None,
        "when packets within a location travel in IPIP",
        choices=tuple(Encapsulation),
        default_text="always; never with --backend=file or etcd",
    ),
    Flag(
        "firewall",
        Kind(word="string", parse=Choice),
        Choice.AUTO,
        "whose rules are written; auto: iptables' where the host's are",
        choices=tuple(Choice),
    ),
    Flag(
        "hostname",
        STRING,
        "",
        "this node's name in the backend",
        default_text="the host's name",
    ),
    Flag("interface", INTERFACE, "kilo0", "the WireGuard interface"),
    Flag("internal-cidr", NETWORKS, (), "only addresses in these count as internal ones"),
    Flag(
        "iptables-forward-rules",
        BOOL,
        default=False,
        help="accept forwarded packets of the mesh",
    ),
    Flag(
        "listen",
        STRING,
        ":1107",
        "where to serve the mesh's page, status, health, metrics and graph",
    ),
    Flag("local", BOOL, default=True, help="manage the routes within a location"),
    Flag("log-level", STRING, "info", "what to log", choices=LEVELS),
    Flag(
        "mesh-granularity",
        Kind(word="string", parse=Granularity),
        Settings().granularity,
        "how the mesh is cut into segments",
        choices=tuple(Granularity),
    ),
    Flag(
        "mtu",
        MTU,
        None,
        "of the WireGuard interface; auto: the default route's link's less 80",
        default_text="auto",
    ),
    Flag("port", PORT, Settings().port, "WireGuard's UDP port"),
    Flag(
        "prioritise-private-addresses",
        BOOL,
        default=False,
        help="take a private address as endpoint",
    ),
    Flag("resync-period", DURATION, 30.0, "how often to reconcile even if nothing happened"),
    Flag("service-cidr", NETWORKS, (), "destinations that are never masqueraded"),
    Flag("subnet", NETWORKS, Settings().subnets, "where WireGuard addresses come from"),
    Flag("version", BOOL, default=False, help="print the version and end"),
)
REGISTRATION_FLAGS: tuple[Flag[Any], ...] = (
    Flag(
        "allowed-location-ip",
        NETWORKS,
        (),
        "of --backend=etcd: declares what is reached through this node's location",
    ),
    Flag(
        "endpoint",
        ENDPOINT,
        None,
        "of --backend=etcd: declares where others find this node",
        default_text="",
    ),
    Flag("leader", BOOL, default=False, help="of --backend=etcd: declares this node as a leader"),
    Flag("location", LOCATION, "", "of --backend=etcd: declares this node's location"),
    Flag(
        "persistent-keepalive",
        SECONDS,
        0,
        "of --backend=etcd: declares that this node is behind NAT",
        default_text="",
    ),
    Flag("pod-subnet", NETWORKS, (), "of --backend=etcd: declares this node's pod subnets"),
)
"""What to declare of this node where nobody has declared it yet."""
FLAGS = tuple(sorted((*STORE_FLAGS, *OWN_FLAGS, *REGISTRATION_FLAGS), key=lambda flag: flag.name))

FLAG_SET = FlagSet(
    "kg",
    FLAGS,
    "kg is the agent that joins this host to a Kilo mesh.\n\n"
    "Usage:\n  kg [COMMAND] [flags]\n\n"
    "Without a command it works until SIGTERM. Every flag can be given as an environment variable"
    " too:\n--log-level as KG_LOG_LEVEL.",
    commands={
        "completion": "print the completion of kg for a shell: bash, zsh or fish",
        "public-key": "print this host's public key; make the key if there is none",
        "uninstall": "undo all that agents did to this host's network; keeps the key",
        "version": "print the version",
        "webhook": "judge Peers for a cluster's API server; see kg webhook --help",
    },
    max_arguments=2,
)

SETTINGS: Mapping[str, str] = {
    "subnet": "subnets",
    "mesh-granularity": "granularity",
    "port": "port",
    "mtu": "mtu",
    "encapsulate": "encapsulation",
    "service-cidr": "service_cidrs",
    "resync-period": "resync_period_seconds",
}
"""Flags that win over the store's settings, and what they are called there."""


DECLARED: Mapping[str, str] = {
    "allowed-location-ip": "allowed_location_ips",
    "endpoint": "endpoint",
    "leader": "leader",
    "location": "location",
    "persistent-keepalive": "persistent_keepalive_seconds",
    "pod-subnet": "pod_subnets",
}
"""The flags of a node's registration, and what they are called in its declaration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What the program was asked to do."""

    command: str
    """Empty: run the agent."""
    shell: str
    """Of ``completion``."""
    name: str
    backend: BackendConfig
    interface: str
    create_interface: bool
    listen: str
    log_level: str
    dry_run: bool
    clean_up: CleanUp
    options: RenderOptions
    policy: AddressPolicy
    settings: PartialSettings
    """Only those that were given."""
    defaults: Settings
    cni_path: Path
    cni_template: Path | None
    firewall: Choice

    @property
    def prints(self) -> bool:
        """Whether standard output is for a result, and logs go to standard error."""
        return self.dry_run or bool(self.command)


def parse_agent_flags(words: Sequence[str], environ: Mapping[str, str]) -> AgentConfig:
    """The configuration; ``ConfigError`` in one line for what is wrong.

    Prints the help and raises ``SystemExit`` where that was asked for.
    """
    parsed = FLAG_SET.parse(words, environ)
    values = parsed.values
    command = "version" if values["version"] else "".join(parsed.arguments[:1])
    if command not in ("completion", "public-key", "version"):
        check_flags(parsed, command)
    interface = values["interface"]
    return AgentConfig(
        command=command,
        shell=find_shell(parsed.arguments),
        name=find_name(values["hostname"]),
        backend=replace(find_backend(parsed), registration=find_registration(parsed)),
        interface=interface,
        create_interface=values["create-interface"],
        listen=values["listen"],
        log_level=values["log-level"],
        dry_run=values["dry-run"],
        clean_up=CleanUp(network=values["clean-up"], interface=values["clean-up-interface"]),
        options=RenderOptions(
            interface=interface,
            local=values["local"],
            cni=find_cni(parsed),
            compatibility=Compatibility(values["compatibility"]),
            forward_rules=values["iptables-forward-rules"],
        ),
        policy=AddressPolicy(
            ignored_links=frozenset({interface, RenderOptions().tunnel, CNI_BRIDGE}),
            internal_cidrs=values["internal-cidr"],
            prioritise_private=values["prioritise-private-addresses"],
        ),
        settings=collect_settings(parsed),
        defaults=find_defaults(parsed),
        cni_path=values["cni-path"],
        cni_template=values["cni-template"],
        firewall=values["firewall"],
    )


def find_shell(arguments: Sequence[str]) -> str:
    """The argument of ``completion``, the only command that takes one."""
    command, *rest = arguments or ("",)
    if rest and command != "completion":
        raise ConfigError(f"unexpected argument {rest[0]!r}")
    return "".join(rest)


def check_flags(parsed: Parsed, command: str) -> None:
    """``ConfigError`` for flags that do not fit each other."""
    if command == "webhook":
        raise ConfigError("webhook: its name comes first, then its flags: kg webhook --help")
    check_compatibility(parsed)


def check_compatibility(parsed: Parsed) -> None:
    """``ConfigError`` for what is the other network's where one runs beside ours."""
    other = parsed.values["compatibility"]
    if not other:
        return
    for flag, is_set, what in (
        ("cni", find_cni(parsed), "the configuration of the pods is"),
        ("local", parsed.values["local"], "the routes within a location are"),
    ):
        if is_set:
            raise ConfigError(
                f"--compatibility={other}: {what} {other.title()}'s; give --{flag}=false"
            )


def find_cni(parsed: Parsed) -> bool:
    """Whether the pods' configuration is ours: in a cluster, unless told otherwise."""
    given: bool | None = parsed.values["cni"]
    return is_in_cluster(parsed) if given is None else given


def is_in_cluster(parsed: Parsed) -> bool:
    """Whether this host is a cluster's node."""
    return find_kinds(parsed)[0] == "kubernetes"


def find_defaults(parsed: Parsed) -> Settings:
    """The settings where nobody says otherwise; a cluster's are Kilo's."""
    encapsulation = Encapsulation.ALWAYS if is_in_cluster(parsed) else Encapsulation.NEVER
    return replace(Settings(), encapsulation=encapsulation)


def find_registration(parsed: Parsed) -> NodeSpec | None:
    """What to declare of this node if nobody has; None where no flag says anything of it.

    ``ConfigError`` where its declaration is not the agent's to write.
    """
    given = {flag: parsed.values[flag] for flag in DECLARED if parsed.given(flag)}
    kind, others = find_kinds(parsed)
    for flag, value in given.items():
        if kind != "etcd":
            raise ConfigError(
                f"--{flag} {_show(value)!r}: is for --backend=etcd,"
                f" and this is --backend={','.join((kind, *others))}"
            )
    return NodeSpec(**{DECLARED[flag]: given[flag] for flag in given}) if given else None


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def find_name(given: str) -> str:
    """The node's name: as given, or the host's in lower case, as a kubelet has it."""
    name = given or socket.gethostname().lower()
    if not is_object_name(name):
        hint = "" if given else "; give one with --hostname"
        raise ConfigError(
            f"--hostname {name!r}: is not a name: lower case letters, digits, '-' and '.'{hint}"
        )
    return name


def collect_settings(parsed: Parsed) -> PartialSettings:
    """The settings that were given by a flag or variable, not those that are defaults."""
    settings = PartialSettings()
    for flag, name in SETTINGS.items():
        if flag in parsed.values and parsed.given(flag):
            settings[name] = parsed.values[flag]  # type: ignore[literal-required]  # SETTINGS' names
    versions = [subnet.version for subnet in settings.get("subnets", ())]
    if len(versions) != len(set(versions)):
        raise ConfigError("--subnet: has more than one subnet of a family")
    if settings.get("resync_period_seconds", 1.0) <= 0:
        raise ConfigError("--resync-period: is not longer than 0s")
    return settings
