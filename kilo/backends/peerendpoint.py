"""A peer's endpoint, which has a shape of its own: ``{dnsOrIP: {dns, ip}, port}``."""

from __future__ import annotations

from collections.abc import Mapping

from kilo.backends.fields import Field, Format, Spot, emit_fields, read_fields
from kilo.backends.formats import PORT, read_address, read_text
from kilo.mesh.model import Endpoint, parse_host

_LABEL = "[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?"
_NAME = rf"{_LABEL}(\.{_LABEL})*\.?"
_IPV6 = "[0-9A-Fa-f.]*:[0-9A-Fa-f.:]*"


def read_dns_name(value: object, spot: Spot) -> str:
    """A name that a resolver may be asked for; empty where the text is."""
    text = read_text(value, spot)
    try:
        return parse_host(text, bracketed=False) if text else ""
    except ValueError:
        raise spot.fault(value, "is not a DNS name") from None


def read_dns_or_ip(value: object, spot: Spot) -> str:
    """The host; ``ip`` wins over ``dns``."""
    hosts = read_fields(DNS_OR_IP_FIELDS, value, spot)
    host: str = hosts.get("ip") or hosts.get("dns") or ""
    if not host:
        raise spot.fault(value, "names neither dns nor ip")
    return host


def emit_dns_or_ip(host: str) -> dict[str, object]:
    """The host under ``ip`` if it is an address, else under ``dns``."""
    is_address = Endpoint(host=host, port=1).ip is not None
    return {"ip" if is_address else "dns": host}


def read_peer_endpoint(value: object, spot: Spot) -> Endpoint:
    """``{dnsOrIP: …, port: …}``."""
    return Endpoint(**read_fields(PEER_ENDPOINT_FIELDS, value, spot))


def emit_peer_endpoint(endpoint: Endpoint) -> dict[str, object]:
    """The endpoint in the shape of the Peer schema."""
    attributes = {"host": endpoint.host, "port": endpoint.port}
    return emit_fields(PEER_ENDPOINT_FIELDS, attributes)


DNS_SCHEMA: Mapping[str, object] = {
    "type": "string",
    "maxLength": 253,
    # An address may stand here as well, and an IPv6 one looks like no name. One pattern, coarse
    # as it is for those: of two alternatives a server reports the one that was not meant.
    "pattern": f"^({_NAME}|{_IPV6})?$",
}
IP_SCHEMA: Mapping[str, object] = {
    "type": "string",
    "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}, {"maxLength": 0}],
}
HOST_SCHEMA: Mapping[str, object] = {
    "anyOf": [
        {"required": [name], "properties": {name: {"minLength": 1}}} for name in ("ip", "dns")
    ],
}
HOST_RULES = {
    "has(self.ip) && self.ip != '' || has(self.dns) && self.dns != ''": "names neither dns nor ip"
}
DNS_OR_IP_FIELDS = (
    Field(
        name="dns",
        attribute="dns",
        format=Format(parse=read_dns_name, emit=str, schema=DNS_SCHEMA),
        description="A name that is looked up time and again.",
    ),
    Field(
        name="ip",
        attribute="ip",
        format=Format(parse=read_address, emit=str, schema=IP_SCHEMA),
        description="An IPv4 or IPv6 address; it wins over dns.",
    ),
)
PEER_ENDPOINT_FIELDS = (
    Field(
        name="dnsOrIP",
        attribute="host",
        format=Format(
            parse=read_dns_or_ip,
            emit=emit_dns_or_ip,
            schema=HOST_SCHEMA,
            rules=HOST_RULES,
            fields=DNS_OR_IP_FIELDS,
        ),
        required=True,
        description="Where the device is: a name or an address, at least one of them.",
    ),
    Field(
        name="port",
        attribute="port",
        format=PORT,
        required=True,
        description="The UDP port it listens on.",
    ),
)
PEER_ENDPOINT = Format(
    parse=read_peer_endpoint, emit=emit_peer_endpoint, fields=PEER_ENDPOINT_FIELDS
)
