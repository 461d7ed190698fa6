"""A private key is made once, agreed on, kept private and never overwritten."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kilo.errors import ConfigError
from kilo.keyfile import (
    generate_private_key,
    load_or_create_private_key,
    load_private_key,
    public_key,
)
from kilo.mesh.keys import PrivateKey

SECRET = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="  # RFC 7748, section 6.1: Alice


def test_a_public_key_is_the_one_of_rfc_7748() -> None:
    assert str(public_key(PrivateKey.parse(SECRET))) == (
        "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
    )


def test_a_generated_key_is_clamped_and_new() -> None:
    keys = {generate_private_key().raw for _ in range(50)}
    assert len(keys) == 50
    assert all(raw[0] & 7 == 0 and raw[31] & 0xC0 == 0x40 for raw in keys)


def test_a_key_is_made_in_private_and_then_kept(tmp_path: Path) -> None:
    path = tmp_path / "kilo" / "key"
    key = load_or_create_private_key(path)
    assert load_or_create_private_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["key"]


def test_programs_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "kilo" / "key"
    with ThreadPoolExecutor(16) as pool:
        keys = list(pool.map(load_or_create_private_key, [path] * 64))
    assert len({key.raw for key in keys}) == 1
    assert [file.name for file in path.parent.iterdir()] == ["key"]


def test_a_key_of_kilos_is_read_with_or_without_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for content in (SECRET, f"{SECRET}\n", f" {SECRET}\r\n"):
        path.write_text(content)
        assert load_or_create_private_key(path) == PrivateKey.parse(SECRET)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "is not base64"),
        (b"not a key", "is not base64"),
        (SECRET[:40].encode(), "is 30 bytes long, a WireGuard key has 32"),
        (f"{SECRET}\n{SECRET}\n".encode(), "is not base64"),
        (b"A" * 43 + b"=", "is all zeros"),
    ],
)
def test_a_broken_file_is_reported_unquoted_and_left_as_it_is(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_or_create_private_key(path)
    assert str(caught.value) == f"private key {path}: {reason}"
    assert caught.value.__cause__ is None
    assert path.read_bytes() == content


def test_permissions_that_are_too_open_are_tightened(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(SECRET)
    path.chmod(0o644)
    load_or_create_private_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_place_that_cannot_hold_a_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"^private key {tmp_path}/file/key: .*file is not a dir"):
        load_or_create_private_key(tmp_path / "file" / "key")
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match=f"^private key {tmp_path}: Is a directory"):
        load_or_create_private_key(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_dangling_link_is_reported_and_not_written_through(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="No such file or directory"):
        load_or_create_private_key(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_key_that_is_only_looked_for_is_neither_made_nor_touched(tmp_path: Path) -> None:
    path = tmp_path / "kilo" / "key"
    with pytest.raises(FileNotFoundError):
        load_private_key(path)
    assert list(tmp_path.iterdir()) == []
    key = load_or_create_private_key(path)
    path.chmod(0o640)
    assert load_private_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
