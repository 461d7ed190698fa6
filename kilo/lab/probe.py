"""The prober that runs on a lab host: sends numbered datagrams, and notes which ones arrive.

Run as a file, with the standard library only, and led through its standard input, a line a
command; each is answered by one line of JSON. ``probing`` leads it.

    {"name": …, "port": …, "interval": seconds, "targets": [address, …]}   -> {"ready": true}
    go                                                                     (no answer)
    stop                                                                   -> {"sent": ticks}
    report {"SENDER": ticks, …}             -> {"SENDER": [lost, longest run of lost], …}

One thread does everything: a tick that comes late is made up for, so that what is slow here is
not mistaken for loss, and what arrives waits in a buffer of 64 MB.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from typing import Any

BUFFER_BYTES = 64 << 20
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SEQUENCE = struct.Struct("!I")


class Prober:
    """The state of one host's prober."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.name = config["name"].encode()
        self.interval = float(config["interval"])
        self.socket = open_socket(config["port"])
        self.targets = [(_map_address(address), config["port"]) for address in config["targets"]]
        self.seen: dict[str, bytearray] = {}
        self.ticks = 0
        self.next_tick = float("inf")

    def go(self) -> None:
        """Begin to send."""
        self.next_tick = time.monotonic()

    def stop(self) -> dict[str, Any]:
        """Send no more."""
        self.next_tick = float("inf")
        return {"sent": self.ticks}

    def send_due(self) -> None:
        """Send one datagram to everybody for every tick that has passed."""
        while time.monotonic() >= self.next_tick:
            payload = SEQUENCE.pack(self.ticks) + self.name
            for target in self.targets:
                try:
                    self.socket.sendto(payload, target)
                except OSError:
                    # No route or a full queue: it never arrives, which is what gets counted.
                    continue
            self.ticks += 1
            self.next_tick += self.interval

    def receive_all(self) -> None:
        """Note everything that has arrived."""
        while True:
            try:
                payload = self.socket.recv(2048)
            except BlockingIOError:
                return
            (number,) = SEQUENCE.unpack_from(payload)
            seen = self.seen.setdefault(payload[SEQUENCE.size :].decode(), bytearray())
            if number >= len(seen):
                seen.extend(bytes(number + 1 - len(seen)))
            seen[number] = 1

    def report(self, sent: dict[str, int]) -> dict[str, Any]:
        """What did not arrive of what each sender says it sent."""
        return {name: count_losses(self.seen.get(name, b""), n) for name, n in sent.items()}


def count_losses(seen: bytes | bytearray, sent: int) -> tuple[int, int]:
    """How many of ``sent`` are missing, and the longest run of them."""
    padded = bytes(seen[:sent]).ljust(sent, b"\0")
    return padded.count(0), max((len(run) for run in padded.split(b"\1")), default=0)


def open_socket(port: int) -> socket.socket:
    """One socket for both families."""
    result = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    result.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    result.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    result.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
    result.bind(("::", port))
    result.settimeout(0)
    return result


def _map_address(address: str) -> str:
    return address if ":" in address else f"::ffff:{address}"


def answer(prober: Prober, line: str) -> dict[str, Any] | None:
    """Carry out one command."""
    command, _, argument = line.partition(" ")
    if command == "go":
        prober.go()
        return None
    if command == "stop":
        return prober.stop()
    return prober.report(json.loads(argument))


def follow(prober: Prober) -> None:
    """Probe until standard input ends, as it does when whoever leads us has died."""
    poll = select.poll()
    poll.register(prober.socket, select.POLLIN)
    poll.register(0, select.POLLIN | select.POLLHUP)
    while True:
        wait = max(0.0, prober.next_tick - time.monotonic())
        ready = {fd for fd, _ in poll.poll(None if wait == float("inf") else wait * 1000)}
        prober.receive_all()
        if 0 in ready:
            line = sys.stdin.readline()
            if not line:
                return
            reply(answer(prober, line.strip()))
        prober.send_due()


def reply(value: dict[str, Any] | None) -> None:
    """Write an answer at once."""
    if value is not None:
        print(json.dumps(value), flush=True)  # noqa: T201 - the protocol with ``probing``


def main() -> None:
    """Read the configuration, open the socket, probe."""
    prober = Prober(json.loads(sys.stdin.readline()))
    reply({"ready": True})
    follow(prober)


if __name__ == "__main__":
    main()
