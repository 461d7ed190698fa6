"""Why there is no connection: tried once more by hand, for gRPC hardly says.

"Ssl handshake failed" is all that there is to hear of an unknown authority, an expired
certificate, a wrong name, a client certificate that is refused. Blocks.
"""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime

from cryptography import x509

from kilo.backends.etcd.credentials import Credentials
from kilo.backends.etcd.endpoints import Endpoint

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How every HTTP/2 connection begins, with an empty SETTINGS frame."""
_SETTINGS = 4
_TLS_ALERT = 0x15
_NO_TLS = ("wrong version number", "record layer failure", "packet length too long")
_CLOSED = "the server closed the connection"
_TLS_HERE = f"{_CLOSED}: it may want TLS (https://)"
_NO_TLS_HERE = f"{_CLOSED}: it may speak no TLS (http://)"
_PASSED = "the connection was lost"
"""Said where by hand there is one: what ailed it has passed."""
REFUSAL_SECONDS = 1.0


def find_fault(endpoint: Endpoint, credentials: Credentials, *, seconds: float) -> str:
    """Why no connection to the member can be had; a guess where now it can."""
    try:
        return _try(endpoint, credentials, seconds)
    except ssl.SSLError as error:
        return _describe_tls(error, credentials)
    except TimeoutError:
        return f"no answer in {seconds:g} s"
    except (ConnectionResetError, BrokenPipeError):
        # Closed as well: the kernel resets it where the server had not read all that was sent.
        return _NO_TLS_HERE if endpoint.is_tls else _TLS_HERE
    except (socket.gaierror, UnicodeError) as error:
        # UnicodeError comes of Python's codec for names, where there are two dots in a row, say.
        reason = getattr(error, "strerror", None) or "is no name of a host"
        return f"cannot resolve {endpoint.host}: {reason}"
    except OSError as error:
        return (os.strerror(error.errno) if error.errno else str(error)).lower()


def _try(endpoint: Endpoint, credentials: Credentials, seconds: float) -> str:
    with socket.create_connection((endpoint.host, endpoint.port), timeout=seconds) as opened:
        if not endpoint.is_tls:
            return _greet(opened)
        context = credentials.make_context()
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(opened, server_hostname=endpoint.host) as secured:
            return _wait_for_refusal(secured, min(seconds, REFUSAL_SECONDS))


def _greet(opened: socket.socket) -> str:
    opened.sendall(_PREFACE)
    said = opened.recv(64)
    if len(said) > 3 and said[3] == _SETTINGS:
        return _PASSED
    if not said or said[:1] == bytes([_TLS_ALERT]):
        return _TLS_HERE
    return "the server is no etcd"


def _wait_for_refusal(secured: ssl.SSLSocket, seconds: float) -> str:
    """With TLS 1.3 our certificate is refused only after our side of the handshake."""
    secured.settimeout(seconds)
    with suppress(TimeoutError):
        secured.recv(1)
    return _PASSED


def _describe_tls(error: ssl.SSLError, credentials: Credentials) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message or str(error)
        return f"the server's certificate is refused: {why}; checked with {credentials.trust}"
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if "alert" in reason and ("certificate" in reason or "unknown ca" in reason):
        if not credentials.certificate:
            return "the server wants a certificate of us: --etcd-cert and --etcd-key"
        why = _find_expiry(credentials.certificate) or reason.partition("alert ")[2] or reason
        return f"the server refuses our certificate: {why}"
    if "eof" in reason or reason in _NO_TLS:
        return _NO_TLS_HERE
    return f"TLS failed: {reason}"


def _find_expiry(certificate: bytes) -> str:
    """Since when the certificate is not valid any more; empty if it is: no server says so."""
    try:
        until = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    except ValueError:
        return ""
    is_over = until <= datetime.now(UTC)
    return f"it has expired, {until:%Y-%m-%d %H:%M} UTC" if is_over else ""
