"""A private key on a file system that cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kilo.errors import ConfigError
from kilo.keyfile import generate_private_key, load_or_create_private_key
from tests.kernel.wireguard_hosts import Host


def test_a_key_that_others_can_read_and_we_cannot_hide_is_used_with_a_warning(
    tmp_path: Path,
) -> None:
    key = generate_private_key()
    with Host("host") as host, capture_logs() as logs:
        host.sh(f"mount -t tmpfs tmpfs {tmp_path} && echo {key.reveal()} > {tmp_path}/key")
        host.sh(f"chmod 644 {tmp_path}/key && mount -o remount,ro {tmp_path}")
        assert host.call(load_or_create_private_key, tmp_path / "key") == key
        with pytest.raises(ConfigError, match=r"other: Read-only file system$"):
            host.call(load_or_create_private_key, tmp_path / "other")
    (entry,) = logs
    assert entry["log_level"] == "warning"
    assert entry["path"] == f"{tmp_path}/key"
    assert key.reveal() not in str(entry)
