"""Programs that the drivers run: one process for a whole transaction, bounded in time."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass

from kilo.errors import DataplaneError

TIMEOUT_SECONDS = 30.0
"""5,000 networks take a fraction of a second; this is for a host that hardly breathes."""


class MissingToolError(DataplaneError):
    """There is no such program, and so nothing of ours that only it could have made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program, and the Debian package that has it."""

    program: str
    package: str


async def run_tool(tool: Tool, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    """Exit status, output and complaints, in English so that they can be told apart.

    Raises ``MissingToolError``, or ``DataplaneError`` where it cannot be started or has not ended
    in time.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            tool.program,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise MissingToolError(f"{tool.program}: not installed (Debian: {tool.package})") from error
    except OSError as error:
        raise DataplaneError(f"{tool.program}: cannot be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            output, complaint = await process.communicate(stdin.encode())
    except TimeoutError as error:
        raise DataplaneError(f"{tool.program}: no answer within {TIMEOUT_SECONDS:g} s") from error
    finally:
        await _end(process)
    return process.returncode or 0, output.decode(), complaint.decode()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Leave none behind when time is up or the agent stops; its transaction is undone."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def first_line(complaint: str) -> str:
    """What a program complains of, in a line."""
    return complaint.partition("\n")[0].removeprefix("Error: ") or "failed without a word"
