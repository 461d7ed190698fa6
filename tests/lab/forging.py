"""IPIP packets as anybody can make them, and a host that listens for what is inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kilo.lab.box import Popen
from kilo.lab.host import Host

PORT = 9300
FORGE = """
import socket, struct, sys
source, target, inner_target, port, text = sys.argv[1:]
inner_source = socket.inet_aton("10.2.99.9")

def make_header(length):
    fields = [0x4500, length, 0, 0, 64 << 8 | 17, 0]
    addresses = inner_source + socket.inet_aton(inner_target)
    total = sum(fields) + sum(struct.unpack("!4H", addresses))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    fields[5] = ~total & 0xFFFF
    return struct.pack("!6H", *fields) + addresses

payload = struct.pack("!4H", 40000, int(port), 8 + len(text), 0) + text.encode()
sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, 4)
sender.bind((source, 0))
sender.sendto(make_header(20 + len(payload)) + payload, (target, 0))
"""
LISTEN = """
import socket, sys
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.settimeout(60)
receiver.bind((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
print(receiver.recv(100).decode(), flush=True)
"""


def forge(host: Host, source: str, target: str, inner_target: str, text: str) -> None:
    """Send from the host, from its own address ``source``, an IPIP packet with a datagram in it
    that claims to come from a pod.
    """
    words = [source, target, inner_target, str(PORT), text]
    host.run(["/usr/bin/python3", "-c", FORGE, *words])


@contextmanager
def listening(host: Host, address: str) -> Iterator[Callable[[], str]]:
    """Listens at an address of the host; gives the first datagram that comes."""
    with host.popen(["/usr/bin/python3", "-c", LISTEN, address, str(PORT)]) as server:
        assert read_line(server) == "listening"
        try:
            yield lambda: read_line(server)
        finally:
            server.kill()


def read_line(server: Popen) -> str:
    """The next line it prints; empty if it has ended."""
    assert server.stdout is not None
    return server.stdout.readline().strip()
