"""``kgctl cluster``: two meshes linked, so that each reaches what the other has, and unlinked."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

from kilo.errors import KiloError
from kilo.flags import Parsed
from kilo.kgctl.clusterend import open_end
from kilo.kgctl.clusterflags import (
    CLEAN_UP,
    CLUSTER_FLAGS,
    DRY_RUN,
    LINK_NAME,
    ONCE,
    EndConfig,
    find_ends,
)
from kilo.kgctl.clusterlink import LinkLoop, Scribe, link_once, look_at_both, unlink
from kilo.kgctl.storing import Usage, UsageError, run_command, tell
from kilo.servicemanager import catch_signals

VERBS = {"link": "keep two meshes linked", "unlink": "take all of a link away"}
USAGE = Usage(
    command="kgctl cluster",
    arguments="link|unlink",
    help="Links two meshes: every leader of each is made a peer of the other, with its cluster's\n"
    "services behind it, and followed when another node leads. Services that are named are\n"
    "mirrored in the other cluster. It runs until Ctrl-C, and the link stays; unlink takes all of\n"
    "it away. Nothing is touched that no link has made.",
    examples=(
        "kgctl cluster link --kubeconfig=a.conf --to-kubeconfig=b.conf",
        (
            "kgctl cluster link --kubeconfig=a.conf --service-cidr=10.43.0.0/16 --service=shop/web"
            " --to-kubeconfig=b.conf --to-service-cidr=10.53.0.0/16"
        ),
        "kgctl cluster link --kubeconfig=a.conf --to-kubeconfig=b.conf --dry-run",
        "kgctl cluster link --name=rack --to-backend=file --to-directory=/etc/kilo/mesh",
        "kgctl cluster unlink --kubeconfig=a.conf --to-kubeconfig=b.conf",
    ),
    flags=CLUSTER_FLAGS,
    first=tuple(VERBS.items()),
    least=1,
    most=1,
)


def run(words: Sequence[str]) -> int:
    """Link or unlink; the exit status."""
    return run_command(USAGE, words, work)


def work(parsed: Parsed) -> int:
    """What the first word says."""
    (verb,) = parsed.arguments
    if verb not in VERBS:
        raise UsageError(f"{verb!r}: is not one of {', '.join(VERBS)}")
    configs = find_ends(parsed)
    if verb == "unlink":
        return asyncio.run(unlink_all(parsed, configs))
    if len(configs) != 2:
        raise UsageError("--to-kubeconfig: is missing, or another --to- flag: the other mesh")
    return asyncio.run(link(parsed, configs))


async def link(parsed: Parsed, configs: Sequence[EndConfig]) -> int:
    """Once, or until a signal."""
    name, dry_run = parsed.value(LINK_NAME), parsed.value(DRY_RUN)
    scribe = Scribe(say, dry_run=dry_run)
    async with AsyncExitStack() as opened:
        one, other = [await opened.enter_async_context(open_end(c, name)) for c in configs]
        if parsed.value(ONCE) or dry_run:
            return report(await link_once(name, one, other, scribe, tell))
        await look_at_both(name, one, other, tell)
        stop = catch_signals()
        await LinkLoop(name, (one, other), scribe=scribe, tell=tell).run(stop)
        if parsed.value(CLEAN_UP):
            ends = one, other
            return report([line for end in ends for line in await unlink(name, end, scribe, tell)])
    return 0


async def unlink_all(parsed: Parsed, configs: Sequence[EndConfig]) -> int:
    """At every end that is named."""
    name = parsed.value(LINK_NAME)
    scribe = Scribe(say, dry_run=parsed.value(DRY_RUN))
    failures: list[str] = []
    for config in configs:
        # Each by itself: the other may be gone for good, credentials and all.
        try:
            async with open_end(config, name) as end:
                failures += await unlink(name, end, scribe, tell)
        except KiloError as error:
            failures.append(f"{config.label}: {error}")
    return report(failures)


def say(line: str) -> None:
    """What is written, where a program may read it at once."""
    print(line, flush=True)


def report(failures: Sequence[str]) -> int:
    """Tell them; the exit status."""
    for line in failures:
        tell(line)
    return 1 if failures else 0
