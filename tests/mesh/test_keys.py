"""Keys: what is one, and that a secret one never shows itself."""

from __future__ import annotations

import base64
import io
import logging
import pickle
import pprint
import traceback
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import pytest

from kilo.mesh.diff import Change, diff
from kilo.mesh.keys import WITHHELD, PresharedKey, PrivateKey, PublicKey, Secret
from kilo.mesh.model import Settings, Snapshot
from kilo.mesh.state import DataplaneState, WireGuardPeer
from kilo.mesh.topology import build_topology
from kilo.mesh.wgconf import PeerConf, parse_conf, render_conf
from tests.builders import make_key, make_preshared_key
from tests.mesh.fleets import make_node, make_peer, nets, render_node

SECRET = make_preshared_key("squat")
NODES = [make_node("a", internal="192.168.1.1/24")]
PEERS = [make_peer("squat", "10.5.0.1/32", preshared=SECRET)]
WIREGUARD_PEER = WireGuardPeer(
    link="kilo0", public_key=make_key("squat"), allowed_ips=frozenset(), preshared_key=SECRET
)
STATE = render_node("a", NODES, PEERS)
HOLDERS = {
    "a preshared key": SECRET,
    "a private key": PrivateKey(SECRET.raw),
    "a peer": PEERS[0],
    "a snapshot": Snapshot(peers=tuple(PEERS)),
    "a topology": build_topology(NODES, PEERS, Settings()),
    "a WireGuard peer": WIREGUARD_PEER,
    "a dataplane state": STATE,
    "a change": Change(new=WIREGUARD_PEER),
    "all changes": diff(DataplaneState(), STATE),
    "a peer's configuration": PeerConf(
        public_key=make_key("squat"), allowed_ips=(), preshared_key=SECRET
    ),
}


def _log(value: object) -> str:
    stream = io.StringIO()
    logger = logging.getLogger("kilo.tests.keys")
    logger.propagate = False
    logger.handlers = [logging.StreamHandler(stream)]
    logger.error("%s %r", value, value)
    return stream.getvalue()


def _raise(value: object) -> str:
    return "".join(traceback.format_exception(ValueError(value)))


SHOWN: dict[str, Callable[[object], str]] = {
    "str": str,
    "repr": repr,
    "format": format,
    "percent": lambda value: f"{value} {value!r} {value!s} {value:}",
    "pprint": pprint.pformat,
    "log": _log,
    "exception": _raise,
    "set": lambda value: repr([value, {"key": value}]),
}


def find_secret(text: str, secret: Secret = SECRET) -> bool:
    """Whether a text holds the key in any of the forms it is likely to leak in."""
    forms = (secret.reveal(), secret.raw.hex(), repr(secret.raw)[2:-1], str(list(secret.raw)))
    return any(form in text for form in forms)


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_a_secret_is_never_shown(holder: object, show: Callable[[object], str]) -> None:
    assert not find_secret(show(holder))


def test_the_search_for_secrets_finds_one_that_is_shown() -> None:
    assert all(map(find_secret, (SECRET.reveal(), SECRET.raw.hex(), repr(SECRET.raw))))


def test_a_changed_preshared_key_is_said_to_be_there_and_no_more() -> None:
    other = replace(WIREGUARD_PEER, preshared_key=make_preshared_key("other"))
    before = DataplaneState(peers=frozenset({WIREGUARD_PEER}))
    text = str(diff(before, DataplaneState(peers=frozenset({other}))))
    assert text == (
        f"~ peer {make_key('squat')} dev kilo0 allowed-ips (none) preshared-key (hidden)"
    )


@pytest.mark.parametrize("kind", [PublicKey, PresharedKey, PrivateKey])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("not a key!", "is not base64", id="no base64"),
        pytest.param("schlüssel", "is not base64", id="no ASCII"),
        pytest.param("", "is 0 bytes long, a WireGuard key has 32", id="empty"),
        pytest.param(base64.b64encode(bytes(31)).decode(), "is 31 bytes long", id="short"),
        pytest.param(base64.b64encode(bytes(33)).decode(), "is 33 bytes long", id="long"),
        pytest.param(SECRET.reveal()[:-1], "is not base64", id="no padding"),
        pytest.param(SECRET.reveal() + "\n", "is not", id="a newline after it"),
        pytest.param("A" * 42 + "B=", "is not canonical base64", id="stray bits at the end"),
        pytest.param(
            base64.urlsafe_b64encode(b"\xff" * 32).decode(), "is not base64", id="the URL alphabet"
        ),
    ],
)
def test_what_is_no_key_is_refused_without_being_quoted(
    kind: type[PublicKey | Secret], text: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        kind.parse(text)
    shown = "".join(traceback.format_exception(caught.value, chain=True))
    assert not text.strip() or text.strip() not in str(caught.value)
    assert not find_secret(shown)
    assert caught.value.__cause__ is None


def test_a_secret_hands_itself_on_when_it_is_asked_to() -> None:
    assert PresharedKey.parse(SECRET.reveal()) == SECRET
    assert PrivateKey.parse(SECRET.reveal()).raw == SECRET.raw


def test_secrets_of_two_kinds_are_never_equal() -> None:
    assert len({PrivateKey(SECRET.raw), PresharedKey(SECRET.raw), SECRET}) == 2


def test_a_secret_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError) as caught:
        SECRET.raw = bytes(32)  # type: ignore[misc]  # that it is refused is the test
    assert not find_secret(str(caught.value))


def test_a_public_key_is_its_text_and_its_bytes() -> None:
    key = make_key("a")
    assert PublicKey.parse(str(key)) == key == PublicKey.from_bytes(key.to_bytes())


def test_a_withheld_key_is_not_mistaken_for_another() -> None:
    assert pickle.loads(pickle.dumps(WITHHELD)) == WITHHELD
    assert str(WITHHELD) == "Withheld()"


def test_only_the_configuration_of_a_device_holds_a_preshared_key() -> None:
    conf = parse_conf(f"[Peer]\nPublicKey={make_key('a')}\nPresharedKey={SECRET.reveal()}\n")
    assert find_secret(render_conf(conf))
    assert not find_secret(repr(conf))


@pytest.mark.parametrize("line", ["PresharedKey = {}x", "PublicKey = {}x", "Oops {}", "{}"])
def test_a_configuration_that_cannot_be_read_is_refused_without_quoting_keys(line: str) -> None:
    text = f"[Peer]\n{line.format(SECRET.reveal())}\nAllowedIPs = {nets('10.5.0.1/32')[0]}\n"
    with pytest.raises(ValueError, match=r"line [12]") as caught:
        parse_conf(text)
    assert not find_secret("".join(traceback.format_exception(caught.value)))
