"""The first process of a lab host: makes the host's namespaces, holds them, reaps its orphans.

Run as a file, ``python -I -S boxinit.py --lab=DIR --box=NAME``, so that it starts fast and with
the standard library only. The two arguments are how ``box`` finds it again in ``/proc``. Standard
output gets the process id as the machine sees it and, before or after, ``ready`` or one line saying
what failed.
When this process is killed the kernel ends every other process of the host, and its network.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x4000000, 0x20000000, 0x40000000
MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 4096, 8192, 16384, 1 << 18

SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    # Debian's /usr/lib/sysctl.d/50-default.conf: "all" untouched, each new link loose.
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "2",
    # Addresses are declared in lab.yaml and must be usable at once.
    "net/ipv6/conf/all/accept_ra": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/accept_dad": "0",
}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, operation: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{operation}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    """Call the kernel's mount; raises ``OSError`` naming the target."""
    result = _libc.mount(source.encode(), target.encode(), kind.encode(), flags, None)
    _check(result, f"mount {kind or source} on {target}")


def bind(source: Path, target: Path, *, recursive: bool) -> None:
    """Show ``source`` at ``target`` too, which is made; a symbolic link is copied."""
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    if source.is_dir():
        target.mkdir()
    else:
        target.touch()
    mount(str(source), str(target), "", MS_BIND | (MS_REC if recursive else 0))


def own_mounts() -> None:
    """From here on no mount of ours shows outside, and none made outside shows here.

    The root of a plain chroot is no mount, and cannot be made private. What is mounted below a
    private mount is private, so there the whole tree is shown once more, and that becomes the root.
    """
    try:
        mount("none", "/", "", MS_REC | MS_PRIVATE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    else:
        return
    tree = Path("/proc/root")
    mount("none", "/proc", "", MS_PRIVATE)
    mount("tmpfs", "/proc", "tmpfs")
    tree.mkdir()
    mount("/", str(tree), "", MS_BIND | MS_REC)
    mount("none", str(tree), "", MS_REC | MS_PRIVATE)
    os.chroot(tree)
    os.chdir("/")


def replace_entries(directory: Path, without: set[str], stash: Path, lab: Path) -> None:
    """Put over ``directory`` one of our own that shows all its entries but ``without``.

    So an entry can be made in it, or a file replaced, without touching the machine's own.
    """
    stash.mkdir(exist_ok=True)
    mount("tmpfs", str(stash), "tmpfs")
    stash.chmod(0o755)
    for entry in directory.iterdir():
        if entry.name not in without:
            # A recursive bind of what holds the stash would show the stash inside itself.
            bind(entry, stash / entry.name, recursive=not lab.is_relative_to(entry))
    mount(str(stash), str(directory), "", MS_MOVE)


def prepare_files(lab: Path, name: str) -> None:
    """Give the host the directories of its own that an agent writes to, and its own /etc/hosts."""
    home = lab / "hosts" / name
    disk = home / "disk"
    disk.mkdir(mode=0o700, exist_ok=True)
    own_mounts()
    mount("proc", "/proc", "proc")
    mount("sysfs", "/sys", "sysfs")
    replace_entries(Path("/run"), {"wireguard", "netns"}, home / "stash", lab)
    Path("/run/wireguard").mkdir(mode=0o700)
    # "cni": where plugins note which pod has which address.
    replace_entries(Path("/var/lib"), {"kilo", "cni"}, home / "stash", lab)
    bind(disk, Path("/var/lib/kilo"), recursive=False)
    etc = Path("/etc")
    replace_entries(etc, {"cni", "hosts", "hostname", "resolv.conf"}, home / "stash", lab)
    (etc / "cni/net.d").mkdir(parents=True)
    (etc / "hostname").write_text(f"{name}\n")
    bind(lab / "etc-hosts", etc / "hosts", recursive=False)
    # No name server: a name that is not in /etc/hosts fails at once (the loopback refuses).
    (etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")


def prepare_network() -> None:
    """Forwarding and filters as on a Debian router; must precede the first link."""
    for key, value in SYSCTLS.items():
        path = Path("/proc/sys", key)
        if path.exists():  # a kernel without IPv6 has only the others
            path.write_text(value)


def reap_for_ever() -> None:
    """Collect whatever ends; orphans of the host are ours as its process 1."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        signal.sigwait({signal.SIGCHLD})


def main(arguments: list[str]) -> int:
    """Make the namespaces and become process 1 in them; the first process ends at once."""
    options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    try:
        _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWPID | CLONE_NEWNET), "unshare")
        child = os.fork()
        if child:
            print(child, flush=True)  # noqa: T201 - the protocol with ``box``
            return 0
        socket.sethostname(options["box"])
        prepare_files(Path(options["lab"]), options["box"])
        prepare_network()
    except OSError as error:
        print(error, flush=True)  # noqa: T201 - likewise
        return 1
    print("ready", flush=True)  # noqa: T201 - likewise
    os.chdir("/")
    for descriptor in (1, 2):
        os.dup2(os.open("/dev/null", os.O_RDWR), descriptor)
    reap_for_ever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
