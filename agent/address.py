"""Where an MQTT broker is: the one reading of `mqtt://host:port` that everything shares.

The configuration is refused with it and the daemon connects with it, so an address that was
accepted once never turns out to be none later. Pure: nothing is looked up here. Whether the
host exists is for whoever connects to find out.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

FORMS = "mqtt://host:port, or mqtts:// for TLS"
# IANA service names: secure-mqtt 8883, mqtt 1883.
DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}
# RFC 6335, 6: ports are 16 bits, and 0 is reserved.
MAX_PORT = 65_535

# RFC 1035, 2.3.4: a name is at most 255 bytes on the wire, which leaves 253 characters. Behind
# a `%` stands the interface of a link-local address: RFC 4007, 11.
_URL = re.compile(
    r"(?P<scheme>mqtts?)://"
    r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<name>[\w.-]{1,253}))"
    r"(?::(?P<port>[0-9]{1,9}))?/?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the broker is."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(url: str) -> Address:
    """Return the address in an `mqtt://` or `mqtts://` url.

    Raises:
        ValueError: with what is allowed; the url, which may hold a password, is not in it.
    """
    if "@" in url:
        raise ValueError(
            f"must be {FORMS}, without credentials; put them in username and password_file"
        )
    found = _URL.fullmatch(url)
    if found is None:
        is_ipv6 = "::" in url or "[" in url
        hint = "; an IPv6 address stands in brackets, mqtt://[::1]:1883" if is_ipv6 else ""
        raise ValueError(f"must be {FORMS}{hint}")
    host = found["bracketed"] or found["name"]
    if not _is_host(host):
        raise ValueError(f"must be {FORMS}; this host is neither a name nor an IP address")
    scheme = found["scheme"]
    port = DEFAULT_PORTS[scheme] if found["port"] is None else int(found["port"])
    if not 0 < port <= MAX_PORT:
        raise ValueError(f"must be {FORMS}; the port is a number from 1 to {MAX_PORT}")
    return Address(host=host, port=port, tls=scheme == "mqtts")


def _is_host(host: str) -> bool:
    try:
        if ":" in host:
            ipaddress.IPv6Address(host)
        elif host.rpartition(".")[2].isdigit():
            # No top-level domain is a number, so this is meant as an IPv4 address.
            ipaddress.IPv4Address(host)
        else:
            host.encode("idna")  # as getaddrinfo(3) is given it: no empty or overlong label
    except ValueError:
        return False
    return True
