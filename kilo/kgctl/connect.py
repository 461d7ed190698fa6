"""``kgctl connect``: makes this host a Peer of the mesh, until it is told to end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kilo.agentlock import STATE, hold_lock
from kilo.backends.documents import is_object_name
from kilo.backends.opening import BackendConfig, open_store
from kilo.dataplane.base import Dataplane
from kilo.dataplane.linux import LinuxDataplane
from kilo.dataplane.wireguard import WireGuard
from kilo.errors import ConfigError, DataplaneError, KiloError, flatten_errors
from kilo.flags import BOOL, DURATION, Flag, Parsed
from kilo.flagvalues import INTERFACE, MTU, NETWORKS, OPTIONAL_PATH, SECONDS
from kilo.keyfile import load_or_create_private_key, load_private_key, public_key
from kilo.kgctl.connection import GuestLoop, Tell
from kilo.kgctl.connectpeer import OwnPeer, Receipt
from kilo.kgctl.connectplan import Guest, check_host
from kilo.kgctl.meshing import MESH_FLAGS, find_mesh_flags
from kilo.kgctl.storing import Usage, UsageError, find_store, run_command, tell
from kilo.log import register_secret
from kilo.mesh.diff import Change
from kilo.mesh.host import ForwardDrop
from kilo.mesh.keys import PrivateKey
from kilo.mesh.model import IPNetwork
from kilo.mesh.state import Firewall
from kilo.mesh.survey import make_survey

KEY = STATE / "connect" / "key"
RECEIPT = STATE / "connect" / "peer"
UNDO_SECONDS = 20.0
"""For the network, and as many for the Peer."""

ALLOWED_IP = Flag(
    "allowed-ip",
    NETWORKS,
    (),
    "this host's addresses in the mesh, if the Peer is to be made",
    short="a",
)
MORE = Flag(
    "allowed-ips", NETWORKS, (), "what else to reach through a live leader: the services' CIDR, say"
)
CLEAN_UP = Flag(
    "clean-up",
    BOOL,
    default=True,
    help="at the end undo what was done to the network, and remove a Peer that was made",
)
INTERFACE_NAME = Flag("interface", INTERFACE, "kilo0", "the WireGuard interface to make", short="i")
KEEPALIVE = Flag(
    "persistent-keepalive", SECONDS, 10, "between packets that keep a NAT open; 0: none"
)
PRIVATE_KEY = Flag(
    "private-key",
    OPTIONAL_PATH,
    None,
    f"file with this host's private key; without it one of our own, {KEY}",
    default_text="",
)
OWN_FLAGS = (
    ALLOWED_IP,
    MORE,
    CLEAN_UP,
    INTERFACE_NAME,
    Flag("mtu", MTU, None, "the interface's; auto: as in the mesh", default_text="auto"),
    KEEPALIVE,
    PRIVATE_KEY,
    Flag("resync-period", DURATION, 30.0, "how often to look even if nothing happened"),
)

USAGE = Usage(
    command="kgctl connect",
    arguments="[NAME]",
    help="Makes this host a Peer of the mesh, called NAME or as the host, until Ctrl-C or SIGTERM:"
    " the\nPeer if it is missing, an interface, routes. It follows the mesh meanwhile and undoes it"
    " all\nat the end. Works as root, and not beside an agent.",
    examples=(
        "kgctl connect laptop -a 10.5.0.1/32",
        "kgctl connect laptop -a 10.5.0.1/32 --allowed-ips 10.43.0.0/16",
        "kgctl connect --backend=file --private-key=/etc/wireguard/key",
    ),
    flags=(*OWN_FLAGS, *MESH_FLAGS),
    most=1,
)


class NoFirewall:
    """A Peer forwards and masquerades nothing, so no tool for that need be installed."""

    is_transactional = False

    async def read(self) -> Firewall | None:
        """See ``FirewallDriver.read``."""
        return None

    async def apply(self, change: Change) -> None:
        """See ``FirewallDriver.apply``."""
        raise DataplaneError(f"{change}: a peer has no firewall")

    async def find_forward_drops(self) -> tuple[ForwardDrop, ...]:
        """See ``FirewallDriver.find_forward_drops``."""
        return ()


def run(words: Sequence[str]) -> int:
    """Stay connected; the exit status."""
    return run_command(USAGE, words, connect)


def connect(parsed: Parsed) -> int:
    """Be the only one who changes this host's network, and the mesh's Peer."""
    store = find_store(parsed, os.environ)
    name = find_name(parsed)
    with hold_lock(STATE, parsed.value(INTERFACE_NAME)):
        return asyncio.run(stay_connected(parsed, store, name))


def find_name(parsed: Parsed) -> str:
    """The argument, else the host's name; ``UsageError`` if no Peer can be called so."""
    name = parsed.arguments[0] if parsed.arguments else socket.gethostname().lower()
    if not is_object_name(name):
        raise UsageError(f"NAME {name!r}: is not a Peer's: lower case letters, digits, '-' and '.'")
    own: tuple[IPNetwork, ...] = parsed.value(ALLOWED_IP)
    if own and not any(network.num_addresses == 1 for network in own):
        raise UsageError(
            f"--allowed-ip {','.join(map(str, own))!r}: holds no single address (/32 or /128),"
            " which this host would have in the mesh"
        )
    return name


async def stay_connected(parsed: Parsed, store: BackendConfig, name: str) -> int:
    """Until a signal; then undo it."""
    async with open_store(store) as backend:
        # Before anything is made, be it a key: whoever names a store that is not there, or may
        # not read it, or asks for what contradicts itself, is told so at once.
        snapshot = await backend.snapshot()
        flags = partial(find_mesh_flags, parsed)
        for doubt in make_survey(snapshot, flags(snapshot), wall=time.time()).doubts:
            tell(doubt)
        key = load_key(parsed.value(PRIVATE_KEY))
        guest = Guest(
            name=name,
            public_key=public_key(key),
            interface=parsed.value(INTERFACE_NAME),
            keepalive_seconds=parsed.value(KEEPALIVE),
            more=parsed.value(MORE),
        )
        async with open_dataplane(guest.interface, key) as dataplane:
            visit = Visit(
                own=OwnPeer(
                    backend=backend,
                    guest=guest,
                    receipt=Receipt(path=RECEIPT, store=str(store), peer=name),
                    flags=flags,
                ),
                dataplane=dataplane,
                clean_up=parsed.value(CLEAN_UP),
                tell=tell_whoever_listens,
            )
            return await visit.last(parsed.value(ALLOWED_IP), catch_signals())


def load_key(path: Path | None) -> PrivateKey:
    """The private key in the file that was named, which must be there; else one of our own."""
    try:
        key = load_or_create_private_key(KEY) if path is None else load_private_key(path)
    except FileNotFoundError as error:
        raise ConfigError(f"--private-key {str(path)!r}: {error.strerror}") from error
    register_secret(key)
    return key


@asynccontextmanager
async def open_dataplane(interface: str, key: PrivateKey) -> AsyncIterator[Dataplane]:
    """The kernel of the host."""
    dataplane = LinuxDataplane(
        interface, wireguard=WireGuard(interface, key), firewall=NoFirewall()
    )
    try:
        yield dataplane
    finally:
        await dataplane.close()


def tell_whoever_listens(line: str) -> None:
    """Say it, if the terminal is still there: if it is not, there is still much to undo."""
    with suppress(OSError):
        tell(line)


def catch_signals() -> asyncio.Event:
    """Set by the first signal that asks for an end; later ones leave nothing half undone."""
    stop = asyncio.Event()

    def note() -> None:
        if stop.is_set():
            tell_whoever_listens("is being undone already; a moment")
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, note)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        loop.add_signal_handler(signal.SIGHUP, note)
    return stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """From the Peer's making to its removal."""

    own: OwnPeer
    dataplane: Dataplane
    clean_up: bool
    tell: Tell

    async def last(self, allowed_ips: tuple[IPNetwork, ...], stop: asyncio.Event) -> int:
        """Until ``stop`` is set; the exit status: 1 if something could not be undone.

        Refusals and contradictions raise, before anything is changed.
        """
        guest = self.own.guest
        check_host(guest, await self.dataplane.read())
        if other := self.own.receipt.find_other():
            self.tell(f"peer {other} was made here and never removed: kgctl delete peer {other}")
        loop = GuestLoop(
            guest, self.own.backend, self.dataplane, flags=self.own.flags, tell=self.tell
        )
        is_undone = True
        try:
            if await self.own.ensure(allowed_ips):
                self.tell(f"peer {guest.name} created")
            await loop.run(stop)
        finally:
            if self.clean_up:
                is_undone = await self._undo(loop)
        return 0 if is_undone else 1

    async def _undo(self, loop: GuestLoop) -> bool:
        """Each part is tried though another fails."""
        network = await self._try("network", loop.undo)
        peer = await self._try(f"peer {self.own.guest.name}", self._remove_peer)
        return network and peer

    async def _remove_peer(self) -> None:
        if await self.own.remove():
            self.tell(f"peer {self.own.guest.name} removed")

    async def _try(self, what: str, undo: Callable[[], Awaitable[None]]) -> bool:
        """Whether it could be undone; what stands in the way is told."""
        try:
            async with asyncio.timeout(UNDO_SECONDS):
                await undo()
        except* (KiloError, TimeoutError) as errors:
            for error in flatten_errors(errors):
                reason = str(error) or f"not done after {UNDO_SECONDS:.0f} s"
                self.tell(f"{what}: left behind, for the next start to remove: {reason}")
            failed = True
        else:
            failed = False
        return not failed
