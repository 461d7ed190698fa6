"""An etcd in boxes of a lab, a member in each: its life, what may befall it, ways to speak to it.

Nothing is remembered, so that every command of ``kgctl lab`` finds the same members.
"""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from kilo.errors import LabError
from kilo.lab.box import Box, find_last_words
from kilo.lab.boxedprogram import BoxedProgram, wait_until_all_serve
from kilo.lab.etcdfiles import EtcdFiles, Member, make_client_flags, make_member_command
from kilo.lab.planefiles import find_program

START_SECONDS = 120.0
"""Members are ready a second after they were started, on an idle machine."""
ANSWER_SECONDS = 3.0
"""How long to wait for members that may be too few."""
PATIENCE_SECONDS = 10.0
"""Others elect a new leader in a second or two."""
RUN_SECONDS = 60.0


class BoxedEtcd:
    """``files`` says what the members are; each runs in the box that has its name."""

    def __init__(self, files: EtcdFiles, boxes: Mapping[str, Box]) -> None:
        self.files = files
        self.boxes = boxes
        self._programs = {member: self._make_program(member) for member in files.members}
        self._etcd, self._etcdctl = find_program("etcd"), find_program("etcdctl")

    def _make_program(self, member: Member) -> BoxedProgram:
        return BoxedProgram(
            self.boxes[member.name],
            [f"--data-dir={self.files.find_data(member)}"],
            name=f"store {member.name}",
            log=self.files.find_log(member),
        )

    # --- its life ---

    def start(self, *names: str) -> None:
        """Start these members, or all that do not run; wait until they serve, if they are enough.

        ``LabError`` quotes the log of one that does not.
        """
        off = [member for member, program in self._programs.items() if not program.running]
        chosen = self._choose(names) if names else off
        if not chosen or not set(chosen) <= set(off):
            raise LabError(f"store{' '.join(('', *names))}: is running")
        for member in chosen:
            command = make_member_command(self.files, member, self._etcd)
            self._programs[member].spawn(command)
        if 2 * len(self._find_awake()) > len(self._programs):
            wait_until_all_serve(
                [self._programs[member] for member in chosen],
                partial(self._serve, chosen),
                name=f"store {', '.join(member.name for member in chosen)}",
                seconds=START_SECONDS,
            )

    def _serve(self, members: Iterable[Member]) -> bool:
        return self._call(("endpoint", "health"), members).returncode == 0

    def kill(self, *names: str) -> None:
        """End these members, or all, at once, as a power cut does; what was written stays."""
        for program in self._choose_programs(names):
            program.kill()

    def freeze(self, *names: str) -> None:
        """Stop these members, or all, where they are: connections stay open and say nothing."""
        for program in self._choose_programs(names):
            program.freeze()

    def thaw(self, *names: str) -> None:
        """Let frozen members, these or all, go on."""
        for program in self._choose_programs(names):
            program.thaw()

    def _choose_programs(self, names: Sequence[str]) -> list[BoxedProgram]:
        return [self._programs[member] for member in self._choose(names)]

    def _choose(self, names: Sequence[str]) -> list[Member]:
        """Those members, or all."""
        known = {member.name: member for member in self._programs}
        for name in names:
            if name not in known:
                raise LabError(f"store {name!r}: is not one of {', '.join(known)}")
        return [known[name] for name in names or known]

    def _find_awake(self) -> list[Member]:
        """The members that run and are not frozen."""
        return [m for m, one in self._programs.items() if one.running and not one.frozen]

    def find_leader(self) -> str:
        """The member that leads; ``LabError`` while none does."""
        words = self._describe_members()
        leader = next((name for name, word in words.items() if word == "leads"), None)
        if leader is None:
            raise LabError(f"store: no member leads: {self.describe()}")
        return leader

    def describe(self) -> str:
        """Where each member is and how it does."""
        words = self._describe_members()
        return ", ".join(f"{one.name} ({one.url}) {words[one.name]}" for one in self._programs)

    def _describe_members(self) -> dict[str, str]:
        """How each member does, in a word or two, by its name."""
        awake = self._find_awake()
        asked = self._call(("endpoint", "status", "--write-out=json"), awake) if awake else None
        # Those that answer are listed even where others do not.
        listed = json.loads(asked.stdout or "[]") if asked else []
        statuses = {one["Endpoint"]: one["Status"] for one in listed}
        return {
            member.name: _describe_member(program, statuses.get(member.url))
            for member, program in self._programs.items()
        }

    # --- ways to speak to it ---

    def etcdctl(self, *words: str, text: str = "") -> str:
        """The output of ``etcdctl``, fed with ``text``; ``LabError`` with its last words."""
        done = self._call(words, self._choose_asked(), text=text)
        if done.returncode:
            raise LabError(f"store: etcdctl {' '.join(words)}: {find_last_words(done)}")
        return done.stdout

    def wrap_etcdctl(self, words: Sequence[str]) -> list[str]:
        """The command that runs ``etcdctl`` as the administrator, with this machine's files."""
        return self._place.wrap_network(self._make_etcdctl(words, self._choose_asked()))

    def _choose_asked(self) -> Sequence[Member]:
        """Those that can answer, lest each command waits for the others first."""
        return self._find_awake() or self.files.members

    def _call(
        self, words: Sequence[str], members: Iterable[Member], *, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        command = self._make_etcdctl(words, members)
        return self._place.call_in_network(command, text=text, timeout=RUN_SECONDS)

    @property
    def _place(self) -> Box:
        """Where etcdctl runs: a box is there whatever has become of the member in it."""
        return next(iter(self.boxes.values()))

    def _make_etcdctl(self, words: Sequence[str], members: Iterable[Member]) -> list[str]:
        limit = f"--command-timeout={ANSWER_SECONDS:g}s"
        flags = make_client_flags(self.files.admin, members)
        return [str(self._etcdctl), *flags, limit, *words]

    def get_prefix(self, prefix: str) -> dict[str, str]:
        """All keys that begin with it, and their values; ``LabError`` if none can be told."""
        answer = json.loads(self.etcdctl("get", "--prefix", prefix, "--write-out=json"))
        pairs = answer.get("kvs", [])
        return {_decode(pair["key"]): _decode(pair.get("value", "")) for pair in pairs}

    def put(self, key: str, text: str) -> None:
        """Write a value; for a while again and again, as what a lost leader was told is lost."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self.etcdctl("put", key, text=text)
            except LabError:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def compact(self) -> int:
        """Forget all history, and return the revision that is left."""
        answer = json.loads(self.etcdctl("get", "/", "--write-out=json"))
        revision = int(answer["header"]["revision"])
        self.etcdctl("compact", "--physical", str(revision))
        return revision


def _describe_member(program: BoxedProgram, status: dict[str, Any] | None) -> str:
    """A member's word, by what it said of itself, if it did."""
    if status is not None:
        leader = status.get("leader", 0)
        if not leader:
            return "has no leader"
        return "leads" if leader == status["header"]["member_id"] else "follows"
    if not program.running:
        return "off"
    return "frozen" if program.frozen else "does not answer"


def _decode(text: str) -> str:
    return base64.b64decode(text).decode(errors="replace")
