"""The syntax of command lines, environment variables, --help and completion."""

import subprocess
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilo.completion import SHELLS, write_completion
from kilo.errors import ConfigError
from kilo.flags import (
    BOOL,
    DURATION,
    INT,
    STRING,
    STRINGS,
    Flag,
    FlagSet,
    Kind,
    Parsed,
    Source,
    list_of,
    name_variable,
)

CIDR = Kind(word="cidr", parse=lambda text: ip_network(text, strict=False))

BACKEND = Flag(
    "backend", STRING, "kubernetes", "where the mesh is", choices=("kubernetes", "etcd", "file")
)
CNI = Flag("cni", BOOL, True, "manage CNI")  # noqa: FBT003 - a default, and a boolean's
LEVEL = Flag("log-level", STRING, "info", "how much to say")
PERIOD = Flag("resync-period", DURATION, 30.0, "how often")
PORT = Flag("port", INT, 51820, "WireGuard's port")
SERVICES = Flag("service-cidr", STRINGS, ("10.96.0.0/12",), "never masqueraded")
INTERFACE = Flag("interface", STRING, "kilo0", "the device", short="i")
ALLOWED = Flag("allowed-ips", list_of(CIDR, "cidrs"), (), "what to route", short="a")
QUIET = Flag("quiet", BOOL, False, "say less", short="q")  # noqa: FBT003 - see above

FLAGS = (BACKEND, CNI, LEVEL, PERIOD, PORT, SERVICES, INTERFACE, ALLOWED, QUIET)
PROGRAM = FlagSet("kg", FLAGS, "kg does things.")
COMMANDS = FlagSet(
    "kg", FLAGS, "kg does things.", commands={"version": "say", "uninstall": "go"}, max_arguments=1
)


def parse(line: str, environ: Mapping[str, str] | None = None) -> Parsed:
    return PROGRAM.parse(line.split(), environ or {})


def complaint(line: str, flag_set: FlagSet = PROGRAM, **environ: str) -> str:
    with pytest.raises(ConfigError) as error:
        flag_set.parse(line.split(), environ)
    return str(error.value)


# Values


@pytest.mark.parametrize(
    ("line", "flag", "value"),
    [
        ("", BACKEND, "kubernetes"),
        ("--backend=etcd", BACKEND, "etcd"),
        ("--backend etcd", BACKEND, "etcd"),
        ("--backend etcd --backend=file", BACKEND, "file"),
        ("--log-level=a=b", LEVEL, "a=b"),
        ("--log-level=", LEVEL, ""),
        ("--log-level --cni", LEVEL, "--cni"),
        ("", CNI, True),
        ("--cni", CNI, True),
        ("--cni=true", CNI, True),
        ("--cni=false", CNI, False),
        ("--cni=false --cni", CNI, True),
        ("--resync-period=1m30s", PERIOD, 90.0),
        ("--resync-period 500ms", PERIOD, 0.5),
        ("--port=7", PORT, 7),
        ("--port -7", PORT, -7),
        ("", SERVICES, ("10.96.0.0/12",)),
        ("--service-cidr=a", SERVICES, ("a",)),
        ("--service-cidr=a,b --service-cidr c", SERVICES, ("a", "b", "c")),
        ("--service-cidr=", SERVICES, ()),
        ("-i wg0", INTERFACE, "wg0"),
        ("-iwg0", INTERFACE, "wg0"),
        ("-i=wg0", INTERFACE, "wg0"),
        ("-q", QUIET, True),
        ("-q=false", QUIET, False),
        ("-qi wg0", INTERFACE, "wg0"),
        ("-qiwg0", QUIET, True),
        (
            "-a 10.5.0.1/32 -a10.2.0.0/24",
            ALLOWED,
            tuple(map(ip_network, ("10.5.0.1", "10.2.0.0/24"))),
        ),
    ],
)
def test_a_flag_is_read_as_pflag_reads_it(line: str, flag: Flag[Any], value: object) -> None:
    assert parse(line).values[flag.name] == value


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_truth_has_gos_spellings(text: str) -> None:
    assert parse(f"--quiet={text}").value(QUIET) is True


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_untruth_has_gos_spellings(text: str) -> None:
    assert parse(f"--cni={text}").value(CNI) is False


def test_arguments_keep_their_order_among_flags() -> None:
    assert parse("connect --port 1 laptop -q home").arguments == ("connect", "laptop", "home")


def test_after_two_dashes_nothing_is_a_flag() -> None:
    parsed = parse("exec host -- ping --cni -c1")
    assert parsed.arguments == ("exec", "host", "ping", "--cni", "-c1")
    assert parsed.dash_at == 2
    assert not parsed.given("cni")
    assert parse("exec").dash_at is None


def test_a_lone_dash_is_an_argument() -> None:
    assert parse("apply -").arguments == ("apply", "-")


def test_where_flags_may_not_follow_arguments_the_first_argument_ends_them() -> None:
    strict = FlagSet("kgctl", FLAGS, "", interspersed=False)
    parsed = strict.parse(["-q", "exec", "--port", "7"], {})
    assert parsed.arguments == ("exec", "--port", "7")


# The environment


def test_every_flag_has_a_variable() -> None:
    assert name_variable("internal-cidr") == "KG_INTERNAL_CIDR"
    environ = {"KG_LOG_LEVEL": "debug", "KG_SERVICE_CIDR": "a,b", "KG_CNI": "0", "KG_PORT": "9"}
    parsed = parse("", environ)
    values = [parsed.values[flag] for flag in ("log-level", "service-cidr", "cni", "port")]
    assert values == ["debug", ("a", "b"), False, 9]


def test_the_command_line_wins_over_the_environment_and_that_over_the_default() -> None:
    parsed = parse("--port=1 --service-cidr=a", {"KG_PORT": "2", "KG_SERVICE_CIDR": "b,c"})
    assert parsed.value(PORT) == 1
    assert parsed.value(SERVICES) == ("a",)
    parsed = parse("--port=1", {"KG_LOG_LEVEL": "warn", "KG_PORT": "not looked at"})
    assert (parsed.value(PORT), parsed.value(LEVEL)) == (1, "warn")
    sources = {name: parsed.sources[name] for name in ("port", "log-level", "cni")}
    assert sources == {
        "port": Source.FLAG,
        "log-level": Source.ENVIRONMENT,
        "cni": Source.DEFAULT,
    }


def test_a_value_that_equals_the_default_is_known_to_have_been_given() -> None:
    assert parse("--port=51820").given("port")
    assert parse("", {"KG_PORT": "51820"}).given("port")
    assert not parse("").given("port")


def test_an_empty_variable_is_not_set() -> None:
    assert not parse("", {"KG_PORT": ""}).given("port")


def test_another_prefix_has_other_variables() -> None:
    parsed = PROGRAM.parse([], {"KGCTL_PORT": "1", "KG_PORT": "2"}, "KGCTL")
    assert parsed.value(PORT) == 1


# Errors


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--bakend=etcd", "unknown flag --bakend; did you mean --backend?"),
        ("--nothing-like-it", "unknown flag --nothing-like-it"),
        ("--no-cni", "unknown flag --no-cni; did you mean --cni=false?"),
        ("---cni", "unknown flag ---cni; did you mean --cni?"),
        ("-x", "unknown flag 'x' in '-x'"),
        ("-port=1", "unknown flag 'p' in '-port=1'; did you mean --port?"),
        ("--port", "--port: needs a value"),
        ("-qi", "-i: needs a value"),
        ("--port=many", "--port 'many': is not a whole number"),
        ("--port=\u0661", "--port '\u0661': is not a whole number"),
        ("--port=1 --port=x --port=2", "--port 'x': is not a whole number"),
        ("--port=" + "9" * 5000, f"--port '{'9' * 5000}': is not a whole number"),
        ("--cni=no", "--cni 'no': is neither true nor false"),
        ("--cni=", "--cni '': is neither true nor false"),
        ("--backend=File", "--backend 'File': possible values are kubernetes, etcd, file"),
        (
            "--resync-period=30",
            "--resync-period '30': is not a duration such as 30s, 1m30s or 500ms",
        ),
    ],
)
def test_an_error_names_the_flag_and_the_value(line: str, text: str) -> None:
    assert complaint(line) == text


def test_an_error_in_the_environment_names_the_variable() -> None:
    assert (
        complaint("", KG_PORT="tcp://10.2.0.1") == "KG_PORT 'tcp://10.2.0.1': is not a whole number"
    )
    assert complaint("", KG_BACKEND="x").startswith("KG_BACKEND 'x': possible values are")


def test_a_boolean_never_takes_the_next_word() -> None:
    assert complaint("--cni false", COMMANDS) == "unexpected argument 'false'; write --cni=false"
    assert parse("--cni false").arguments == ("false",)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("uninstal", "unexpected argument 'uninstal'; did you mean uninstall?"),
        ("frobnicate", "unexpected argument 'frobnicate'; commands are version, uninstall"),
        ("version again", "unexpected argument 'again'"),
        ("version -- --cni", "unexpected argument '--cni'"),
    ],
)
def test_an_argument_too_many_or_unknown_is_refused(line: str, text: str) -> None:
    assert complaint(line, COMMANDS) == text


@given(st.lists(st.text(max_size=12) | st.sampled_from(["--cni", "-q", "--port", "7", "--", "-"])))
@settings(deadline=None)
def test_no_command_line_ends_in_anything_but_values_help_or_one_line(words: list[str]) -> None:
    words = [word for word in words if not word.startswith(("-h", "-qh", "--help"))]
    try:
        parsed = PROGRAM.parse(words, {})
    except ConfigError as refusal:
        lines = str(refusal).splitlines()
    except SystemExit:  # an -h among other short flags
        return
    else:
        lines = [str(parsed.value(PORT))]
    assert len(lines) == 1


# Help and completion

HELP = """\
kg does things.

Commands:
  version     say
  uninstall   go

Flags:
      --backend string           where the mesh is: kubernetes, etcd, file (default "kubernetes")
      --cni                      manage CNI (default true)
      --log-level string         how much to say (default "info")
      --resync-period duration   how often (default 30s)
      --port int                 WireGuard's port (default 51820)
      --service-cidr strings     never masqueraded (default [10.96.0.0/12])
  -i, --interface string         the device (default "kilo0")
  -a, --allowed-ips cidrs        what to route
  -q, --quiet                    say less
  -h, --help                     print this and exit
"""


@pytest.mark.parametrize("word", ["-h", "--help", "-qh"])
def test_help_is_printed_and_that_is_all(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        COMMANDS.parse(["--cni", word, "--bad"], {"COLUMNS": "100"})
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("kg does things.\n")


def test_help_has_pflags_layout() -> None:
    assert COMMANDS.format_help(100) == HELP


@pytest.mark.parametrize("width", [20, 40, 60, 72, 80, 132])
def test_help_fits_the_terminal(width: int) -> None:
    longest = max(map(len, COMMANDS.format_help(width).splitlines()))
    assert longest <= max(width, 40)  # no narrower than that: words must fit


def test_a_default_can_be_told_in_words() -> None:
    flag = Flag("hostname", STRING, "", "the node's name", default_text="the host's name")
    assert "(default the host's name)" in FlagSet("kg", (flag,), "").format_help(100)


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_every_flag_and_command(shell: str) -> None:
    script = write_completion(COMMANDS, shell)
    assert all(flag.name in script for flag in FLAGS)
    assert all(command in script for command in COMMANDS.commands)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["kg", "--ba"], ["--backend"]),
        (["kg", "--backend", "e"], ["etcd"]),
        (["kg", "--backend", "="], ["kubernetes", "etcd", "file"]),
        (["kg", "--backend", "=", "f"], ["file"]),
        (["kg", "un"], ["uninstall"]),
    ],
)
def test_bash_completes(words: list[str], expected: list[str]) -> None:
    line = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _kg; printf '%s\\n' ${{COMPREPLY[@]}}"
    script = write_completion(COMMANDS, "bash") + ask
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_an_unknown_shell_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^shell 'tcsh': possible values are bash, zsh, fish$"):
        write_completion(COMMANDS, "tcsh")
