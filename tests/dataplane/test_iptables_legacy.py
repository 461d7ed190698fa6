"""The program that writes legacy tables, as far as it needs none."""

from __future__ import annotations

import subprocess
import sys

from kilo.dataplane.iptables_legacy import find_library

LOAD = """
import sys

def tell(event, arguments):
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"):
        print(event, arguments)

sys.addaudithook(tell)
from kilo.dataplane.iptables_legacy import import_library
print(import_library().__name__)
"""


def test_to_load_its_library_it_starts_no_program() -> None:
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
    assert done.stdout == "iptc\n"


def test_a_library_that_it_does_not_know_is_searched_for() -> None:
    assert find_library(lambda name: f"lib{name}.so.0", "iptc") == "libiptc.so.0"
