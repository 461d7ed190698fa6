"""What every command's ``--help`` promises."""

from __future__ import annotations

import shlex
from importlib import import_module

import pytest

from kilo.kgctl import COMMANDS
from kilo.kgctl.storing import Usage, UsageError

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
