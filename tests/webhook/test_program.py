"""The command line of ``kg webhook``."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kilo.backends.opening import BackendConfig
from kilo.completion import write_completion
from kilo.kg import COMPLETED
from kilo.webhookflags import WEBHOOK_FLAG_SET, WEBHOOK_FLAGS, parse_webhook_flags
from tests.builders import networks
from tests.webhook.site import ANSWER_SECONDS


def run_kg(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kilo.kg", "webhook", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS
    )


def test_help_shows_every_flag_of_the_webhook() -> None:
    done = run_kg("--help")
    assert done.returncode == 0
    assert [flag.name for flag in WEBHOOK_FLAGS if f"--{flag.name}" not in done.stdout] == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "kg: --cert-file: is missing: API servers speak HTTPS only to a webhook\n"),
        (["--cert-file=c"], "kg: --key-file: is missing: API servers speak HTTPS only"),
        (["--port=51820"], "kg: unknown flag --port"),
        (["validate"], "kg: unexpected argument 'validate'"),
    ],
)
def test_what_it_cannot_do_is_one_line(words: list[str], line: str) -> None:
    done = run_kg(*words)
    assert done.returncode == 1
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_flags_before_its_name_are_refused_with_the_way_to_write_them() -> None:
    command = [sys.executable, "-m", "kilo.kg", "--log-level=debug", "webhook"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS
    )
    assert done.stderr == "kg: webhook: its name comes first, then its flags: kg webhook --help\n"


def test_the_flags_that_agents_have_mean_the_same() -> None:
    words = ["--cert-file=c", "--key-file=k", "--subnet=10.4.0.0/17", "--service-cidr=10.96.0.0/12"]
    config = parse_webhook_flags([*words, "--topology-label=rack"], {"KG_MASTER": "https://m"})
    assert config.settings == {
        "subnets": networks("10.4.0.0/17"),
        "service_cidrs": networks("10.96.0.0/12"),
    }
    assert config.backend == BackendConfig(
        kind="kubernetes", topology_label="rack", master="https://m"
    )
    assert (config.listen, config.listen_metrics) == (":8443", ":1107")


def test_shells_complete_its_flags() -> None:
    for shell in ("bash", "zsh", "fish"):
        script = write_completion(COMPLETED, shell)
        assert [f.name for f in WEBHOOK_FLAG_SET.flags if f.name not in script] == []
