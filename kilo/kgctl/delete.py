"""``kgctl delete``: take nodes, peers and settings out of the store."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

from collections.abc import Sequence

from kilo.backends.base import Backend
from kilo.errors import BackendError
from kilo.flags import BOOL, Flag, Parsed
from kilo.kgctl.apply import read_valid
from kilo.kgctl.objects import Target, identify, list_documents, parse_targets
from kilo.kgctl.reading import FILENAMES
from kilo.kgctl.storing import Usage, UsageError, run_command, tell, work_on_store

WRITABLE = ("node", "peer", "settings")
IGNORE = Flag("ignore-not-found", BOOL, default=False, help="what is not there is no error")

USAGE = Usage(
    command="kgctl delete",
    arguments="KIND NAME... | KIND/NAME... | settings | -f FILE|DIR|-",
    help="Take nodes, peers and settings out of the store.\n\n"
    "Of a node what was declared and what its agent reported goes; an agent that lives reports it\n"
    "anew, so stop that first. A cluster's own Node object stays. Ends with 1 if one is not there.",
    examples=(
        "kgctl delete peer laptop",
        "kgctl delete node/a1 node/a2",
        "kgctl delete -f peer.yaml --ignore-not-found",
    ),
    flags=(FILENAMES, IGNORE),
    first=tuple((word, "") for word in WRITABLE),
    most=None,
)


def run(words: Sequence[str]) -> int:
    """Run the command; its exit status."""
    return run_command(USAGE, words, delete)


def delete(parsed: Parsed) -> int:
    """Find out what is meant, then delete it."""
    targets = find_targets(parsed)
    if targets is None:
        return 1
    return work_on_store(parsed, lambda parsed, backend: delete_all(parsed, backend, targets))


def find_targets(parsed: Parsed) -> list[Target] | None:
    """From the words or the documents; None if those are wrong, once that was said."""
    if bool(parsed.arguments) == bool(parsed.value(FILENAMES)):
        raise UsageError("needs either KIND and NAME, or -f FILE")
    if not parsed.arguments:
        found = read_valid(parsed, undone="deleted")
        return None if found is None else [identify(one) for one in found]
    targets = parse_targets(parsed.arguments, WRITABLE)
    for target in targets:
        if not target.name and target.word != "settings":
            raise UsageError(f"{target.word}: a name is missing")
    return targets


async def delete_all(parsed: Parsed, backend: Backend, targets: Sequence[Target]) -> int:
    """Delete each; what is not there, or the store refuses, stops only itself."""
    snapshot = await backend.snapshot()
    documents = list_documents(snapshot, secrets=False)
    failed = False
    for target in dict.fromkeys(targets):
        is_broken = any(map(target.is_meant, snapshot.problems))
        if target not in documents and not is_broken:
            if not parsed.value(IGNORE):
                tell(f"{target.quoted} is not there")
                failed = True
            continue
        try:
            await delete_one(backend, target)
            if is_broken:
                await check_gone(backend, target)
            print(f"{target.quoted} deleted")
        except BackendError as error:
            tell(f"{target}: {error}")
            failed = True
    return 1 if failed else 0


async def delete_one(backend: Backend, target: Target) -> None:
    """Take it out of the store."""
    match target.word:
        case "node":
            await backend.forget_node(target.name)
        case "peer":
            await backend.delete_peer(target.name)
        case _:
            await backend.forget_settings()


async def check_gone(backend: Backend, target: Target) -> None:
    """``BackendError`` where what cannot be read stands where only a person may change it."""
    after = await backend.snapshot()
    left = [problem for problem in after.problems if target.is_meant(problem)]
    if left:
        raise BackendError(f"is still there, and must be removed by hand: {left[0]}")
