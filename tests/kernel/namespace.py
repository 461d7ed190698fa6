"""The tools to look at a network namespace without Kilo."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any


class Namespace:
    """The network namespace that the test runs in, as an administrator works with it."""

    def run(self, *command: str, stdin: str | None = None) -> str:
        """The command's output; ``AssertionError`` with its complaint if it fails."""
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
        return done.stdout

    def ip(self, *arguments: str) -> str:
        return self.run("ip", *arguments)

    def ip_json(self, *arguments: str) -> list[dict[str, Any]]:
        found = json.loads(self.run("ip", "-json", *arguments) or "[]")
        return [entry for entry in found if entry]

    def sysctl(self, name: str) -> str:
        return Path("/proc/sys", *name.split("/")).read_text(encoding="ascii").strip()

    def await_output(self, text: str, *command: str, limit_seconds: float = 90.0) -> None:
        """Run the command again and again until it prints the text."""
        ends_at = time.monotonic() + limit_seconds
        while text not in (output := self.run(*command)):
            assert time.monotonic() < ends_at, f"{' '.join(command)}: no {text!r} in {output}"
            time.sleep(0.05)

    def set_sysctl(self, name: str, value: str) -> None:
        Path("/proc/sys", *name.split("/")).write_text(value, encoding="ascii")

    def add_veth(self, name: str, other: str) -> None:
        """A pair, both ends up; stands in wherever any link will do.

        The kernel notices a moment later that they are, and then marks their routes anew.
        """
        self.ip("link", "add", name, "type", "veth", "peer", "name", other)
        for end in (name, other):
            self.ip("link", "set", end, "up")
        for end in (name, other):
            self.await_output("state UP", "ip", "link", "show", "dev", end)

    def delete_links(self) -> None:
        """Every link that can be deleted; a userspace WireGuard ends when its own goes."""
        for link in self.ip_json("link", "show"):
            if link["ifname"] != "lo":
                subprocess.run(
                    ("ip", "link", "delete", link["ifname"]), capture_output=True, check=False
                )
