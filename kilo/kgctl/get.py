"""``kgctl get``: what the store holds, as a table or as documents."""

# ruff: noqa: T201 - printing is what a program for people does

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from kilo.backends.base import Backend
from kilo.backends.documents import make_settings_document
from kilo.flags import BOOL, STRING, Flag, Parsed
from kilo.kgctl.objects import (
    KINDS,
    Document,
    Target,
    is_withheld,
    list_documents,
    parse_targets,
    pluralise,
)
from kilo.kgctl.printing import describe_age, draw_table, render_documents
from kilo.kgctl.storing import Usage, UsageError, run_command, tell, tell_problems, work_on_store
from kilo.mesh.model import IPInterface, IPNetwork, Node, Snapshot

OUTPUT = Flag(
    "output",
    STRING,
    "table",
    "how to print it",
    choices=("table", "name", "yaml", "json"),
    short="o",
)
SHOW_SECRETS = Flag(
    "show-secrets", BOOL, default=False, help="of -o yaml and json: preshared keys, too"
)

USAGE = Usage(
    command="kgctl get",
    arguments="KIND[,KIND] [NAME...] | KIND/NAME...",
    help="Show what the store holds: nodes, peers, settings, and the reports of agents.\n\n"
    "Of a node the table shows what counts: what was declared, else what its agent found.\n"
    "-o yaml and json show documents as kgctl apply takes them.\n"
    "Ends with 1 if a NAME is not there.",
    examples=(
        "kgctl get nodes",
        "kgctl get peer laptop -o yaml",
        "kgctl get nodes,peers,settings -o yaml --show-secrets > mesh.yaml",
    ),
    flags=(OUTPUT, SHOW_SECRETS),
    first=tuple((pluralise(word), "") for word in KINDS),
    least=1,
    most=None,
)


Row = tuple[str, ...]
STORE = "STORE"
"""The last column, where the mesh is written down in several."""


def run(words: Sequence[str]) -> int:
    """Run the command; its exit status."""
    return run_command(USAGE, words, get)


def get(parsed: Parsed) -> int:
    """Find out what is asked for, then print it."""
    wanted = find_wanted(parsed.arguments)
    return work_on_store(parsed, lambda parsed, backend: print_wanted(parsed, backend, wanted))


async def print_wanted(parsed: Parsed, backend: Backend, wanted: Sequence[Target]) -> int:
    """Print it; on standard error, what is wrong in the store."""
    snapshot = await backend.snapshot()
    tell_problems(snapshot)
    documents = list_documents(snapshot, secrets=parsed.value(SHOW_SECRETS))
    chosen = [target for target in documents if is_wanted(target, wanted)]
    show(parsed.value(OUTPUT), chosen, documents, snapshot, is_one=is_one(wanted))
    missing = [target for target in wanted if target.name and target not in documents]
    for target in missing:
        tell(f"{target.quoted} is not there")
    if not chosen and not missing:
        tell(f"no {' and no '.join(pluralise(target.word) for target in wanted)}")
    return 1 if missing else 0


def find_wanted(arguments: Sequence[str]) -> list[Target]:
    """What the words ask for; one without a name is all of its kind."""
    first, *names = arguments
    if "," not in first:
        return parse_targets(arguments, tuple(KINDS))
    if names:
        raise UsageError(f"{first!r} {names[0]!r}: a name is of one kind")
    return [target for word in first.split(",") for target in parse_targets([word], tuple(KINDS))]


def is_wanted(target: Target, wanted: Sequence[Target]) -> bool:
    """Whether it, or all of its kind, is asked for."""
    return target in wanted or Target(target.word) in wanted


def is_one(wanted: Sequence[Target]) -> bool:
    """Whether one object is asked for, which then is no list."""
    return len(wanted) == 1 and (bool(wanted[0].name) or wanted[0].word == "settings")


def show(
    output: str,
    chosen: Sequence[Target],
    documents: Mapping[Target, Document],
    snapshot: Snapshot,
    *,
    is_one: bool,
) -> None:
    """Print what is chosen."""
    if output in ("yaml", "json"):
        if chosen or not is_one:
            shown = [documents[target] for target in chosen]
            print(render_documents(shown, output, as_list=not is_one), end="")
        for target in chosen:
            if is_withheld(documents[target]):
                tell(f"{target}: its preshared key is withheld; --show-secrets shows it")
    elif output == "name":
        for target in chosen:
            print(target)
    else:
        words = dict.fromkeys(target.word for target in chosen)
        print_tables([make_table(word, chosen, snapshot) for word in words])


def print_tables(tables: Sequence[str]) -> None:
    """An empty line between two."""
    if tables:
        print("\n\n".join(tables))


def make_table(word: str, chosen: Sequence[Target], snapshot: Snapshot) -> str:
    """The table of one kind."""
    headings, list_rows = TABLES[word]
    rows = list_rows(snapshot, time.time())
    is_whole = Target(word) in chosen
    shown = [row for row in rows if is_whole or Target(word, row[0]) in chosen]
    if headings[-1] == STORE and not any(row[-1] for row in shown):
        headings, shown = headings[:-1], [row[:-1] for row in shown]
    return draw_table(headings, shown)


# The tables, a row an object; ``now`` is in Unix seconds.


def _list_nodes(snapshot: Snapshot, now: float) -> Iterator[Row]:
    for node in snapshot.nodes:
        yield (
            node.name,
            node.spec.location,
            str(node.endpoint or ""),
            _join(node.internal_ips),
            _join(node.pod_subnets),
            "true" if node.spec.leader else "",
            _describe_last_seen(node, snapshot, now),
            node.origin,
        )


def _list_peers(snapshot: Snapshot, _now: float) -> Iterator[Row]:
    for peer in snapshot.peers:
        networks, endpoint = _join(peer.allowed_ips), str(peer.endpoint or "")
        yield peer.name, str(peer.public_key), networks, endpoint, peer.origin


def _list_reports(snapshot: Snapshot, now: float) -> Iterator[Row]:
    for node in snapshot.nodes:
        if node.report is not None:
            yield (
                node.name,
                str(node.report.public_key),
                str(node.report.endpoint or ""),
                _join(node.report.internal_ips),
                _join(node.report.wireguard_ips),
                node.report.agent,
                _describe_last_seen(node, snapshot, now),
            )


def _list_settings(snapshot: Snapshot, _now: float) -> Iterator[Row]:
    spec = make_settings_document(snapshot.settings)["spec"]
    for name, value in spec.items() if isinstance(spec, dict) else ():
        texts = value if isinstance(value, list) else [value]
        yield name, ",".join(map(_describe_setting, texts))


def _describe_setting(value: object) -> str:
    """A text or number as it is; a mapping, of which no columns can be made, as JSON."""
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _describe_last_seen(node: Node, snapshot: Snapshot, now: float) -> str:
    stamp = snapshot.last_seen.get(node.name)
    return "" if stamp is None else f"{describe_age(now - stamp)} ago"


def _join(values: Iterable[IPInterface | IPNetwork]) -> str:
    return ",".join(map(str, values))


TABLES: Mapping[str, tuple[Row, Callable[[Snapshot, float], Iterator[Row]]]] = {
    "node": (
        (
            "NAME",
            "LOCATION",
            "ENDPOINT",
            "INTERNAL-IP",
            "POD SUBNETS",
            "LEADER",
            "LAST SEEN",
            STORE,
        ),
        _list_nodes,
    ),
    "peer": (("NAME", "PUBLIC KEY", "ALLOWED IPS", "ENDPOINT", STORE), _list_peers),
    "settings": (("SETTING", "VALUE"), _list_settings),
    "report": (
        ("NAME", "PUBLIC KEY", "ENDPOINT", "INTERNAL-IPS", "WIREGUARD-IPS", "AGENT", "LAST SEEN"),
        _list_reports,
    ),
}
