"""``lab.yaml`` is read as documented, and what is wrong in it is named."""

from __future__ import annotations

import copy
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml

from kilo.errors import ConfigError
from kilo.lab.spec import load_spec, parse_spec
from kilo.lab.wiring import plan_cables
from tests.lab.conftest import SITES


def test_a_lab_is_read_with_its_links_in_the_order_of_the_file() -> None:
    spec = parse_spec("lab.yaml", yaml.safe_load(SITES))
    assert [host.name for host in spec.hosts] == ["oregon-1", "oregon-2", "home-1", "stranger"]
    assert [link.network for link in spec.hosts[0].attachments] == ["oregon", "internet"]
    assert spec.hosts[1].agent
    assert not spec.hosts[3].agent
    assert spec.network("home").nat is not None


@pytest.mark.parametrize(
    ("host", "gateways"),
    [
        ("oregon-1", ["198.51.100.1", "2001:db8::1"]),
        ("oregon-2", ["192.168.1.1", "fd00:1::1"]),
        ("home-1", ["192.168.50.1"]),
    ],
)
def test_a_default_route_prefers_a_public_network_to_a_nat(host: str, gateways: list[str]) -> None:
    spec = parse_spec("lab.yaml", yaml.safe_load(SITES))
    found = [g for cable in plan_cables(spec) if cable.box == host for g in cable.gateways]
    assert found == list(map(ip_address, gateways))


def test_latency_and_loss_have_units() -> None:
    document = yaml.safe_load(SITES)
    document["networks"]["home"] |= {"latency": "20ms", "loss": "0.5%"}
    network = parse_spec("lab.yaml", document).network("home")
    assert (network.latency_seconds, network.loss) == (0.02, 0.005)


MISTAKES = {
    "networks.home.colour: 'blue' is not a field known here": ("networks.home.colour", "blue"),
    "networks.home.subnets: 'nonsense' is not a subnet": ("networks.home.subnets", ["nonsense"]),
    "networks.home.subnets: [] names no subnet": ("networks.home.subnets", []),
    "networks.home.public: 'perhaps' is neither true nor false": (
        "networks.home.public",
        "perhaps",
    ),
    "networks.home.latency: '20' is not a time": ("networks.home.latency", "20"),
    "networks.home.loss: 5 is not a percentage": ("networks.home.loss", 5),
    "networks.home.loss: '101%' is not a percentage": ("networks.home.loss", "101%"),
    "networks.home.nat.behind: 'mars' is not the name of": ("networks.home.nat.behind", "mars"),
    "networks.home.nat.behind: 'home' is not the name of": ("networks.home.nat.behind", "home"),
    "networks.home.nat.address: '10.0.0.1' lies in no subnet": (
        "networks.home.nat.address",
        "10.0.0.1",
    ),
    "networks.home.nat: is not a mapping": ("networks.home.nat", "yes"),
    "hosts.home-1.networks.home: '192.168.50.11/24' is not an address": (
        "hosts.home-1.networks.home",
        "192.168.50.11/24",
    ),
    "hosts.home-1.networks.home: [] names no address": ("hosts.home-1.networks.home", []),
    "hosts.home-1.networks: {} names no network": ("hosts.home-1.networks", {}),
    "hosts.home-1.networks.mars: 'mars' is not the name of": ("hosts.home-1.networks.mars", "x"),
    "hosts.home-1.flags: 7 is not a text": ("hosts.home-1.flags", [7]),
    "hosts.stranger.peer: 'laptop' is played without an agent": (
        "hosts.stranger",
        {"agent": True, "peer": "laptop", "networks": {"internet": "203.0.113.50"}},
    ),
    "hosts: 'no name' is no name": ("hosts.no name", {}),
    "hosts: names no host": ("hosts", {}),
    "host home-1: '192.168.50.1' is the address of its router": (
        "hosts.home-1.networks.home",
        "192.168.50.1",
    ),
    "host stranger: '198.51.100.11' is the address of host oregon-1": (
        "hosts.stranger.networks.internet",
        "198.51.100.11",
    ),
    "the NAT of network home: '203.0.113.50' is the address of host stranger": (
        "networks.home.nat.address",
        "203.0.113.50",
    ),
}


@pytest.mark.parametrize(("message", "change"), MISTAKES.items())
def test_a_mistake_is_named_with_file_field_and_value(
    message: str, change: tuple[str, object]
) -> None:
    document = copy.deepcopy(yaml.safe_load(SITES))
    *path, last = change[0].split(".")
    place = document
    for step in path:
        place = place[step]
    place[last] = change[1]
    with pytest.raises(ConfigError) as caught:
        parse_spec("lab.yaml", document)
    assert str(caught.value).startswith(f"lab.yaml: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_not_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    with pytest.raises(ConfigError, match=r"lab\.yaml: No such file or directory"):
        load_spec(path)
    path.write_text("a: [")
    with pytest.raises(ConfigError, match=r"lab\.yaml: is not YAML: ") as caught:
        load_spec(path)
    assert "\n" not in str(caught.value)
    path.write_text("- a list")
    with pytest.raises(ConfigError, match=r"lab\.yaml: is not a mapping"):
        load_spec(path)
