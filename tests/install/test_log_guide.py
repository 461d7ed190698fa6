"""The guide to the log has every line that the agent and the webhook can write, and no others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.install.guide import read_table
from tests.install.machine import ROOT

PACKAGE = ROOT / "kilo"
OTHERS = ("kgctl", "lab", "doctor", "linking")
"""What prints for whoever calls it, on a terminal."""
LEVELS = {"debug": "debug", "info": "info", "warning": "warn", "error": "error"}


def list_sources() -> Iterator[Path]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] not in OTHERS:
            yield path


def list_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The message and the level of every line that a module logs."""
    tree = ast.parse(path.read_text())
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if not isinstance(call.func, ast.Attribute) or not call.args:
            continue
        receiver, method = ast.unparse(call.func.value), call.func.attr
        if method in LEVELS and (receiver.endswith("log") or "get_logger" in receiver):
            level = LEVELS[method]
        elif method == "tell" and receiver.endswith("_notices"):
            level = "warn"
        else:
            continue
        for message in find_texts(call.args[0], tree):
            yield message, level


def find_texts(argument: ast.expr, tree: ast.Module) -> list[str]:
    """A text, or those that the variable is given in the module."""
    match argument:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.Name(id=name):
            given = [
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Assign)
                and any(isinstance(to, ast.Name) and to.id == name for to in node.targets)
            ]
            return [text for value in given for text in find_texts(value, tree)]
    return []


def test_the_guide_has_every_line_that_can_be_logged_with_its_level() -> None:
    logged = {line for path in list_sources() for line in list_lines(path)}
    told = {(message.strip("`"), level) for message, level, _meaning in read_table("The log")}
    assert len(logged) > 20
    assert told == logged
