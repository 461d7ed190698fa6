"""Which firewall driver a host gets, and what the others have left behind.

A host whose rules are iptables' gets iptables, of the kind that it uses: an accept of ours has to
stand in the very chain that would drop. Any other host gets a table of our own in nftables.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from kilo.dataplane.firewall_terms import NOT_OURS
from kilo.dataplane.forwarding import LEGACY_SAVE
from kilo.dataplane.iptables import FAMILIES, IPTables, Kind, save_rules
from kilo.dataplane.iptables_rules import MARK
from kilo.dataplane.iptables_sets import IPSET, destroy_sets, read_sets
from kilo.dataplane.nftables import NFTables
from kilo.dataplane.tools import MissingToolError, Tool, run_tool
from kilo.errors import DataplaneError
from kilo.mesh.diff import Change
from kilo.mesh.host import ForwardDrop
from kilo.mesh.state import Firewall

LOOK_SECONDS = 30.0
"""How long is believed which chains drop what is forwarded: as long as Kilo's resync period."""
CANARIES = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
"""Chains that a kubelet makes in table ``mangle`` of the kind that its host uses, for all others
to look for (KEP-3178)."""
_IPTABLES = Tool(program="iptables", package="iptables")
_POLICY = re.compile(r"^:(\S+) DROP ", re.MULTILINE)
_RULE = re.compile(r"^-A .*$", re.MULTILINE)
_CANARY = re.compile(rf"^:(?:{'|'.join(CANARIES)}) ", re.MULTILINE)


class Choice(StrEnum):
    """The flag ``--firewall``."""

    AUTO = "auto"
    NFTABLES = "nftables"
    IPTABLES = "iptables"


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What others use one kind of iptables for."""

    canary: bool = False
    """A kubelet says that it is the host's."""
    rules: int = 0
    """Rules of others, and policies that drop."""


def measure_use(saved: Iterable[str]) -> Use:
    """From the ``iptables-save`` of each family; what bears our names does not count."""
    text = "".join(saved)
    rules = [rule for rule in _RULE.findall(text) if MARK not in rule]
    return Use(canary=bool(_CANARY.search(text)), rules=len(rules) + len(_POLICY.findall(text)))


def choose_kind(uses: Mapping[Kind, Use]) -> Kind | None:
    """The kind of iptables that the host uses; None if it uses none."""
    for kind in (Kind.NFT, Kind.LEGACY):
        if uses[kind].canary:
            return kind
    kind = max((Kind.NFT, Kind.LEGACY), key=lambda kind: uses[kind].rules)
    return kind if uses[kind].rules else None


async def look_at_host() -> dict[Kind, Use]:
    """What each kind is used for; one without programs counts as not used."""
    uses = {}
    for kind in Kind:
        try:
            uses[kind] = measure_use([await save_rules(kind, family) for family in FAMILIES])
        except DataplaneError:
            uses[kind] = Use()
    return uses


async def choose_driver(choice: Choice) -> NFTables | IPTables:
    """The driver for this host, as it is now.

    Left to us, iptables is only taken where all its programs are installed: without, nftables
    does nearly as well, and warns of chains that drop. Raises ``MissingToolError`` where iptables
    is forced and missing.
    """
    if choice is Choice.NFTABLES:
        return NFTables()
    kind = choose_kind(await look_at_host())
    if choice is Choice.AUTO:
        return IPTables(kind) if kind and is_installed(kind) else NFTables()
    return IPTables(kind or await find_default_kind())


def is_installed(kind: Kind) -> bool:
    """Whether rules of the kind can be written on this host."""
    if kind is Kind.NFT:
        programs = ["iptables-nft-restore", "ip6tables-nft-restore"]
    else:
        programs = [tool.program for tool in LEGACY_SAVE.values()]
    has_library = kind is Kind.NFT or importlib.util.find_spec("iptc") is not None
    return has_library and all(map(shutil.which, [IPSET.program, *programs]))


async def find_default_kind() -> Kind:
    """Of the host's own ``iptables``. Raises ``MissingToolError``."""
    _, version, _ = await run_tool(_IPTABLES, "--version")
    return Kind.LEGACY if "legacy" in version else Kind.NFT


class HostFirewall:
    """The driver that suits the host, chosen when it is first needed.

    The first ``read`` looks for what another driver has left at another start; that makes the
    answer ``NOT_OURS``, and the next ``apply`` removes it, after its own is in place.
    """

    def __init__(self, choice: Choice = Choice.AUTO) -> None:
        self._choice = choice
        self._driver: NFTables | IPTables | None = None
        self._leavings: bool | None = None
        """Of other drivers; None: not looked for yet."""
        self._choosing = asyncio.Lock()
        self._drops: tuple[ForwardDrop, ...] = ()
        self._looked_at = -LOOK_SECONDS

    @property
    def is_transactional(self) -> bool:
        """See ``FirewallDriver.is_transactional``."""
        return isinstance(self._driver, NFTables)

    async def read(self) -> Firewall | None:
        """See ``FirewallDriver.read``."""
        driver = await self._choose()
        if self._leavings is None:
            self._leavings = await _find_leavings(driver)
        found = await driver.read()
        return NOT_OURS if self._leavings else found

    async def apply(self, change: Change) -> None:
        """See ``FirewallDriver.apply``."""
        driver = await self._choose()
        if change.new is None and self._leavings is not False:
            # They come first, for our sets cannot go while another kind's rules look into them.
            await _remove_leavings(driver)
        await driver.apply(change)
        if change.new is not None and self._leavings is not False:
            await _remove_leavings(driver)
        self._leavings = False

    async def find_forward_drops(self) -> tuple[ForwardDrop, ...]:
        """See ``FirewallDriver.find_forward_drops``."""
        try:
            driver = await self._choose()
        except MissingToolError:
            return ()  # not swallowed: ``apply`` meets it again
        now = time.monotonic()
        if now >= self._looked_at + LOOK_SECONDS:
            self._drops = await driver.find_forward_drops()
            self._looked_at = now
        return self._drops

    async def _choose(self) -> NFTables | IPTables:
        async with self._choosing:  # what reads and what looks for drops asks at the same time
            if self._driver is None:
                self._driver = await choose_driver(self._choice)
            return self._driver


async def _find_leavings(driver: NFTables | IPTables) -> bool:
    """Whether there is anything that another driver made. What cannot be asked made nothing."""
    found = False
    for kind in _list_others(driver):
        with suppress(DataplaneError):
            found |= await IPTables(kind).has_rules()
    with suppress(DataplaneError):
        if isinstance(driver, IPTables):
            found |= await NFTables().read() is not None
        else:
            found |= bool((await read_sets()).names)
    return found


async def _remove_leavings(driver: NFTables | IPTables) -> None:
    for kind in _list_others(driver):
        with suppress(MissingToolError):
            await IPTables(kind).remove_rules()
    with suppress(MissingToolError):
        if isinstance(driver, IPTables):
            await NFTables().apply(Change(old=NOT_OURS))
        else:
            await destroy_sets((await read_sets()).names)


def _list_others(driver: NFTables | IPTables) -> list[Kind]:
    own = driver.kind if isinstance(driver, IPTables) else None
    return [kind for kind in Kind if kind is not own]
