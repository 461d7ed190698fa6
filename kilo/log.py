"""Logging, set up once: JSON lines by structlog, in which no secret can be printed.

Every line has ``ts`` (RFC 3339, UTC), ``level`` (debug, info, warn or error), ``component`` and
``msg``. What libraries say through the standard library's logging comes out the same way.

Secrets are kept out twice. A value of type ``Secret`` shows itself as redacted wherever it
stands; and the text of every secret that was registered is replaced in the finished line, should
it ever get there as part of some other text, a library's exception say.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from kilo.errors import ConfigError
from kilo.mesh.keys import Secret

LEVELS = ("all", "debug", "info", "warn", "error", "none")
"""What ``--log-level`` may be. ``all`` adds the debug messages of libraries to ``debug``."""

_THRESHOLDS = {
    "all": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "none": logging.CRITICAL,
}

_NAMES = {"warning": "warn", "critical": "error", "exception": "error"}
"""Kilo's names for levels, where they are not those of Python."""

REDACTED = "(redacted)"

# The one global: secrets are the process's, and so is its log.
_secret_texts: set[str] = set()


def get_logger(component: str) -> FilteringBoundLogger:
    """A logger whose lines name the component; may be called before ``configure``."""
    return cast("FilteringBoundLogger", structlog.get_logger(component=component))


def register_secret(secret: Secret) -> None:
    """Keep this key out of every line from now on, in base64 (padded or not) and in hex."""
    # 43 characters carry the 32 bytes, the 44th is padding: without it both forms match.
    _secret_texts.update((secret.reveal().rstrip("="), secret.raw.hex(), secret.raw.hex().upper()))


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send everything from ``level`` on to ``stream``, or standard output; may be called again.

    Raises ``ConfigError`` for a level that does not exist.
    """
    if level not in LEVELS:
        raise ConfigError(f"log level {level!r}: possible values are {', '.join(LEVELS)}")
    threshold = _THRESHOLDS[level]
    structlog.configure(
        processors=[
            _drop_all if level == "none" else _keep,
            _Errors(with_traceback=threshold <= logging.DEBUG),
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            _order,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_LineLoggerFactory(stream if stream is not None else sys.stdout),
        cache_logger_on_first_use=False,
    )
    _route_standard_logging(level)


# From a call to a line


def _keep(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return event


def _drop_all(_logger: WrappedLogger, _method: str, _event: EventDict) -> EventDict:
    raise structlog.DropEvent


class _Errors:
    """Turns ``exc_info`` into one line; the traceback goes with it only where debugging."""

    def __init__(self, *, with_traceback: bool) -> None:
        self._with_traceback = with_traceback

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        error = _find_error(event.pop("exc_info", None))
        if error is not None:
            event["error"] = describe_error(error)
            if self._with_traceback:
                event["traceback"] = "".join(traceback.format_exception(error))
        return event


def _find_error(info: object) -> BaseException | None:
    match info:
        case BaseException():
            return info
        case (_, BaseException() as error, _):
            return error
        case None | False:
            return None
        case _:
            return sys.exc_info()[1]


def describe_error(error: BaseException) -> str:
    """Type and text in one line; of a group, those of its members."""
    if isinstance(error, BaseExceptionGroup):
        members = "; ".join(map(describe_error, error.exceptions))
        return f"{type(error).__name__}: {_one_line(error.message)}: {members}"
    text = _one_line(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _order(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """The fields that every line has come first, under Kilo's names."""
    return {
        "ts": event.pop("ts"),
        "level": _NAMES.get(method, method),
        "component": event.pop("component", "kilo"),
        "msg": event.pop("event", ""),
        **event,
    }


def _render(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    # ASCII, for names of files may hold bytes that are no UTF-8, and the stream any encoding.
    line = json.dumps(_plain(event))
    for text in tuple(_secret_texts):
        line = line.replace(text, REDACTED)
    return line


def _plain(value: object) -> object:
    """The value in JSON's terms. Whatever has no such form is its text: logging never fails."""
    match value:
        case None | bool() | int() | str():
            return value
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case _:
            return _describe(value)


def _describe(value: object) -> object:
    match value:
        case Secret():
            return REDACTED
        case float() if math.isfinite(value):
            return value
        case bytes() | bytearray():
            return value.hex()
        case BaseException():
            return describe_error(value)
        case _:
            return str(value)


class _LineLogger:
    """Writes finished lines whole, whichever thread they come from."""

    def __init__(self, stream: TextIO, lock: threading.Lock) -> None:
        self._stream = stream
        self._lock = lock

    def msg(self, line: str) -> None:
        # A reader that went away (`kg | head`) or a full disk must not stop the agent; closed
        # streams raise ValueError.
        with self._lock, suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = warn = error = critical = exception = msg


class _LineLoggerFactory:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, *_arguments: Any) -> _LineLogger:
        return _LineLogger(self._stream, self._lock)


# The standard library's logging


class _Forward(logging.Handler):
    """Hands records of the standard library's logging to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = _one_line(record.getMessage())
        except Exception as error:  # noqa: BLE001 - a library's wrong arguments must not hurt us
            message = f"{record.msg}: {describe_error(error)}"
        log = get_logger(record.name.partition(".")[0])
        log.log(_round_level(record.levelno), message, exc_info=record.exc_info)


def _round_level(number: int) -> int:
    """The nearest level below that structlog knows; libraries invent their own."""
    return max((known for known in _known_levels() if known <= number), default=logging.DEBUG)


def _known_levels() -> Iterator[int]:
    yield from (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)


def _route_standard_logging(level: str) -> None:
    """Libraries' debug messages are for them who ask for ``all``: asyncio alone writes plenty."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Forward)]:
        root.removeHandler(handler)
    root.addHandler(_Forward())
    root.setLevel(logging.NOTSET if level == "all" else max(logging.INFO, _THRESHOLDS[level]))
    logging.captureWarnings(True)  # noqa: FBT003 - the standard library's signature
