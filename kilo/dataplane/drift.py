"""The kernel's own notifications, turned into "something of ours may have been touched".

What others do with routes, rules and tables of theirs is none of our business and wakes nobody,
however much it is: the first bytes of a message decide. WireGuard notifies nobody of anything, so
its configuration is polled for a fingerprint.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from kilo.dataplane.addresses import (
    RTM_DELADDR,
    RTM_NEWADDR,
    AddressEntry,
    decode_address,
    read_address_entries,
)
from kilo.dataplane.hostfacts import decode_default
from kilo.dataplane.iptables_rules import MARK
from kilo.dataplane.links import RTM_DELLINK, RTM_NEWLINK, decode_link, read_links
from kilo.dataplane.netlink import RULE_PRIORITIES, RULE_PROTOCOL
from kilo.dataplane.nlsocket import (
    NLM_F_REPLACE,
    RECEIVE_BYTES,
    Message,
    NetlinkSocket,
    open_socket,
    parse_attributes,
    read_name,
    read_u32,
    split_messages,
    unpack,
    widen_buffer,
)
from kilo.dataplane.owndoing import OwnDoing
from kilo.dataplane.ownroutes import decode_own
from kilo.dataplane.routes import (
    ROUTE_HEADER,
    ROUTE_PROTOCOL,
    RTM_DELROUTE,
    RTM_NEWROUTE,
    RouteKey,
    decode_entry,
)
from kilo.errors import DataplaneError

GAP_SECONDS = 0.25
"""Between two reports; the first comes at once, and what a burst goes on with comes in the next."""
POLL_SECONDS = 1.0
POLL_SHARE = 50
"""The poll waits so many times as long as it took: it is to cost at most 2 % of a processor."""

_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1
# RTNLGRP_LINK, and of IPv4 and IPv6 each _IFADDR, _ROUTE, _RULE.
_ROUTE_GROUPS = (1, 5, 7, 8, 9, 11, 19)
_NETLINK_NETFILTER = 12
_NFTABLES_GROUP = 7
_RTM_NEWRULE, _RTM_DELRULE = 32, 33
_FRA_PRIORITY, _FRA_PROTOCOL = 6, 21
_NFT_SUBSYSTEM = 10
_NFT_NEW_GENERATION = 15
_NFT_HEADER_BYTES = 4
_NFT_TABLE = 1  # the table's name, in messages about tables, chains, rules, sets and elements
_INET = 1
_CHAIN_MARK = MARK.encode()
_DATAGRAMS_A_TURN = 64  # then other tasks of the loop have their turn

Fingerprint = bytes | None
_Judge = Callable[[Message], bool]


class Relevance:
    """Decides about one message after the other, remembering what links and addresses were like.

    Of a link only its name, kind, MTU and "up" matter, of an address nothing that a router's
    periodic advertisement renews. About what it does not know, every message is news.
    """

    def __init__(
        self, *, table: str, routes: Callable[[], Collection[RouteKey]], own: OwnDoing
    ) -> None:
        self._table = table
        self._routes = routes
        self._own = own
        self._seen: dict[object, object] = {}
        self._names: dict[int, str] = {}
        """The links' names: a route means its link by a number."""
        self._is_touched = False
        """Whether the transaction of nftables' that is being told of is about us."""
        self._judges: dict[int, Callable[[Message], bool]] = {
            RTM_NEWLINK: self._judge_link,
            RTM_DELLINK: self._judge_link,
            RTM_NEWADDR: self._judge_address,
            RTM_DELADDR: self._judge_address,
            RTM_NEWROUTE: self._judge_route,
            RTM_DELROUTE: self._judge_route,
            _RTM_NEWRULE: _is_own_rule,
            _RTM_DELRULE: _is_own_rule,
        }

    def learn(self, netlink: NetlinkSocket) -> None:
        """What links and addresses are like now. Raises ``DataplaneError``."""
        for link in read_links(netlink):
            self._seen[link.index] = link
            self._names[link.index] = link.name
        self._seen.update((_identify(entry), entry) for entry in read_address_entries(netlink))

    def forget(self) -> None:
        """Messages were lost."""
        self._seen.clear()
        self._names.clear()
        self._is_touched = False

    def is_about_us(self, message: Message) -> bool:
        """Whether a message of the routing family matters; one that makes no sense does."""
        try:
            judge = self._judges.get(message.type)
            return judge is not None and judge(message)
        except DataplaneError:
            return True

    def is_about_table(self, message: Message) -> bool:
        """Whether a message of nftables' ends a transaction, not ours, in which something was said
        of our table, or of chains of ours in others'.
        """
        if message.type >> 8 != _NFT_SUBSYSTEM:
            return False
        if message.type & 0xFF != _NFT_NEW_GENERATION:
            self._is_touched = self._is_touched or self._names_ours(message)
            return False
        touched, self._is_touched = self._is_touched, False
        return touched and not self._own.take_transaction()

    def _names_ours(self, message: Message) -> bool:
        try:
            attributes = parse_attributes(message.body, _NFT_HEADER_BYTES)
        except DataplaneError:
            return True
        name = attributes.get(_NFT_TABLE)
        if name is not None and message.body[0] == _INET and read_name(name) == self._table:
            return True
        # The chain itself, a rule of it, or a jump to it, in iptables' tables.
        return _CHAIN_MARK in bytes(message.body)

    def _judge_link(self, message: Message) -> bool:
        link = decode_link(message.body)
        if link.family:  # a bridge about its port
            return False
        self._names[link.index] = link.name
        return self._remember(link.index, link, gone=message.type == RTM_DELLINK)

    def _judge_address(self, message: Message) -> bool:
        entry = decode_address(message.body)
        if entry is None:
            return False
        return self._remember(_identify(entry), entry, gone=message.type == RTM_DELADDR)

    def _remember(self, key: object, value: object, *, gone: bool) -> bool:
        if gone:
            self._seen.pop(key, None)
            return True
        known = self._seen.get(key)
        self._seen[key] = value
        return known != value

    def _judge_route(self, message: Message) -> bool:
        family, length, *_, protocol, _, _, _ = unpack(ROUTE_HEADER, message.body)
        if protocol == ROUTE_PROTOCOL:
            route = decode_own(message.body, self._names)
            return self._own.is_news(route, gone=message.type == RTM_DELROUTE)
        if length == 0:
            return decode_default(message.body, family) is not None
        if message.type == RTM_NEWROUTE and not message.flags & NLM_F_REPLACE:
            return False
        # Of a route that was replaced the kernel reports only what took its place; and one that
        # goes may have been in the place of one of ours.
        return decode_entry(message.body, {}, self._routes()) is not None


def _identify(entry: AddressEntry) -> object:
    return (entry.index, entry.interface)


def _is_own_rule(message: Message) -> bool:
    attributes = parse_attributes(message.body, ROUTE_HEADER.size)
    priority = attributes.get(_FRA_PRIORITY)
    if priority is not None and read_u32(priority) in RULE_PRIORITIES:
        return True
    return bytes(attributes.get(_FRA_PROTOCOL, b"")) == bytes([RULE_PROTOCOL])


class DeviceWatch:
    """Notices, by polling, that the WireGuard device's configuration is not what it was."""

    _UNKNOWN: Final = object()

    def __init__(self, fingerprint: Callable[[], Awaitable[Fingerprint]]) -> None:
        self._fingerprint = fingerprint
        self._seen: object = self._UNKNOWN
        self._durations: deque[float] = deque(maxlen=5)

    @property
    def interval_seconds(self) -> float:
        """How long to wait before the next poll."""
        # The least of the last few: on a busy host one of them may take any time.
        return max(POLL_SECONDS, POLL_SHARE * min(self._durations, default=0.0))

    def know(self, fingerprint: Fingerprint | DataplaneError) -> None:
        """That of the device as it was just read, or why it could not be."""
        self._seen = str(fingerprint) if isinstance(fingerprint, DataplaneError) else fingerprint

    async def notice_change(self) -> bool:
        """Whether it differs from what was known, which it then is."""
        before, self._seen = self._seen, await self._measure()
        return before is not self._UNKNOWN and before != self._seen

    async def _measure(self) -> object:
        started_at = time.monotonic()
        try:
            return await self._fingerprint()
        except DataplaneError as error:
            return str(error)  # a difference like any other: whoever reads next meets the error
        finally:
            self._durations.append(time.monotonic() - started_at)


class Drift:
    """An iterator over moments at which something may have changed; see ``Dataplane.drift``.

    The sockets subscribe when it is made, so that nothing is lost between making it and the
    first wait; it must be made in the event loop's thread.
    """

    def __init__(self, relevance: Relevance, device: DeviceWatch) -> None:
        self._relevance = relevance
        self._device = device
        self._touched = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._reported_at = -GAP_SECONDS
        self._sockets: dict[socket.socket, _Judge] = {}
        self._closed = False
        self._failure: DataplaneError | None = None
        try:
            self._subscribe_and_learn()
        except DataplaneError:
            self._close()
            raise

    def _subscribe_and_learn(self) -> None:
        self._listen(socket.NETLINK_ROUTE, _ROUTE_GROUPS, self._relevance.is_about_us)
        # A kernel without nf_tables has no table of ours; the firewall driver will say so.
        with contextlib.suppress(DataplaneError):
            self._listen(_NETLINK_NETFILTER, (_NFTABLES_GROUP,), self._relevance.is_about_table)
        # Subscribed first, so that nothing is missed, and compared with what is there now, so that
        # nothing old is taken for news.
        self._learn()

    def _learn(self) -> None:
        # In the loop's own thread for once, a few milliseconds.
        with open_socket() as netlink:
            self._relevance.learn(netlink)

    def catch_up(self) -> None:
        """Judge all that the kernel has told so far, now."""
        for sock, judge in tuple(self._sockets.items()):
            while self._receive(sock, judge):
                pass

    def __aiter__(self) -> Drift:
        return self

    async def __anext__(self) -> None:
        poll_at = self._loop.time() + self._device.interval_seconds
        while not self._closed:
            if self._failure is not None:
                self._close()
                raise self._failure
            if self._touched.is_set():
                await asyncio.sleep(self._reported_at + GAP_SECONDS - self._loop.time())
                self._touched.clear()
                self._reported_at = self._loop.time()
                return
            try:
                async with asyncio.timeout_at(poll_at):
                    await self._touched.wait()
            except TimeoutError:
                if await self._device.notice_change():
                    self.touch()
                poll_at = self._loop.time() + self._device.interval_seconds
        raise StopAsyncIteration

    def touch(self) -> None:
        """Report at the next chance."""
        self._touched.set()

    def touch_from_thread(self) -> None:
        """The same, from a thread other than the event loop's."""
        # The loop may have been closed meanwhile; then nobody waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.touch)

    async def aclose(self) -> None:
        """Unsubscribe and end the iteration; may be called twice."""
        self._close()

    def _close(self) -> None:
        self._closed = True
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()
        self.touch()

    def _listen(self, family: int, groups: Collection[int], judge: _Judge) -> None:
        try:
            sock = _subscribe(family, groups)
        except OSError as error:
            raise DataplaneError(f"netlink: subscribe: {error.strerror}") from error
        self._sockets[sock] = judge
        self._loop.add_reader(sock, self._receive, sock, judge)

    def _receive(self, sock: socket.socket, judge: _Judge) -> bool:
        """Whether there may be more."""
        for _ in range(_DATAGRAMS_A_TURN):
            try:
                datagram = sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return False
            except OSError as error:
                # ENOBUFS: more came than fitted, and we cannot know what it was.
                self._relevance.forget()
                with contextlib.suppress(DataplaneError):
                    self._learn()
                self.touch()
                if error.errno != errno.ENOBUFS:
                    self._loop.remove_reader(sock)
                    self._failure = DataplaneError(f"netlink notifications: {error.strerror}")
                return False
            if _concerns_us(datagram, judge):
                self.touch()
        return True


def _subscribe(family: int, groups: Collection[int]) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, family)
    try:
        widen_buffer(sock)
        sock.bind((0, 0))  # without a port of its own it would miss most of what is told to all
        for group in groups:
            sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError:
        sock.close()
        raise
    return sock


def _concerns_us(datagram: bytes, judge: _Judge) -> bool:
    try:
        # All are judged, even after one that matters: judging remembers.
        verdicts = [judge(message) for message in split_messages(datagram)]
    except DataplaneError:
        return True
    return any(verdicts)
