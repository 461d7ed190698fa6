"""Containers of a pod's spec, run by a real runtime as a kubelet would have them run.

With the mounts, the variables, the capabilities and the read-only paths of the spec, in a network
of the test's own. What is in the container's file system is this machine's programs and this tree.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from tests.cluster.overlays import Document, make_environment, make_words
from tests.kernel.wireguard_hosts import Host

TREE = Path(__file__).parents[2]
ENTRYPOINT = ["/opt/bin/kg"]
PATH = "/opt/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ACCOUNT_DIRECTORY = "/var/run/secrets/kubernetes.io/serviceaccount"
SHARED = ("/proc/sys/net", "/dev/net/tun")
"""Paths of a host that are of its kernel, and not on its disk."""
DIRECTORY, FILE = ("DirectoryOrCreate", "FileOrCreate")
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
PRIVILEGES = (
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE"),
    *("NET_RAW", "SETGID", "SETUID", "SYS_ADMIN", "SYS_MODULE"),
)
"""Of a privileged container; it has others, which no program here could use."""
DEFAULTS = (
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD"),
    *("NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
)
"""Of a container whose manifest says nothing."""
NAMESPACES = ("pid", "mount", "ipc", "uts")
"""Not the network, which is the host's."""
END_SECONDS = 60.0


class Node:
    """A host of a cluster: a network, a disk, and what the kubelet mounts into its pods."""

    def __init__(self, host: Host, directory: Path, *, server: tuple[str, int]) -> None:
        """``server``: the API server's Service, as every pod is told of it."""
        self.host = host
        self._server = {
            "KUBERNETES_SERVICE_HOST": server[0],
            "KUBERNETES_SERVICE_PORT": str(server[1]),
        }
        self.disk = directory / "disk"
        self.root = directory / "root"
        self._bundles = directory / "bundles"
        self._maps: dict[str, Mapping[str, str]] = {}
        self._account = directory / "account"
        for made in (self.disk, self._bundles, self._account):
            made.mkdir()
        self._make_root()

    def _make_root(self) -> None:
        """The image: programs of this machine, and a ``kg`` of this tree."""
        for name in ("usr", "opt/bin", "opt/cni/bin", "opt/tree", "opt/venv", "etc/alternatives"):
            (self.root / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.root / name).symlink_to(f"usr/{name}")
        (self.root / "run").mkdir()
        (self.root / "var").mkdir()
        (self.root / "var/run").symlink_to("/run")
        kg = self.root / "opt/bin/kg"
        kg.write_text('#!/bin/sh\nexec /opt/venv/bin/python -m kilo.kg "$@"\n')
        kg.chmod(0o755)

    def put_account(self, files: Mapping[str, str]) -> None:
        """What proves to the API server who a pod is."""
        _write(self._account, files)

    def put_data(self, name: str, data: Mapping[str, str]) -> None:
        """A ConfigMap or Secret; no two have the same name here."""
        self._maps[name] = data

    def run(self, pod: Document, name: str) -> Container:
        """Start one of its containers."""
        containers = [*pod.get("initContainers", ()), *pod["containers"]]
        (spec,) = (one for one in containers if one["name"] == name)
        bundle = self._bundles / str(len(list(self._bundles.iterdir())))
        bundle.mkdir()
        volumes = {one["name"]: self._find_volume(one, bundle) for one in pod.get("volumes", ())}
        mounts = [
            _bind(volumes[one["name"]], one["mountPath"], writable=not one.get("readOnly"))
            for one in spec.get("volumeMounts", ())
        ]
        if pod.get("automountServiceAccountToken", True):
            mounts.append(_bind(self._account, ACCOUNT_DIRECTORY))
        environment = self._server | make_environment(spec, self._maps)
        config = make_config(spec, environment, self.root, mounts)
        (bundle / "config.json").write_text(json.dumps(config, indent=1))
        return Container(self.host, bundle)

    def _find_volume(self, volume: Document, bundle: Path) -> Path:
        if "hostPath" in volume:
            return self._find_on_disk(volume["hostPath"])
        made = bundle / "volumes" / str(volume["name"])
        made.mkdir(parents=True)
        source = volume.get("configMap") or volume.get("secret")
        if source:
            data = self._maps[source.get("name") or source["secretName"]]
            items = source.get("items", [{"key": key, "path": key} for key in data])
            _write(made, {one["path"]: data[one["key"]] for one in items})
        return made

    def _find_on_disk(self, wanted: Document) -> Path:
        """A path of the host; one that is to be there must be."""
        if wanted["path"] in SHARED:
            return Path(wanted["path"])
        path = self.disk / str(wanted["path"]).removeprefix("/")
        kind = wanted.get("type", DIRECTORY)
        if kind == FILE:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        elif kind == DIRECTORY:
            path.mkdir(parents=True, exist_ok=True)
        assert path.exists(), wanted
        return path


class Container:
    """Running from the start; ended as a kubelet ends it, or when the test is over."""

    def __init__(self, host: Host, bundle: Path) -> None:
        self._state = bundle / "state"
        self._name = f"{host.name}-{bundle.name}"
        self._log = bundle / "log"
        command = ["runc", f"--root={self._state}", "run", f"--bundle={bundle}", self._name]
        with self._log.open("wb") as log:
            self._process = host.call(
                lambda: subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._call("kill", self._name, "KILL")
            self._process.wait(END_SECONDS)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        """Its exit status."""
        return self._process.wait(END_SECONDS)

    def end(self) -> int:
        """As a kubelet does, by SIGTERM; the exit status."""
        assert self._call("kill", self._name, "TERM") == 0
        return self.wait()

    def execute(self, *command: str) -> int:
        """The exit status of a command inside."""
        return self._call("exec", self._name, *command)

    def read_log(self) -> str:
        return self._log.read_text()

    def _call(self, *words: str) -> int:
        command = ["runc", f"--root={self._state}", *words]
        return subprocess.run(
            command, check=False, capture_output=True, timeout=END_SECONDS
        ).returncode


def make_config(
    container: Document, environment: Mapping[str, str], root: Path, mounts: list[Document]
) -> Document:
    """The runtime's document of a container, as CRI's runtimes write it; without a seccomp
    profile, which each has of its own.
    """
    context = container.get("securityContext", {})
    privileged = context.get("privileged", False)
    variables = {"PATH": PATH, "PYTHONPATH": "/opt/tree"} | dict(environment)
    capabilities = sorted(list_capabilities(context))
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(root), "readonly": context.get("readOnlyRootFilesystem", False)},
        "mounts": [*list_kernel_mounts(privileged=privileged), *list_programs(), *mounts],
        "process": {
            "user": {"uid": context.get("runAsUser", 0), "gid": context.get("runAsGroup", 0)},
            "args": [*container.get("command", ENTRYPOINT), *make_words(container, environment)],
            "env": [f"{name}={value}" for name, value in variables.items()],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": not context.get("allowPrivilegeEscalation", True),
        },
        "linux": {
            "namespaces": [{"type": kind} for kind in NAMESPACES],
            "readonlyPaths": [] if privileged else list(READ_ONLY),
            "resources": {"devices": [{"allow": privileged, "access": "rwm"}]},
        },
    }


def list_capabilities(context: Document) -> Iterator[str]:
    if context.get("privileged"):
        yield from (f"CAP_{name}" for name in PRIVILEGES)
        return
    asked = context.get("capabilities", {})
    dropped = set(DEFAULTS if asked.get("drop") == ["ALL"] else asked.get("drop", ()))
    yield from (f"CAP_{name}" for name in {*DEFAULTS} - dropped | {*asked.get("add", ())})


def list_kernel_mounts(*, privileged: bool) -> Iterator[Document]:
    """What every container has; the host's devices only if it is privileged."""
    yield {"destination": "/proc", "type": "proc", "source": "proc"}
    yield {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
    yield {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}
    options = ["nosuid", "noexec", "nodev", "ro"]
    yield {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": options}
    if privileged:
        yield _bind(Path("/dev/net/tun"), "/dev/net/tun", writable=True)


def list_programs() -> Iterator[Document]:
    """What an image has in it."""
    yield _bind(Path("/usr"), "/usr")
    for path in ("/etc/alternatives", "/etc/ld.so.cache"):
        yield _bind(Path(path), path)
    yield _bind(Path("/usr/lib/cni"), "/opt/cni/bin")
    yield _bind(TREE / "kilo", "/opt/tree/kilo")
    yield _bind(Path(sys.prefix), "/opt/venv")
    if not sys.base_prefix.startswith("/usr"):
        yield _bind(Path(sys.base_prefix), sys.base_prefix)


def _bind(source: Path, destination: str, *, writable: bool = False) -> Document:
    options = ["rbind", "rprivate", "rw" if writable else "ro"]
    return {"destination": destination, "type": "bind", "source": str(source), "options": options}


def _write(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (directory / name).write_text(text)
