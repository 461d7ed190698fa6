"""Flags and kubeconfig files: which server, which credentials, and what is wrong with them."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from kilo.backends.kubernetes.credentials import (
    Access,
    Credentials,
    check_access,
    load_credentials,
)
from kilo.backends.kubernetes.execplugin import run_plugin
from kilo.backends.kubernetes.kubeconfig import Section
from kilo.backends.readfiles import ReadFiles
from kilo.errors import BackendError, ConfigError
from kilo.lab.certificates import Authority
from tests.backends.fakeapi import make_kubeconfig

SERVER = {"server": "https://192.168.0.1:6443"}


def load(kubeconfig: str, **how: Any) -> Credentials:
    return load_credentials(Access(kubeconfig=kubeconfig, **how), ReadFiles("kubernetes"))


def encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config"


# Users


@pytest.mark.parametrize(
    ("user", "authorization"),
    [
        ({}, ""),
        ({"token": " abc\n"}, "Bearer abc"),
        ({"tokenFile": "token"}, "Bearer from-file"),
        ({"tokenFile": "token", "token": "abc"}, "Bearer from-file"),
        ({"username": "a", "password": "b"}, "Basic YTpi"),
    ],
)
def test_who_we_are_is_told_in_each_way_a_kubeconfig_has(
    config: Path, user: dict[str, str], authorization: str
) -> None:
    (config.parent / "token").write_text("from-file\n")
    loaded = load(make_kubeconfig(config, cluster=SERVER, user=user))
    assert loaded.authorization == authorization


def test_a_context_without_a_user_is_nobody(config: Path) -> None:
    document = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a"}}],
        "clusters": [{"name": "a", "cluster": SERVER}],
        "users": None,
    }
    config.write_text(json.dumps(document))
    assert load(str(config)).authorization == ""


def test_what_is_given_as_data_wins_over_files(config: Path) -> None:
    authority = Authority.create()
    issued = authority.issue_client("kilo")
    user = {
        "client-certificate-data": encode(issued.certificate.encode()),
        "client-certificate": "not-there",
        "client-key-data": encode(issued.key.encode()),
        "client-key": "not-there",
    }
    cluster = SERVER | {
        "certificate-authority-data": encode(authority.certificate.encode()),
        "certificate-authority": "not-there",
    }
    loaded = load(make_kubeconfig(config, cluster=cluster, user=user))
    assert loaded.authorities.decode() == authority.certificate
    assert loaded.certificate.decode() == issued.certificate
    assert loaded.key.decode() == issued.key


def test_what_people_write_between_certificates_is_left_out(config: Path) -> None:
    one, two = (Authority.create().certificate for _ in range(2))
    (config.parent / "ca.crt").write_bytes(f"# Prüfstelle\n{one}\n# {two}".encode("latin-1"))
    cluster = SERVER | {"certificate-authority": "ca.crt"}
    loaded = load(make_kubeconfig(config, cluster=cluster, user={}))
    assert loaded.authorities.decode() == one + two


def test_no_secret_is_in_the_text_of_credentials(config: Path) -> None:
    issued = Authority.create().issue_client("kilo")
    user = {
        "token": "s3cr3t",
        "client-certificate-data": encode(issued.certificate.encode()),
        "client-key-data": encode(issued.key.encode()),
    }
    shown = repr(load(make_kubeconfig(config, cluster=SERVER, user=user)))
    assert "s3cr3t" not in shown
    assert "PRIVATE" not in shown


# Files


def test_of_several_files_the_first_that_names_a_thing_wins(config: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "token").write_text("of-other")
    first = {
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "clusters": [{"name": "a", "cluster": {"server": "https://192.168.0.1"}}],
    }
    second = {
        "current-context": "a",
        "clusters": [{"name": "a", "cluster": {"server": "https://192.168.0.2"}}],
        "users": [{"name": "a", "user": {"tokenFile": "token"}}],
    }
    third = {"current-context": "b"}
    files = [config, tmp_path / "missing", tmp_path / "other" / "config", tmp_path / "third"]
    for path, document in zip(files, (first, None, second, third), strict=True):
        if document:
            path.write_text(json.dumps(document))
    loaded = load(":".join(map(str, files)))
    assert loaded.server == "https://192.168.0.1"
    assert loaded.authorization == "Bearer of-other", "relative to the file that names it"


def test_every_file_that_was_read_is_watched(config: Path) -> None:
    (config.parent / "token").write_text("one")
    files = ReadFiles("kubernetes")
    access = Access(kubeconfig=make_kubeconfig(config, cluster=SERVER, user={"tokenFile": "token"}))
    load_credentials(access, files)
    assert not files.have_changed()
    new = config.parent / "new"
    new.write_text("two")
    new.rename(config.parent / "token")
    assert files.have_changed()


def test_a_file_that_is_missing_is_watched_for(config: Path) -> None:
    files = ReadFiles("kubernetes")
    access = Access(kubeconfig=make_kubeconfig(config, cluster=SERVER, user={"tokenFile": "token"}))
    with pytest.raises(BackendError, match=f"token file {config.parent}/token: cannot be read"):
        load_credentials(access, files)
    assert not files.have_changed()
    (config.parent / "token").write_text("one")
    assert files.have_changed()


# Servers


@pytest.mark.parametrize(
    ("access", "server"),
    [
        ({"master": "https://192.168.0.9:1/"}, "https://192.168.0.9:1"),
        ({"master": "192.168.0.9:8080"}, "http://192.168.0.9:8080"),
        ({"master": "https://[2001:db8::9]:1/prefix/"}, "https://[2001:db8::9]:1/prefix"),
    ],
)
def test_a_master_alone_is_talked_to_without_credentials(
    access: dict[str, str], server: str
) -> None:
    assert load_credentials(Access(**access), ReadFiles("kubernetes")) == Credentials(server=server)  # type: ignore[arg-type]  # two of its fields are text


def test_a_master_overrides_the_server_of_a_kubeconfig(config: Path) -> None:
    path = make_kubeconfig(config, cluster=SERVER, user={"token": "abc"})
    loaded = load(path, master="192.168.0.9:1")
    assert (loaded.server, loaded.authorization) == ("https://192.168.0.9:1", "Bearer abc")


def test_the_address_of_a_pods_server_may_be_ipv6(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "2001:db8::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    (tmp_path / "token").write_text("abc")
    (tmp_path / "ca.crt").write_text(Authority.create().certificate)
    loaded = load_credentials(Access(service_account=tmp_path), ReadFiles("kubernetes"))
    assert loaded.server == "https://[2001:db8::1]:443"


# What is wrong is said at the start, by the place where it stands


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "current-context: is not set"),
        ("{", "is not YAML: did not find expected node content"),
        ("[]", "is not a mapping"),
        ("\0", "is not YAML: control characters are not allowed"),
        ("current-context: 7", "current-context: is not text"),
        ("current-context: a", "contexts: has no 'a', which the current context names"),
        ("{current-context: a, contexts: b}", "contexts: is not a list"),
        ("{current-context: a, contexts: [b]}", r"contexts\[0\]: is not a mapping"),
        (
            "{current-context: a, contexts: [{name: a, context: {cluster: b}}]}",
            "clusters: has no 'b'",
        ),
    ],
)
def test_a_kubeconfig_that_makes_no_sense_is_refused_at_the_start(
    config: Path, text: str, fault: str
) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError, match=fault) as caught:
        check_access(Access(kubeconfig=str(config)))
    assert str(caught.value).startswith(f"kubernetes: kubeconfig {config}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cluster", "user", "fault"),
    [
        ({}, {}, r"clusters\[there\].cluster.server: is not an http or https URL with a host"),
        ({"server": "ftp://a"}, {}, r"clusters\[there\].cluster.server: is not an http"),
        ({"server": "https://a:b"}, {}, r"clusters\[there\].cluster.server: is not a URL"),
        ({"server": "https://me:s3cr3t@a"}, {}, "has more in it than scheme, host, port and path"),
        (SERVER | {"proxy-url": "socks5://a"}, {}, "proxy-url: is not an http or https URL"),
        (SERVER | {"proxy-url": "http://me:s3cr3t@a:99999"}, {}, "proxy-url: is not an http or"),
        (SERVER | {"proxy-url": "http://me:s3cr3t@"}, {}, "proxy-url: is not an http or https"),
        (SERVER, {"auth-provider": {"name": "gcp"}}, "auth-provider: is not supported"),
        (SERVER, {"as": "s3cr3t"}, "as: is not supported"),
        (SERVER, {"exec": {"apiVersion": "v1"}}, r"users\[me\].user.exec.command: is not set"),
        (SERVER, {"exec": "s3cr3t"}, r"users\[me\].user.exec: is not a mapping"),
    ],
)
def test_what_can_never_work_is_refused_at_the_start(
    config: Path, cluster: dict[str, Any], user: dict[str, Any], fault: str
) -> None:
    access = Access(kubeconfig=make_kubeconfig(config, cluster=cluster, user=user))
    with pytest.raises(ConfigError, match=fault) as caught:
        check_access(access)
    assert "s3cr3t" not in str(caught.value)


def test_a_kubeconfig_that_is_not_there_is_refused_at_the_start(config: Path) -> None:
    with pytest.raises(ConfigError, match=f"kubeconfig {config}: cannot be read: No such file"):
        check_access(Access(kubeconfig=str(config)))


def test_a_master_that_is_no_url_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="--master: is not an http or https URL"):
        check_access(Access(master="unix:///run/api"))


def test_to_be_in_no_pod_without_a_flag_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="neither --kubeconfig nor --master is given"):
        check_access(Access())


def test_files_that_may_still_come_are_not_missed_at_the_start(config: Path) -> None:
    cluster = SERVER | {"certificate-authority": "not-there"}
    user = {"tokenFile": "not-there"}
    check_access(Access(kubeconfig=make_kubeconfig(config, cluster=cluster, user=user)))


@pytest.mark.parametrize(
    ("user", "fault"),
    [
        ({"token": "a\nb"}, "token: holds characters that no token has"),
        ({"tokenFile": "empty"}, "empty: is empty"),
        ({"tokenFile": "."}, "cannot be read: Is a directory"),
        ({"tokenFile": "binary"}, "binary: is not UTF-8 text"),
        ({"tokenFile": "/dev/zero"}, "is larger than 16777216 bytes"),
        ({"client-certificate-data": "s3cr3t!"}, "client-certificate-data: is not base64"),
        ({"client-key-data": "QUJD"}, "client-certificate: is empty, though"),
        ({"client-certificate-data": "QUJD"}, "client-key: is empty, though"),
    ],
)
def test_credentials_that_cannot_be_used_are_named_and_not_shown(
    config: Path, user: dict[str, Any], fault: str
) -> None:
    (config.parent / "empty").write_text(" \n")
    (config.parent / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(BackendError, match=fault) as caught:
        load(make_kubeconfig(config, cluster=SERVER, user=user))
    assert "s3cr3t" not in str(caught.value)


def test_an_authority_that_holds_no_certificate_is_named(config: Path) -> None:
    (config.parent / "ca.crt").write_text("nothing")
    cluster = SERVER | {"certificate-authority": "ca.crt"}
    with pytest.raises(BackendError, match=r"ca\.crt: holds no PEM certificate"):
        load(make_kubeconfig(config, cluster=cluster, user={}))


# Plugins


def plug(directory: Path, script: str, **more: object) -> Section:
    path = directory / "plugin"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    values = {"apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin", **more}
    return Section(file=directory / "config", place="users[me].user.exec", values=values)


def test_a_plugin_is_told_what_its_kubeconfig_says(tmp_path: Path) -> None:
    script = f"""echo "$*|$COLOUR|$KUBERNETES_EXEC_INFO" > {tmp_path}/told
echo '{{"status": {{"token": "abc", "expirationTimestamp": "2001-01-01T00:00:00Z"}}}}'"""
    section = plug(
        tmp_path,
        script,
        args=["a", "b"],
        env=[{"name": "COLOUR", "value": "blue"}],
        provideClusterInfo=True,
    )
    printed = run_plugin(section, {"server": "https://192.168.0.1"})
    assert (printed.token, printed.expires_at) == ("abc", 978307200.0)
    arguments, colour, information = (tmp_path / "told").read_text().split("|")
    assert (arguments, colour) == ("a b", "blue")
    assert json.loads(information) == {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "spec": {"interactive": False, "cluster": {"server": "https://192.168.0.1"}},
    }


def test_a_plugin_may_print_a_certificate(tmp_path: Path) -> None:
    status = {"clientCertificateData": "certificate", "clientKeyData": "key"}
    printed = run_plugin(plug(tmp_path, f"echo '{json.dumps({'status': status})}'"), {})
    assert (printed.certificate, printed.key, printed.token) == (b"certificate", b"key", "")


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("echo s3cr3t", "printed no ExecCredential with a status"),
        ("true", "printed no ExecCredential with a status"),
        ("""echo '{"status": "s3cr3t"}'""", "printed no ExecCredential with a status"),
        ("""echo '{"status": {"token": 7}}'""", "printed no ExecCredential with a status"),
        ("""echo '{"status": {}}'""", "printed neither a token nor a certificate with its key"),
        (
            """echo '{"status": {"token": "s3cr3t", "expirationTimestamp": "soon"}}'""",
            "printed no ExecCredential with a status",
        ),
        ("echo s3cr3t; echo no login >&2; exit 3", "ended with 3: no login"),
        ("exit 1", "ended with 1: in silence"),
        ("kill -9 $$", "ended with -9"),
    ],
)
def test_a_plugin_that_fails_is_named_and_its_output_is_not_shown(
    tmp_path: Path, script: str, fault: str
) -> None:
    with pytest.raises(BackendError, match=fault) as caught:
        run_plugin(plug(tmp_path, script), {})
    assert f"{tmp_path}/config: users[me].user.exec.command: " in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_a_plugin_that_is_not_there_is_named(tmp_path: Path) -> None:
    section = plug(tmp_path, "true", command="./missing")
    with pytest.raises(BackendError, match="missing cannot be run: No such file"):
        run_plugin(section, {})


def test_a_plugin_that_needs_a_terminal_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="interactiveMode: Always needs a terminal"):
        run_plugin(plug(tmp_path, "true", interactiveMode="Always"), {})


def test_a_plugin_that_does_not_end_is_ended_with_all_it_started(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/child; wait"
    with pytest.raises(BackendError, match=r"did not end in 1 s"):
        run_plugin(plug(tmp_path, script), {}, limit_seconds=1.0)
    child = int((tmp_path / "child").read_text())
    limit = time.monotonic() + 30
    while is_running(child):
        assert time.monotonic() < limit
        time.sleep(0.02)


def is_running(process: int) -> bool:
    """A zombie that nobody has waited for yet has ended too."""
    try:
        os.kill(process, 0)
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
