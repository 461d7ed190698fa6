"""``kgctl lab`` as its users meet it: words, output, exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def kgctl(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kilo.kgctl", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "no command"),
        (["nonsense"], "'nonsense' is not a command"),
        (["lab"], "usage: kgctl lab COMMAND"),
        (["lab", "nonsense"], "'nonsense' is not a command"),
        (["lab", "up"], "up: an argument is missing; usage: kgctl lab up DIR"),
        (["lab", "up", "x", "--granularity=tiny"], "--granularity 'tiny': possible values are"),
        (["lab", "check", "-o", "xml"], "--output 'xml': possible values are"),
        (["lab", "kill"], "kill: an argument is missing"),
        (["lab", "kill", "a", "b"], "unexpected argument 'b'"),
        (["lab", "down", "--nmae=x"], "did you mean --name?"),
    ],
)
def test_wrong_usage_ends_with_two(words: list[str], reason: str) -> None:
    done = kgctl(*words)
    assert done.returncode == 2
    assert reason in done.stderr + done.stdout or reason == "no command"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["check"], "there is none; 'kgctl lab up DIR' makes one"),
        (["exec", "a", "--", "true"], "there is none"),
        (["kill", "a"], "there is none"),
        (["up", "/nonexistent"], "/nonexistent/lab.yaml: No such file or directory"),
    ],
)
def test_an_error_is_one_line_and_ends_with_one(words: list[str], line: str, name: str) -> None:
    done = kgctl("lab", words[0], f"--name={name}", *words[1:])
    assert done.returncode == 1
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_and_version_end_with_zero() -> None:
    assert "lab" in kgctl("--help").stdout
    assert kgctl("version").stdout.startswith("kgctl ")
    helped = kgctl("lab", "--help")
    assert helped.returncode == 0
    assert "exec" in helped.stdout


def test_a_lab_is_worked_by_commands_alone(directory: Path, name: str) -> None:
    def lab(command: str, *words: str) -> subprocess.CompletedProcess[str]:
        return kgctl("lab", command, f"--name={name}", *words)

    assert lab("up", str(directory), "--agents=false").returncode == 0
    assert "is up" in lab("up", str(directory), "--agents=false").stderr
    shown = lab("status").stdout
    assert "oregon-1  node           no agent" in shown
    assert "stranger  plain machine  on" in shown
    assert lab("exec", "oregon-1", "--", "hostname").stdout == "oregon-1\n"
    assert lab("exec", "oregon-1", "--", "sh", "-c", "exit 7").returncode == 7
    assert lab("cut", "oregon-1", "oregon-2").returncode == 0
    assert "cut: oregon-1 and oregon-2" in lab("status").stdout
    ping = ("exec", "oregon-2", "--", "fping", "192.168.1.11")
    assert lab(*ping, "--retry=0").returncode == 1
    assert lab("heal").returncode == 0
    assert lab(*ping, "--retry=5").returncode == 0
    assert lab("kill", "home-1").returncode == 0
    assert "home-1    node           off" in lab("status").stdout
    assert "host home-1: is not running" in lab("exec", "home-1", "--", "true").stderr
    assert "no agent is running" in lab("kill", "oregon-1", "--agent").stderr
    checked = lab("check", "-o", "json")
    assert checked.returncode == 1, "no agent runs, so nobody reaches anybody"
    assert json.loads(checked.stdout)["complete"] is False
    assert lab("down").returncode == 0
    assert lab("down").returncode == 0
    assert "there is none" in lab("status").stderr
