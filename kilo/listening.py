"""``--listen`` and its like: from the text to a listening socket, or to a message that helps."""

from __future__ import annotations

import errno
import socket

from kilo.errors import ConfigError
from kilo.portowner import Protocol, describe_owner

BACKLOG = 64

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def parse_listen(text: str, *, flag: str = "--listen") -> tuple[str, int]:
    """Host and port of ``:1107``, ``127.0.0.1:1107`` or ``[::1]:1107``; "" is every address.

    Port 0 is any free one. Raises ``ConfigError`` that names the flag.
    """
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ConfigError(f"{flag} {text!r}: is not ADDRESS:PORT, [ADDRESS]:PORT or :PORT")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigError(f"{flag} {text!r}: the port is not a number up to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def open_listener(text: str, *, flag: str = "--listen") -> socket.socket:
    """A socket that listens there; ``:PORT`` is both families. Raises ``ConfigError``.

    A port in use is named together with the process that holds it, if that can be seen.
    """
    host, port = parse_listen(text, flag=flag)
    try:
        return _listen(host, port) if host else _listen_everywhere(port)
    except socket.gaierror as error:
        raise ConfigError(f"{flag} {text!r}: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            owner = describe_owner(Protocol.TCP, port)
            held = f" by {owner}" if owner else ""
            raise ConfigError(f"{flag} {text!r}: port {port} is in use{held}") from error
        raise ConfigError(f"{flag} {text!r}: {error.strerror}") from error


def _listen_everywhere(port: int) -> socket.socket:
    if not socket.has_dualstack_ipv6():  # a kernel without IPv6 has no such sockets at all
        return _listen_ipv4(port)
    try:
        return socket.create_server(
            ("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
        )
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
        return _listen_ipv4(port)


def _listen_ipv4(port: int) -> socket.socket:
    return socket.create_server(("0.0.0.0", port), backlog=BACKLOG)  # noqa: S104 - as asked


def _listen(host: str, port: int) -> socket.socket:
    # Blocks on a resolver if the host is a name; Go's net.Listen, whose syntax this is, does too.
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)
