"""A TCP relay on loopback: one agent's way to the API server, to be broken for it alone.

It relays bytes and knows nothing of TLS. Threads of its own do the work, so a test may block
its event loop and the relay goes on.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

from kilo.lab.controlplane import find_free_ports

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing resets the connection at once."""
CHUNK_BYTES = 1 << 16
POLL_SECONDS = 0.02


class Relay:
    """Listens on a loopback port that stays its own; starts out relaying."""

    def __init__(
        self,
        *,
        port: int,
        address: str = "127.0.0.1",
        listen: Callable[[], socket.socket] | None = None,
    ) -> None:
        """``port`` and ``address``: where to relay to; ``listen`` makes the socket to take
        connections on, in another network say.
        """
        self._target = (address, port)
        (self.port,) = find_free_ports("127.0.0.1")
        self._listen = listen or self._listen_here
        self._frozen = threading.Event()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._links: list[_Link] = []
        self.resume()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()

    @property
    def server(self) -> str:
        """The URL to give to a client."""
        return f"https://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset every connection; new ones are taken as before."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.reset()

    def refuse(self) -> None:
        """Reset every connection and refuse new ones."""
        listener, self._listener = self._listener, None
        if listener:
            # Wakes the thread that is accepting, which close alone would not.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def freeze(self) -> None:
        """Take connections and say nothing on them, nor on those that there are."""
        self._frozen.set()

    def resume(self) -> None:
        """Relay again, whatever it was; a frozen connection goes on where it stopped."""
        self._frozen.clear()
        if self._listener is None:
            self._listener = self._listen()
            threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def _listen_here(self) -> socket.socket:
        return socket.create_server(("127.0.0.1", self.port), backlog=64)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            link = _Link(client, self._target, self._frozen)
            with self._lock:
                if self._listener is listener:
                    self._links.append(link)
                    link.start()
                    continue
            link.reset()


class _Link:
    """One client's connection and ours to the server for it."""

    def __init__(
        self, client: socket.socket, target: tuple[str, int], frozen: threading.Event
    ) -> None:
        self._client = client
        self._target = target
        self._frozen = frozen
        self._reset = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._work, daemon=True).start()

    def reset(self) -> None:
        """End it the hard way; its thread closes what it holds."""
        with contextlib.suppress(OSError):  # it has ended by itself
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._reset.set()

    def _work(self) -> None:
        with self._client, contextlib.suppress(OSError):
            if self._wait_while_frozen():
                with socket.create_connection(self._target, timeout=10.0) as server:
                    self._relay(server)

    def _relay(self, server: socket.socket) -> None:
        other = {self._client: server, server: self._client}
        with selectors.DefaultSelector() as selector:
            for end in other:
                selector.register(end, selectors.EVENT_READ)
            while not self._reset.is_set():
                for key, _ in selector.select(POLL_SECONDS):
                    end = next(one for one in other if one is key.fileobj)
                    data = end.recv(CHUNK_BYTES)
                    # Frozen after the bytes were read: they are passed on when it thaws.
                    if not self._wait_while_frozen() or not data:
                        return
                    other[end].sendall(data)

    def _wait_while_frozen(self) -> bool:
        """Whether to go on, once nothing is frozen or the link is reset."""
        while self._frozen.is_set() and not self._reset.wait(POLL_SECONDS):
            pass
        return not self._reset.is_set()
