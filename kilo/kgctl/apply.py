"""``kgctl apply``: documents -> the store, all of them valid before the first is written."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

from collections.abc import Sequence

from kilo.backends.base import Backend
from kilo.backends.objects import DeclaredNode, DeclaredSettings, Found
from kilo.errors import BackendError
from kilo.flags import BOOL, Flag, Parsed
from kilo.kgctl.objects import Document, Target, identify, list_documents, make_document
from kilo.kgctl.reading import FILENAMES, read_declarations
from kilo.kgctl.storing import (
    Usage,
    UsageError,
    run_command,
    tell,
    work_on_store,
)
from kilo.mesh.model import Peer, Snapshot

CREATED, CONFIGURED, UNCHANGED = "created", "configured", "unchanged"
DRY_RUN = Flag("dry-run", BOOL, default=False, help="say what would be written, and write nothing")

USAGE = Usage(
    command="kgctl apply",
    arguments="-f FILE|DIR|-",
    help="Write nodes, peers and settings into the store, from YAML or JSON documents.\n\n"
    "All documents are checked before the first is written. An object that is there is replaced\n"
    "whole: a field that its document leaves out is not kept. Ends with 1 if a document is wrong,\n"
    "and then nothing is written, or if the store refuses one.",
    examples=(
        "kgctl apply -f peer.yaml",
        "kgctl apply -f mesh/ --dry-run",
        "kgctl get peer laptop -o yaml --show-secrets | kgctl apply --backend=file -f -",
    ),
    flags=(FILENAMES, DRY_RUN),
)


def run(words: Sequence[str]) -> int:
    """Run the command; its exit status."""
    return run_command(USAGE, words, apply)


def apply(parsed: Parsed) -> int:
    """Read all documents, then write them."""
    found = read_valid(parsed, undone="written")
    if found is None:
        return 1
    return work_on_store(parsed, lambda parsed, backend: write_all(parsed, backend, found))


def read_valid(parsed: Parsed, *, undone: str) -> list[Found] | None:
    """The objects of ``-f``; None if any is wrong, once it was said that nothing is ``undone``."""
    names = parsed.value(FILENAMES)
    if not names:
        raise UsageError("-f: is missing: the documents")
    reading = read_declarations(names, topology_label=parsed.values["topology-label"])
    if reading.problems:
        for problem in reading.problems:
            tell(str(problem))
        tell(f"nothing is {undone}: {len(reading.problems)} problems with the documents")
        return None
    if not reading.found:
        tell(f"nothing is {undone}: no document in {', '.join(names)}")
        return None
    return reading.found


async def write_all(parsed: Parsed, backend: Backend, found: Sequence[Found]) -> int:
    """Write what is not so already; what the store refuses stops only itself."""
    snapshot = await backend.snapshot()
    there = list_documents(snapshot, secrets=True)
    dry_run = parsed.value(DRY_RUN)
    failed = False
    for one in found:
        outcome = judge(one, there, snapshot)
        try:
            if outcome != UNCHANGED and not dry_run:
                await write(backend, one)
        except BackendError as error:
            tell(f"{identify(one)}: {error}")
            failed = True
        else:
            print(f"{identify(one)} {outcome}{' (dry run)' if dry_run else ''}")
    return 1 if failed else 0


def judge(one: Found, there: dict[Target, Document], snapshot: Snapshot) -> str:
    """What writing it comes to. Names do not matter where there is but one."""
    target = identify(one)
    held = there.get(target)
    if held is not None:
        return UNCHANGED if held["spec"] == make_document(one)["spec"] else CONFIGURED
    # What stands there may be so wrong that it counts as absent.
    return CONFIGURED if any(map(target.is_meant, snapshot.problems)) else CREATED


async def write(backend: Backend, one: Found) -> None:
    """Put it into the store, in place of what is there."""
    match one.value:
        case DeclaredNode(name=name, spec=spec):
            await backend.declare_node(name, spec)
        case Peer() as peer:
            await backend.put_peer(peer)
        case DeclaredSettings(settings=settings):
            await backend.declare_settings(settings)
