"""The lab's hosts can be made where the machine is a plain chroot, whose root is no mount."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Everything of this machine once more below a directory, and that as root. The entry that holds
# the directory is not shown recursively, or it would show itself.
ENTER = """
set -e
for entry in /*; do
    shown="$1$entry"
    if [ -L "$entry" ]; then cp -P "$entry" "$shown"
    elif [ -d "$entry" ]; then
        mkdir -p "$shown"
        case "$1" in "$entry"/*) mount --bind "$entry" "$shown" ;;
            *) mount --rbind "$entry" "$shown" ;;
        esac
    fi
done
shift
exec "$@"
"""

PROGRAM = """
import sys
from pathlib import Path
from kilo.lab.box import Box

lab = Path("/lab")
lab.mkdir()
(lab / "etc-hosts").touch()
mounts = Path("/proc/self/mountinfo").read_text()
box = Box(lab, "inner")
box.start()
try:
    print(box.run(["hostname"]).strip())
    print(box.run(["sh", "-c", "pwd; ls /lab; touch /run/mine; echo made"]).split())
finally:
    box.kill()
print(Path("/proc/self/mountinfo").read_text() == mounts, Path("/run/mine").exists())
"""


def test_a_host_can_be_made_in_a_chroot_and_leaves_no_mount(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh", str(root)]
    command += ["chroot", str(root), sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "inner",
        "['/', 'etc-hosts', 'hosts', 'made']",
        "True False",
    ]
