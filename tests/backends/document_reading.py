"""Reading one document in a test, and saying briefly what came of it."""

from __future__ import annotations

from kilo.backends.documents import API_VERSION, Reading, read_document
from kilo.backends.objects import StoredObject
from tests.builders import make_key, make_preshared_key

KEY = str(make_key("a"))
PRESHARED = make_preshared_key("a").reveal()


def read(kind: str, spec: object, *, name: str = "x") -> Reading:
    document = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
    return read_document(document, source="mesh.yaml")


def value_of(reading: Reading) -> StoredObject:
    (found,) = reading.found
    return found.value


def texts(reading: Reading) -> list[str]:
    """Of the problems, without what is the same in all."""
    return [str(problem).removeprefix("mesh.yaml: ") for problem in reading.problems]
