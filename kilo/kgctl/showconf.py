"""``kgctl showconf``: what somebody's WireGuard device needs, in the form that is asked for."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import sys
from pathlib import Path

from kilo.backends.base import Backend
from kilo.backends.documents import make_peer_document
from kilo.errors import ConfigError, MeshError
from kilo.flags import BOOL, STRING, Flag, Kind, Parsed, list_of
from kilo.flagvalues import MTU, NETWORKS, OPTIONAL_PATH
from kilo.keyfile import load_private_key, public_key
from kilo.kgctl.meshing import MESH_FLAGS, check_node, check_peer, survey_store
from kilo.kgctl.printing import render_documents
from kilo.kgctl.storing import Usage, UsageError, run_command, tell, work_on_store
from kilo.log import register_secret
from kilo.mesh.aspeer import describe_node_as_peer, describe_peer_as_peer, make_peer
from kilo.mesh.keys import PrivateKey
from kilo.mesh.model import IPNetwork, parse_host
from kilo.mesh.survey import Survey
from kilo.mesh.wgconf import (
    find_peer,
    make_node_conf,
    render_conf,
    render_peer,
    render_peer_conf,
)
from kilo.mesh.wgquick import Device, render_quick_conf

WIREGUARD, WG_QUICK = "wireguard", "wg-quick"
OBJECTS = ("node", "peer")


def parse_resolver(text: str) -> str:
    """An address of a resolver, or a domain to search."""
    return parse_host(text, bracketed=False)


AS_PEER = Flag(
    "as-peer",
    BOOL,
    default=False,
    help="what another device needs to reach the node's location, or the peer",
)
OUTPUT = Flag(
    "output",
    STRING,
    WIREGUARD,
    "how to print it; yaml and json: a Peer, with --as-peer; wg-quick: of a peer",
    choices=(WIREGUARD, "yaml", "json", WG_QUICK),
    short="o",
)
ALLOWED_IPS = Flag(
    "allowed-ips", NETWORKS, (), "with --as-peer: more that can be reached there, services say"
)
DNS = Flag(
    "dns",
    list_of(Kind(word="host", parse=parse_resolver), "hosts"),
    (),
    "of wg-quick: resolvers that the device is to use, and domains to search",
)
DEVICE_MTU = Flag(
    "mtu", MTU, None, "of wg-quick: the device's; auto: as in the mesh", default_text="auto"
)
PRIVATE_KEY = Flag(
    "private-key",
    OPTIONAL_PATH,
    None,
    "of wg-quick: file with the device's private key, to be printed with the rest",
    default_text="",
)
QR = Flag("qr", BOOL, default=False, help="of wg-quick: as a QR code, for a phone's camera to read")

USAGE = Usage(
    command="kgctl showconf",
    arguments="node|peer NAME",
    help="Prints the WireGuard configuration of a node that leads its segment, or the one that a"
    " peer\nloads to be in the mesh. What is printed may hold preshared keys.",
    examples=(
        "kgctl showconf peer squat > peer.ini && wg setconf wg0 peer.ini",
        "kgctl showconf peer phone --private-key phone.key --dns 10.43.0.10 --qr",
        "kgctl showconf node a1 --as-peer -o yaml --allowed-ips 10.43.0.0/16 | kubectl apply -f -",
    ),
    flags=(AS_PEER, OUTPUT, ALLOWED_IPS, DNS, DEVICE_MTU, PRIVATE_KEY, QR, *MESH_FLAGS),
    first=tuple((word, "") for word in OBJECTS),
    least=2,
    most=2,
)


def run(words: list[str]) -> int:
    """Print it."""

    def work(parsed: Parsed) -> int:
        check_usage(parsed)
        return work_on_store(parsed, print_conf)

    return run_command(USAGE, words, work)


def check_usage(parsed: Parsed) -> None:
    """``UsageError`` for flags that say nothing about what is asked for."""
    kind, _ = parsed.arguments
    if kind not in OBJECTS:
        raise UsageError(f"{kind!r}: is not one of {', '.join(OBJECTS)}")
    output, as_peer = parsed.value(OUTPUT), parsed.value(AS_PEER)
    if as_peer and (output == WG_QUICK or parsed.value(QR)):
        raise UsageError("--as-peer: is part of another device's configuration, not all of one")
    if output in ("yaml", "json") and not as_peer:
        raise UsageError(f"--output {output!r}: is a Peer, and only with --as-peer is there one")
    if parsed.value(ALLOWED_IPS) and not as_peer:
        raise UsageError("--allowed-ips: says what else a peer allows, and goes with --as-peer")
    quick = [flag for flag in (DNS, DEVICE_MTU, PRIVATE_KEY, QR) if parsed.given(flag.name)]
    if quick and not is_quick(parsed):
        raise UsageError(f"--{quick[0].name}: goes with --output=wg-quick")
    if is_quick(parsed) and kind != "peer":
        raise UsageError("--output 'wg-quick': is for a peer; a node has its agent")


def is_quick(parsed: Parsed) -> bool:
    """Whether a whole device is configured; a QR code is nothing else."""
    return parsed.value(OUTPUT) == WG_QUICK or parsed.value(QR)


async def print_conf(parsed: Parsed, backend: Backend) -> int:
    """All of it on standard output."""
    kind, name = parsed.arguments
    survey = await survey_store(parsed, backend)
    (check_node if kind == "node" else check_peer)(survey, name)
    if is_quick(parsed):
        text = render_device(parsed, survey, name)
    elif parsed.value(AS_PEER):
        text = render_as_peer(parsed, survey)
    elif kind == "node":
        text = render_conf(make_node_conf(survey.topology, name))
    else:
        text = render_peer_conf(survey.topology, name)
    if parsed.value(QR):
        print_qr(text)
    else:
        print(text, end="")
    return 0


def render_as_peer(parsed: Parsed, survey: Survey) -> str:
    """The node's location, or the peer, as somebody else's peer."""
    kind, name = parsed.arguments
    describe = describe_node_as_peer if kind == "node" else describe_peer_as_peer
    more: tuple[IPNetwork, ...] = parsed.value(ALLOWED_IPS)
    conf = describe(survey.topology, name, more)
    output = parsed.value(OUTPUT)
    if output == WIREGUARD:
        return render_peer(conf)
    return render_documents([make_peer_document(make_peer(name, conf))], output)


def render_device(parsed: Parsed, survey: Survey, name: str) -> str:
    """All that a phone or a laptop needs, but for what only it has."""
    path = parsed.value(PRIVATE_KEY)
    dns: tuple[str, ...] = parsed.value(DNS)
    device = Device(
        mtu=parsed.value(DEVICE_MTU),
        dns=dns,
        private_key=read_private_key(path, survey, name) if path is not None else None,
    )
    if path is None and parsed.value(QR):
        tell("without --private-key the code holds no key, and most apps do not take it")
    return render_quick_conf(survey.topology, name, device)


def read_private_key(path: Path, survey: Survey, name: str) -> PrivateKey:
    """The key in the file, which must be the peer's."""
    try:
        key = load_private_key(path)
    except FileNotFoundError as error:
        raise ConfigError(f"--private-key {str(path)!r}: {error.strerror}") from error
    register_secret(key)
    expected = find_peer(survey.topology, name).public_key
    if public_key(key) != expected:
        raise MeshError(
            f"--private-key {str(path)!r}: its public key is {public_key(key)},"
            f" and that of peer {name} is {expected}"
        )
    return key


def print_qr(text: str) -> None:
    """A QR code made of blocks; ``ConfigError`` where it cannot be made."""
    # Imported here: nothing else needs it, and it need not be installed.
    try:
        import segno  # noqa: PLC0415 - see above
    except ImportError as error:
        raise ConfigError("--qr: needs the package segno; install kilo-mesh[qr]") from error
    try:
        code = segno.make(text, micro=False)
    except segno.DataOverflowError as error:
        raise ConfigError(
            f"--qr: {len(text.encode())} bytes are more than a QR code holds; use"
            " --output=wg-quick and copy the text"
        ) from error
    code.terminal(sys.stdout, compact=True)
