"""What every command's ``--help`` promises."""

from __future__ import annotations

import shlex
from importlib import import_module

import pytest

from kilo.kgctl import COMMANDS
from kilo.kgctl.storing import Usage, UsageError
from tests.kgctl.site import Site

USAGES = {
    name: usage
    for name, command in COMMANDS.items()
    if isinstance(usage := getattr(import_module(command.module), "USAGE", None), Usage)
}
EXAMPLES = [(name, example) for name, usage in USAGES.items() for example in usage.examples]


@pytest.mark.parametrize("name", USAGES)
def test_a_command_calls_itself_by_its_name_and_has_examples(name: str) -> None:
    assert USAGES[name].command == f"kgctl {name}"
    assert USAGES[name].examples


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_every_example_is_a_command_line_that_is_understood(name: str, example: str) -> None:
    for part in example.split("|"):
        words = shlex.split(part.partition(">")[0], comments=True)
        if words[:2] == ["kgctl", name]:
            USAGES[name].parse(words[2:], {})


def test_an_argument_too_few_or_too_many_is_refused() -> None:
    usage = Usage(command="kgctl x", arguments="A", help="X.", least=1, most=1)
    for words in ([], ["a", "b"]):
        with pytest.raises(UsageError, match="argument"):
            usage.parse(words, {})


def test_help_of_a_command_can_be_asked_for_in_either_order(site: Site) -> None:
    assert site.run("help", "graph") == site.run("graph", "--help")


def test_every_command_is_listed_and_the_statuses_are_told(site: Site) -> None:
    said = site.run("--help")
    assert said.status == 0
    for name in COMMANDS:
        assert f"\n  {name} " in said.out
    assert "Exit status: 0, done; 1, " in said.out
