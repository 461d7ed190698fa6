"""Our own certificate in a TLS context, the same for every store."""

from __future__ import annotations

import os
import ssl

from kilo.errors import BackendError


def present_certificate(
    context: ssl.SSLContext, certificate: bytes, key: bytes, *, store: str
) -> None:
    """Give the TLS context our certificate and its key, both PEM.

    ``BackendError``, which begins with ``store``, for what is none. OpenSSL reads them from a file
    only; it is one in memory, so the key never is on a disk.
    """
    with os.fdopen(os.memfd_create("client-certificate"), "wb") as file:
        file.write(certificate + b"\n" + key)
        file.flush()
        try:
            # The empty passphrase: OpenSSL would ask for one at the terminal.
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")
        except (ssl.SSLError, OSError) as error:
            raise BackendError(
                f"{store}: the client certificate or its key is no PEM, has a passphrase, "
                "or the two are no pair"
            ) from error
