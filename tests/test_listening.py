"""Listening on a host whose kernel knows no IPv6."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from kilo.listening import open_listener

WITHOUT_IPV6 = """
import ctypes, errno, platform, socket, struct
from kilo.listening import open_listener

# seccomp(2): a socket of family AF_INET6 fails as on a kernel booted with ipv6.disable=1.
SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
code = [
    (0x20, 0, 0, 0),                            # load the system call's number
    (0x15, 0, 3, SOCKET),                       # not socket(): allow
    (0x20, 0, 0, 16),                           # load its first argument
    (0x15, 0, 1, socket.AF_INET6),              # another family: allow
    (0x06, 0, 0, 0x00050000 | errno.EAFNOSUPPORT),
    (0x06, 0, 0, 0x7FFF0000),
]
program = b"".join(struct.pack("=HBBI", *line) for line in code)
buffer = ctypes.create_string_buffer(program)
libc = ctypes.CDLL(None, use_errno=True)
filter = struct.pack("@HP", len(code), ctypes.addressof(buffer))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, filter, 0, 0) == 0, ctypes.get_errno()
with open_listener(":0") as listener:
    print(listener.family.name, listener.getsockname()[0])
"""


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this kernel has no IPv6")
def test_every_address_is_both_families_where_there_are_both() -> None:
    with open_listener(":0") as listener:
        assert listener.getsockname()[0] == "::"


def test_every_address_is_ipv4_where_the_kernel_has_no_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_IPV6], capture_output=True, text=True, check=False
    )
    assert done.stdout == "AF_INET 0.0.0.0\n", done.stderr
