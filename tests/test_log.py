"""The lines that the programs log."""

import asyncio
import base64
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from kilo.errors import ConfigError, DataplaneError
from kilo.log import LEVELS, configure, get_logger, register_secret
from kilo.mesh.keys import PresharedKey, PrivateKey, PublicKey

KEY = PrivateKey(bytes(range(100, 132)))


class Lines(io.StringIO):
    """A stream whose lines are JSON."""

    def read_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def read_one(self) -> dict[str, Any]:
        (line,) = self.read_lines()
        return line


@pytest.fixture
def log_at() -> Callable[[str], Lines]:
    def start(level: str) -> Lines:
        stream = Lines()
        configure(level, stream)
        return stream

    return start


LogAt = Callable[[str], Lines]


def test_a_line_has_time_level_component_and_message_first(log_at: LogAt) -> None:
    stream = log_at("info")
    get_logger("engine").info("pass made", changes=3)
    line = stream.read_one()
    assert list(line) == ["ts", "level", "component", "msg", "changes"]
    assert list(line.values())[1:] == ["info", "engine", "pass made", 3]
    stamp = datetime.fromisoformat(line["ts"])
    assert stamp.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("all", ["debug", "info", "warn", "error"]),
        ("debug", ["debug", "info", "warn", "error"]),
        ("info", ["info", "warn", "error"]),
        ("warn", ["warn", "error"]),
        ("error", ["error"]),
        ("none", []),
    ],
)
def test_a_level_lets_through_itself_and_what_is_worse(
    level: str, expected: list[str], log_at: LogAt
) -> None:
    stream = log_at(level)
    log = get_logger("test")
    for say in (log.debug, log.info, log.warning, log.error):
        say("something")
    assert [line["level"] for line in stream.read_lines()] == expected


def test_nothing_at_all_is_logged_at_none(log_at: LogAt) -> None:
    stream = log_at("none")
    get_logger("test").critical("the end")
    logging.getLogger("asyncio").critical("the end")
    assert stream.getvalue() == ""


def test_an_unknown_level_is_refused_with_the_possible_ones() -> None:
    with pytest.raises(ConfigError, match="'loud': possible values are all, debug") as error:
        configure("loud")
    assert all(level in str(error.value) for level in LEVELS)


def test_configuring_again_changes_loggers_made_before(log_at: LogAt) -> None:
    log = get_logger("test")
    log_at("error")
    stream = log_at("debug")
    log.debug("heard")
    logging.getLogger("other").warning("heard once")
    assert [line["msg"] for line in stream.read_lines()] == ["heard", "heard once"]


# Exceptions


def refuse(text: str) -> None:
    raise DataplaneError(text)


def refuse_and_log(text: str) -> None:
    try:
        refuse(text)
    except DataplaneError:
        get_logger("test").exception("failed", attempt=1)


def test_an_exception_is_one_line_with_type_and_text(log_at: LogAt) -> None:
    stream = log_at("info")
    refuse_and_log("+ route 10.2.1.0/24:\n  File exists")
    line = stream.read_one()
    assert line["level"] == "error"
    assert line["error"] == "DataplaneError: + route 10.2.1.0/24: File exists"
    assert "traceback" not in line


@pytest.mark.parametrize("level", ["debug", "all"])
def test_a_traceback_is_for_those_who_debug(level: str, log_at: LogAt) -> None:
    stream = log_at(level)
    refuse_and_log("refused")
    assert "refuse_and_log" in stream.read_one()["traceback"]


def test_of_a_group_every_member_is_told(log_at: LogAt) -> None:
    stream = log_at("info")
    group = ExceptionGroup("2 of 3 failed", [DataplaneError("this"), OSError("that")])
    get_logger("test").error("pass failed", exc_info=group)
    expected = "ExceptionGroup: 2 of 3 failed: DataplaneError: this; OSError: that"
    assert stream.read_one()["error"] == expected


# Secrets


@pytest.mark.parametrize("level", ["info", "all"])
def test_a_secret_is_redacted_wherever_it_stands(level: str, log_at: LogAt) -> None:
    stream = log_at(level)
    preshared = PresharedKey(bytes(32))
    get_logger("test").info("made", key=KEY, peers={"a": [KEY, (preshared,)]}, text=f"{KEY}")
    line = stream.read_one()
    assert line["key"] == "(redacted)"
    assert line["peers"] == {"a": ["(redacted)", ["(redacted)"]]}
    assert KEY.reveal() not in stream.getvalue()
    assert preshared.reveal() not in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        KEY.reveal(),
        KEY.reveal().rstrip("="),
        KEY.raw.hex(),
        KEY.raw.hex().upper(),
        f"private_key={KEY.raw.hex()}\nlisten_port=51820",
        f"PrivateKey = {KEY.reveal()}",
    ],
)
def test_a_registered_secret_is_kept_out_of_any_text(text: str, log_at: LogAt) -> None:
    register_secret(KEY)
    stream = log_at("all")
    try:
        refuse(text)
    except DataplaneError:
        get_logger("test").exception(f"bad: {text}", detail=text, raw=KEY.raw, **{text: 1})
    logging.getLogger("library").warning("sent %s", text)
    written = stream.getvalue()
    assert written.count("(redacted)") >= 5
    assert base64.b64encode(KEY.raw).decode().rstrip("=") not in written
    assert KEY.raw.hex() not in written.lower()


# Values of every kind


class Unprintable:
    def __str__(self) -> str:
        return "\udcff\n"


def test_whatever_is_logged_comes_out_as_one_line_of_json(log_at: LogAt) -> None:
    stream = log_at("info")
    key = PublicKey.from_bytes(bytes(32))
    get_logger("test").info(
        "100 %s\n\u20ac",
        number=float("nan"),
        key=key,
        keys={key: {1, 2}},
        path="\udcff",
        error=OSError("gone"),
        thing=Unprintable(),
        nothing=None,
    )
    line = stream.read_one()
    assert line["msg"] == "100 %s\n\u20ac"
    assert line["number"] == "nan"
    assert line["keys"] == {str(key): [1, 2]}
    assert (line["error"], line["nothing"]) == ("OSError: gone", None)


def test_lines_of_many_threads_do_not_mix(log_at: LogAt) -> None:
    stream = log_at("info")
    log = get_logger("test")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: log.info("x" * 200, number=number), range(400)))
    assert sorted(line["number"] for line in stream.read_lines()) == list(range(400))


def test_a_reader_that_went_away_does_not_stop_the_program() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    configure("info", stream)
    get_logger("test").info("nobody hears this")
    with pytest.raises(BrokenPipeError):
        stream.close()


# Libraries


def test_what_libraries_log_comes_out_in_the_same_form(log_at: LogAt) -> None:
    stream = log_at("info")
    logging.getLogger("watchdog.observers").warning("lost %d\nevents", 3)
    line = stream.read_one()
    assert (line["level"], line["component"], line["msg"]) == ("warn", "watchdog", "lost 3 events")


@pytest.mark.parametrize(("level", "heard"), [("debug", 0), ("all", 1)])
def test_libraries_debug_messages_are_for_all(level: str, heard: int, log_at: LogAt) -> None:
    stream = log_at(level)
    logging.getLogger("asyncio").debug("using selector")
    assert len(stream.read_lines()) == heard


def test_levels_that_libraries_invent_are_rounded_down(log_at: LogAt) -> None:
    stream = log_at("all")
    for number in (5, 25, 45, 90):
        logging.getLogger("library").log(number, "hm")
    assert [line["level"] for line in stream.read_lines()] == ["debug", "info", "error", "error"]


def test_a_librarys_wrong_arguments_lose_no_message(log_at: LogAt) -> None:
    stream = log_at("info")
    handlers = logging.getLogger().handlers
    handlers[:] = handlers[-1:]  # pytest's own, before ours, fail at this
    logging.getLogger("library").error("%d of 2", "one")
    assert stream.read_one()["msg"].startswith("%d of 2: TypeError")


def test_warnings_of_python_are_lines_too(log_at: LogAt) -> None:
    stream = log_at("info")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old thing", stacklevel=1)
    assert "old thing" in stream.read_one()["msg"]


async def test_what_asyncio_reports_is_a_line(log_at: LogAt) -> None:
    stream = log_at("info")
    context = {"message": "task was destroyed", "exception": OSError("lost")}
    asyncio.get_running_loop().call_exception_handler(context)
    line = stream.read_one()
    assert (line["component"], line["error"]) == ("asyncio", "OSError: lost")


def test_standard_output_is_where_lines_go_by_default() -> None:
    program = "import kilo.log as l; l.configure('info'); l.get_logger('kg').info('hello')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(done.stdout)["msg"] == "hello"
    assert done.stderr == b""
