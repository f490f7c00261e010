"""The one place where ``host:port`` is read and written: teachers, etcd, what is listened on."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Union

from edl.errors import ConfigError

_PORT = re.compile(r"[0-9]{1,5}")


def parse_endpoint(text: str) -> tuple[str, int]:
    """``host:port`` (``[v6]:port`` too) as a pair. Raises ConfigError that says what is wrong."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    valid = colon and host and _PORT.fullmatch(port) and 0 < int(port) < 65536
    if not valid or any(sign in host for sign in "[]/ @") or (":" in host and not bracketed):
        raise ConfigError(f"endpoint {text!r} is not host:port")
    return host, int(port)


def endpoint_of(host: str, port: int) -> str:
    """``host:port`` as ``parse_endpoint`` reads it: an IPv6 address is in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def own_address(towards: tuple[str, int]) -> str:
    """The address that this machine has towards another one. Raises OSError if there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(towards)  # which sends nothing: these are datagrams
        return sock.getsockname()[0]


def is_loopback(host: str) -> bool:
    """Whether what is sent to a host, by name or address, stays on this machine."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def is_same_machine(ours: str, peer: str) -> bool:
    """Whether a connection between two addresses stays on this machine."""
    return ours == peer or is_loopback(peer)


def split_endpoints(text: Union[str, Sequence[str]]) -> list[str]:
    """The items of a list, or of a comma-separated string, without blanks and empty ones."""
    items = text.split(",") if isinstance(text, str) else text
    return [item.strip() for item in items if item.strip()]


def parse_etcd_endpoints(text: Union[str, Sequence[str]]) -> list[tuple[str, int]]:
    """Where etcd is, as for ``split_endpoints``, each item with or without ``http://`` and the
    like. Raises ConfigError if one is not ``host:port``, or if there is none.
    """
    pairs = []
    for item in split_endpoints(text):
        endpoint = re.sub(r"^(etcd|https?)://", "", item).rstrip("/")
        try:
            pairs.append(parse_endpoint(endpoint))
        except ConfigError as error:
            raise ConfigError(f"etcd: {error}, as in 10.0.0.1:2379") from None
    if not pairs:
        raise ConfigError("no etcd endpoint was given")
    return pairs
