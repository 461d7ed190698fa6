"""The package ``etcd3``, of which we use the messages and stubs, imported so that it works.

Its messages were generated for protobuf 3. Newer ones accept them in their implementation in
Python only, which is chosen by a variable of the environment at protobuf's first import.
Importing this module takes 0.15 s and 36 MB: only ``kilo/backends/etcd`` does.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kilo.errors import ConfigError

_NEEDED = {
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
    # Its C core would write lines of its own on standard error; what fails we say ourselves.
    "GRPC_VERBOSITY": "NONE",
}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables set, and put back afterwards: programs that we start inherit them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _import_library() -> tuple[Any, Any, Any]:
    try:
        with _environment(_NEEDED), warnings.catch_warnings():
            # Thousands, at each start: how the messages were generated is outdated.
            warnings.simplefilter("ignore", DeprecationWarning)
            messages = importlib.import_module("etcd3.etcdrpc")
            pairs = importlib.import_module("etcd3.etcdrpc.kv_pb2")
            grpc = importlib.import_module("grpc")
            importlib.import_module("grpc.aio").init_grpc_aio()  # reads the environment too
    except ImportError as error:
        raise ConfigError(f"--backend=etcd: the package etcd3 is not usable: {error}") from error
    except TypeError as error:
        # "Descriptors cannot be created directly", and fifteen lines of advice.
        raise ConfigError(
            "--backend=etcd: the package etcd3 is not usable: protobuf is loaded in this process"
            " already, and not in its implementation in Python"
        ) from error
    return messages, pairs, grpc


messages, pairs, grpc = _import_library()
"""The requests, answers and stubs; keys, values and events; the library that carries them."""
