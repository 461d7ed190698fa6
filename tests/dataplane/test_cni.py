"""The CNI configuration file: what is set, what stays, and that nobody reads half of it."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from kilo.dataplane.cni import CNIFile, update_config
from kilo.errors import DataplaneError
from tests.builders import networks

SUBNETS = networks("10.2.1.0/24", "fd00:2:1::/64")
RANGES = [[{"subnet": "10.2.1.0/24"}], [{"subnet": "fd00:2:1::/64"}]]

# As Kilo's manifests for kubeadm, bootkube, Typhoon and k3s install it.
CONFLIST: dict[str, Any] = {
    "cniVersion": "0.4.0",
    "name": "kilo",
    "plugins": [
        {
            "name": "kubernetes",
            "type": "bridge",
            "bridge": "kube-bridge",
            "isDefaultGateway": True,
            "forceAddress": True,
            "mtu": 1420,
            "ipam": {"type": "host-local"},
        },
        {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
    ],
}


def update(config: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    update_config(changed, SUBNETS, 1380)
    return changed


def put(path: Path, config: object) -> CNIFile:
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return CNIFile(path)


def test_ranges_and_mtu_are_set_and_all_else_stays() -> None:
    expected = copy.deepcopy(CONFLIST)
    expected["plugins"][0] |= {"ipam": {"type": "host-local", "ranges": RANGES}, "mtu": 1380}
    assert update(CONFLIST) == expected


def test_a_configuration_of_one_plugin_is_updated_too() -> None:
    single = {"cniVersion": "0.4.0", "name": "n", "type": "ptp", "ipam": {"type": "host-local"}}
    assert update(single)["ipam"]["ranges"] == RANGES
    assert update(single)["mtu"] == 1380


def test_an_mtu_is_not_told_to_a_plugin_that_knows_none() -> None:
    assert "mtu" not in update({"type": "loopback", "ipam": {"type": "host-local"}})


def test_ranges_of_the_same_subnets_keep_what_else_they_say() -> None:
    ranges = [[{"subnet": "10.2.1.0/24", "gateway": "10.2.1.9"}], [{"subnet": "fd00:2:1::/64"}]]
    ipam = {"type": "host-local", "ranges": ranges}
    assert update({"type": "bridge", "ipam": ipam})["ipam"] == ipam


@pytest.mark.parametrize(
    "ranges",
    [
        [[{"subnet": "10.2.9.0/24"}]],
        [[{"subnet": "fd00:2:1::/64"}], [{"subnet": "10.2.1.0/24"}]],
        [[{"subnet": "10.2.1.0/24"}, {"subnet": "10.2.7.0/24"}], [{"subnet": "fd00:2:1::/64"}]],
        [],
        "none",
        [[]],
        [None],
    ],
)
def test_other_ranges_are_replaced(ranges: object) -> None:
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": "/run/cni"}
    expected = {"type": "host-local", "ranges": RANGES, "dataDir": "/run/cni"}
    assert update({"type": "bridge", "ipam": ipam})["ipam"] == expected


def test_a_range_in_the_old_spelling_does_not_stay_beside_the_new_ones() -> None:
    ipam = {"type": "host-local", "subnet": "10.2.9.0/24", "gateway": "10.2.9.1", "routes": []}
    expected = {"type": "host-local", "ranges": RANGES, "routes": []}
    assert update({"type": "bridge", "ipam": ipam})["ipam"] == expected


def test_a_file_that_is_right_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "10-kilo.conflist"
    file = put(path, CONFLIST)
    assert file.keep(SUBNETS, 1380)
    before = path.stat()
    assert not file.keep(SUBNETS, 1380)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


def test_mode_and_other_files_stay_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "10-kilo.conflist"
    file = put(path, CONFLIST)
    path.chmod(0o640)
    (tmp_path / "20-other.conf").write_text("theirs")
    file.keep(SUBNETS, 1380)
    assert path.stat().st_mode & 0o7777 == 0o640
    assert sorted(one.name for one in tmp_path.iterdir()) == ["10-kilo.conflist", "20-other.conf"]
    assert (tmp_path / "20-other.conf").read_text() == "theirs"


def test_a_symlink_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "kilo.conflist"
    put(target, CONFLIST)
    link = tmp_path / "10-kilo.conflist"
    link.symlink_to(target)
    assert CNIFile(link).keep(SUBNETS, 1380)
    assert link.is_symlink()
    assert json.loads(target.read_text())["plugins"][0]["mtu"] == 1380


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is not JSON"),
        ('{"plugins": [', "is not JSON"),
        ("[]", "names no plugin with an ipam"),
        ('{"plugins": 5}', "names no plugin with an ipam"),
        ('{"plugins": [{"type": "flannel", "delegate": {}}]}', "names no plugin with an ipam"),
        ('{"plugins": [{"type": "bridge", "ipam": "dhcp"}]}', "names no plugin with an ipam"),
    ],
)
def test_a_file_that_cannot_be_kept_is_left_alone_and_named(
    tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "10-kilo.conflist"
    file = put(path, content)
    with pytest.raises(DataplaneError, match=rf"^CNI configuration {path}: {reason}"):
        file.keep(SUBNETS, 1380)
    assert path.read_text() == content


def test_a_missing_file_is_named_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "10-kilo.conflist"
    with pytest.raises(DataplaneError, match="cannot be read: No such file or directory"):
        CNIFile(path).keep(SUBNETS, 1380)
    assert not path.exists()


def test_a_missing_file_is_made_from_the_template_for_all_to_read(tmp_path: Path) -> None:
    template, path = tmp_path / "template", tmp_path / "net.d" / "10-kilo.conflist"
    put(template, CONFLIST)
    template.chmod(0o600)
    file = CNIFile(path, template)
    assert file.keep(SUBNETS, 1380)
    assert json.loads(path.read_text()) == update(CONFLIST)
    assert path.stat().st_mode & 0o7777 == 0o644
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert json.loads(template.read_text()) == CONFLIST
    assert not file.keep(SUBNETS, 1380)


def test_a_file_that_is_there_is_not_made_anew_whatever_it_says(tmp_path: Path) -> None:
    template, path = tmp_path / "template", tmp_path / "10-kilo.conflist"
    put(template, CONFLIST)
    put(path, "[]")
    with pytest.raises(DataplaneError, match="names no plugin with an ipam"):
        CNIFile(path, template).keep(SUBNETS, 1380)
    assert path.read_text() == "[]"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read: No such file or directory"), ("{}", "names no plugin with an ipam")],
)
def test_a_template_that_cannot_be_used_is_named_and_no_file_is_made(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    template, path = tmp_path / "template", tmp_path / "10-kilo.conflist"
    if content is not None:
        put(template, content)
    with pytest.raises(DataplaneError, match=rf"^CNI configuration {template}: {reason}"):
        CNIFile(path, template).keep(SUBNETS, 1380)
    assert not path.exists()


def test_a_link_that_leads_nowhere_is_left_alone(tmp_path: Path) -> None:
    template, path = tmp_path / "template", tmp_path / "10-kilo.conflist"
    put(template, CONFLIST)
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataplaneError, match="cannot be made: File exists"):
        CNIFile(path, template).keep(SUBNETS, 1380)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["10-kilo.conflist", "template"]


@pytest.mark.parametrize("mtu", [1380, 1400], ids=["nothing to write", "something to write"])
def test_what_a_killed_agent_left_beside_the_file_is_removed(tmp_path: Path, mtu: int) -> None:
    file = put(tmp_path / "10-kilo.conflist", CONFLIST)
    file.keep(SUBNETS, 1380)
    (tmp_path / ".10-kilo.conflist.tmp").write_text('{"plugi')
    file.keep(SUBNETS, mtu)
    assert [one.name for one in tmp_path.iterdir()] == ["10-kilo.conflist"]


# What other networks install; where ours runs beside them, with --cni=false, nobody even looks.
OTHERS: dict[str, dict[str, Any]] = {
    "Flannel": {
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "plugins": [
            {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    },
    "Cilium": {"cniVersion": "0.3.1", "name": "cilium", "plugins": [{"type": "cilium-cni"}]},
}


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_anothers_configuration_is_left_as_it_is(tmp_path: Path, config: dict[str, Any]) -> None:
    path = tmp_path / "10-other.conflist"
    file = put(path, config)
    before = path.read_bytes()
    with pytest.raises(DataplaneError, match="names no plugin with an ipam"):
        file.keep(SUBNETS, 1380)
    assert path.read_bytes() == before


INSTALLED = """\
{
   "cniVersion":"%s",
   "name":"kilo",
   "_comment":"kept by hand",
   "plugins":[
      {
         "name":"kubernetes",
         "type":"bridge",
         "bridge":"kube-bridge",
         "isDefaultGateway":true,
         "forceAddress":true,
         "mtu": 1420,
         "ipam":{
            "type":"host-local"
         }
      },
      {
         "type":"portmap",
         "snat":true,
         "capabilities":{
            "portMappings":true
         }
      }
   ]
}
"""
"""As the manifests for kubeadm, bootkube, Typhoon and k3s have it, of old and of new; and a word of
an administrator's.
"""


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_a_reader_finds_a_distributions_file_whole_and_beside_it_only_what_was_there(
    tmp_path: Path, version: str
) -> None:
    path, other = tmp_path / "10-kilo.conflist", tmp_path / "87-podman.conflist"
    other.write_text("theirs")
    file = put(path, INSTALLED % version)
    done = threading.Event()
    seen: list[str] = []

    def read() -> None:
        while not done.is_set():
            # As runtimes do: every file whose name says that it is one of theirs.
            names = [one for one in tmp_path.iterdir() if one.suffix in (".conf", ".conflist")]
            seen.extend(one.read_text() for one in names)

    reader = threading.Thread(target=read)
    reader.start()
    for mtu in range(1300, 1400):
        assert file.keep(SUBNETS, mtu)
    done.set()
    reader.join()
    wanted = json.loads(INSTALLED % version)
    ours = [json.loads(text) for text in seen if text != "theirs"]
    mtus = {config["plugins"][0]["mtu"] for config in ours}
    assert len(mtus) > 1
    for config in ours[1:]:
        config["plugins"][0] |= {"mtu": 1420, "ipam": {"type": "host-local"}}
        assert config == wanted
        assert json.dumps(config) == json.dumps(wanted), "in the order of the administrator"
    assert "theirs" in seen


def test_a_reader_that_waits_for_the_file_sees_all_of_it_at_once(tmp_path: Path) -> None:
    template, path = tmp_path / "template", tmp_path / "10-kilo.conflist"
    put(template, CONFLIST)
    seen: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            if path.exists():
                seen.append(path.read_text())
                path.unlink()

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        CNIFile(path, template).keep(SUBNETS, 1380)
    done.set()
    reader.join()
    assert seen
    assert {json.loads(text)["plugins"][0]["mtu"] for text in seen} == {1380}
