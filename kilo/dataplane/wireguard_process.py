"""wireguard-go: WireGuard for hosts whose kernel has none. Starting it, and seeing it off.

All of it blocks, each call for a bounded time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable

from kilo.errors import DataplaneError

PROGRAM = "wireguard-go"
LIMIT_SECONDS = 15.0
"""For starting or ending, which take some 20 ms: enough for a machine under load."""
CROSSING_SECONDS = 2.0
"""For a wireguard-go met while it starts or ends; it may also be one that will do neither."""
POLL_SECONDS = 0.01


def start_userspace(link: str) -> None:
    """Start a wireguard-go for the link, one that outlives this program.

    It goes to the background by itself and then belongs to nobody's session. It does stay in
    this program's control group: a systemd unit needs ``KillMode=process``, or stopping the
    agent takes the tunnel down with it. A socket that a killed one has left behind it removes,
    and with better knowledge than ours: a socket is nobody's only once the interface is its own.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise DataplaneError(
            f"interface {link}: the kernel has no WireGuard and there is no {PROGRAM}; "
            f"install the package {PROGRAM} or a kernel with WireGuard"
        )
    # Its variables would keep it in the foreground or tie it to our output.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "LOG_LEVEL" and not name.startswith("WG_")
    }
    # A file and no pipe: the end of a pipe would never come if the daemon kept it.
    with tempfile.TemporaryFile() as complaint:
        status = run_program([program, link], environment, complaint.fileno())
        if status:
            complaint.seek(0)
            raise DataplaneError(
                f"interface {link}: {PROGRAM}: {find_reason(complaint.read(65536))}"
            )


def run_program(command: list[str], environment: dict[str, str], output: int) -> int:
    """The exit status of a program that leaves a daemon behind."""
    try:
        return subprocess.run(  # noqa: S603 - a path of our own finding and a link's name, no shell
            command,
            check=False,
            cwd="/",
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=LIMIT_SECONDS,
        ).returncode
    except (OSError, subprocess.SubprocessError) as error:
        raise DataplaneError(f"{PROGRAM}: cannot be started: {error}") from error


def find_reason(output: bytes) -> str:
    """Why wireguard-go ended: its last ``ERROR: (link) time reason``, among banners."""
    lines = output.decode("utf-8", "replace").splitlines()
    errors = [line for line in lines if line.startswith("ERROR: ")]
    if not errors:
        return "ends without a reason"
    return re.sub(r"^ERROR: \(\S+\) \S+ \S+ ", "", errors[-1]).strip()


def wait_until(condition: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> bool:
    """Look again and again; false if it is still not so after that time.

    Polled: a wireguard-go announces neither its start nor its end.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
