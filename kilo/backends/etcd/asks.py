"""What is asked of an etcd: requests as values that can say what they are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kilo.backends.documents import is_object_name
from kilo.backends.etcd.library import messages
from kilo.backends.fields import show_name

MAX_SHOWN = 300
"""Characters of a key; a name has at most 253."""
HEX_CHARACTERS = 64
"""Of a WireGuard key in hexadecimal, which no node or peer is named by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request."""

    method: str
    """Service and method: ``KV/Put``."""
    message: Any = field(repr=False)
    """May hold a preshared key."""
    about: str
    """For errors: ``put /kilo/nodes/a1``."""


def show_key(key: str) -> str:
    """A key for a message, whatever is in it."""
    shown = "/".join(map(_show_part, key.split("/")))
    return shown if len(shown) <= MAX_SHOWN else f"{shown[: MAX_SHOWN - 1]}…"


def _show_part(part: str) -> str:
    """Names follow Kubernetes' rule; what does not may be a secret that is out of place."""
    return part if is_object_name(part) and len(part) != HEX_CHARACTERS else show_name(part)


def encode_key(key: str) -> bytes:
    """The reverse of ``decode_key``."""
    return key.encode(errors="surrogateescape")


def decode_key(key: bytes) -> str:
    """Any bytes at all as text, different ones as different text."""
    return key.decode(errors="surrogateescape")


def end_of_prefix(prefix: str) -> bytes:
    """The first key behind all that begin with ``prefix``, which ends in ``/``."""
    begin = encode_key(prefix)
    return begin[:-1] + bytes([begin[-1] + 1])


def get(key: str) -> Ask:
    """The key as it is now: ``.kvs`` has one or none."""
    message = messages.RangeRequest(key=encode_key(key))
    return Ask(method="KV/Range", message=message, about=f"get {show_key(key)}")


def get_prefix(
    prefix: str, *, after: str = "", limit: int = 0, revision: int = 0, keys_only: bool = False
) -> Ask:
    """The keys that begin with ``prefix``, which ends in ``/``, in their order.

    ``after`` is the last key of the page before, ``revision`` the moment in question (0: now).
    """
    message = messages.RangeRequest(
        key=encode_key(after) + b"\0" if after else encode_key(prefix),
        range_end=end_of_prefix(prefix),
        limit=limit,
        revision=revision,
        keys_only=keys_only,
    )
    return Ask(method="KV/Range", message=message, about=f"get all of {show_key(prefix)}")


def put(key: str, value: bytes, *, lease: int = 0) -> Ask:
    """Set the key; with a lease it goes when that does."""
    message = messages.PutRequest(key=encode_key(key), value=value, lease=lease)
    return Ask(method="KV/Put", message=message, about=f"put {show_key(key)}")


def delete(key: str) -> Ask:
    """Remove the key: ``.deleted`` is 1, or 0 where there was none."""
    message = messages.DeleteRangeRequest(key=encode_key(key))
    return Ask(method="KV/DeleteRange", message=message, about=f"delete {show_key(key)}")


def is_absent(key: str) -> Any:
    """A condition: there is no such key."""
    return messages.Compare(
        key=encode_key(key),
        target=messages.Compare.CREATE,
        result=messages.Compare.EQUAL,
        create_revision=0,
    )


def is_unchanged(key: str, revision: int) -> Any:
    """A condition: the key was last changed at that revision; 0: it is not there."""
    return messages.Compare(
        key=encode_key(key),
        target=messages.Compare.MOD,
        result=messages.Compare.EQUAL,
        mod_revision=revision,
    )


_OPERATIONS = {
    "KV/Range": "request_range",
    "KV/Put": "request_put",
    "KV/DeleteRange": "request_delete_range",
}


def transact(
    *,
    when: Sequence[Any],
    then: Sequence[Ask],
    otherwise: Sequence[Ask] = (),
) -> Ask:
    """All of ``then`` in one step if all conditions hold, else all of ``otherwise``.

    It may be asked twice, and the second answer be ``.succeeded == False`` because of the first:
    what then stands there must tell.
    """
    message = messages.TxnRequest(
        compare=when,
        success=[_make_operation(ask) for ask in then],
        failure=[_make_operation(ask) for ask in otherwise],
    )
    about = " and ".join(ask.about for ask in then or otherwise)
    return Ask(method="KV/Txn", message=message, about=about)


def _make_operation(ask: Ask) -> Any:
    return messages.RequestOp(**{_OPERATIONS[ask.method]: ask.message})


def grant(seconds: int) -> Ask:
    """A new lease: ``.ID``. Of one that was granted unheard nothing is left after its time."""
    message = messages.LeaseGrantRequest(TTL=seconds)
    return Ask(method="Lease/LeaseGrant", message=message, about="grant a lease")


def keep_alive(lease: int) -> Ask:
    """The lease runs anew: ``.TTL`` seconds, 0 if it has run out. To be streamed."""
    message = messages.LeaseKeepAliveRequest(ID=lease)
    return Ask(method="Lease/LeaseKeepAlive", message=message, about="renew the lease")


def follow_prefix(prefix: str, *, after_revision: int) -> Ask:
    """Every change below ``prefix`` after that revision. To be streamed."""
    create = messages.WatchCreateRequest(
        key=encode_key(prefix),
        range_end=end_of_prefix(prefix),
        start_revision=after_revision + 1,
        # About every ten minutes: where the watch would resume does not fall behind compactions.
        progress_notify=True,
    )
    message = messages.WatchRequest(create_request=create)
    return Ask(method="Watch/Watch", message=message, about=f"watch {show_key(prefix)}")


def authenticate(username: str, password: str) -> Ask:
    """A token for that user: ``.token``."""
    message = messages.AuthenticateRequest(name=username, password=password)
    return Ask(
        method="Auth/Authenticate", message=message, about=f"log in as {show_name(username)}"
    )
