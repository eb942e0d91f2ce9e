"""The address of a server, and the key that it may ask for."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from urllib.parse import urlsplit

from pytest_infer.errors import EngineError, OptionError

KEY = "PYTEST_INFER_SERVER_KEY"
"""The environment variable that holds the key; no option and no file does."""
_KEY_OPTION = re.compile(
    r"(?i:api[-_]?key(?!-file)|--(?:[\w-]+-)?(?:token|secret|password)(?![\w-])|(?<!\S)-hft\b)"
    r"|\w*(?:TOKEN|SECRET|PASSWORD|KEY)="
)
"""An option for a key, or a variable that is set to one; not --max-num-batched-tokens, nor the file of a key."""
_IP = (socket.AF_INET, socket.AF_INET6)


def checked(url: str, where: str) -> str:
    """Return an address as scheme, host, port and path, without a final /v1; raise OptionError for anything else.

    What it may hold of a key is not shown.
    """
    try:
        parts = urlsplit(url.strip())
        port, host = parts.port, parts.hostname
    except ValueError:
        parts, port, host = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host:
        shown = "" if "@" in url or "?" in url else f", not {url!r}"
        raise OptionError(f"{where} takes an address such as http://127.0.0.1:8080{shown}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise OptionError(
            f"{where}: an address holds no key, as it is stored with the results: set {KEY} in the environment"
        )
    name = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{name}{'' if port is None else f':{port}'}{path}"


def check_command(command: str, where: str) -> None:
    """Refuse a key in the command of a server, which is stored with the results."""
    if _KEY_OPTION.search(command):
        raise OptionError(
            f"{where}: the command is stored with the results: give the server its key by its environment"
        )


def is_here(url: str) -> bool | None:
    """Return whether an address is this machine's own: a loopback, one of an interface, or that of all (0.0.0.0).

    None where its name cannot be looked up.
    """
    import psutil  # noqa: PLC0415 - takes long to import, and addresses are checked where nothing is measured

    try:
        found = socket.getaddrinfo(urlsplit(url).hostname or "", None)
    except (OSError, UnicodeError):
        return None
    own = {_ip(one.address) for held in psutil.net_if_addrs().values() for one in held if one.family in _IP}
    ips = [_ip(str(where[0])) for *_, where in found]
    return any(ip.is_loopback or ip.is_unspecified or ip in own for ip in ips)


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an address without its scope (%eth0), and as IPv4 where it is one within IPv6."""
    ip = ipaddress.ip_address(text.partition("%")[0])
    return getattr(ip, "ipv4_mapped", None) or ip


def port(url: str) -> int:
    """Return the port of an address."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def authorisation() -> str | None:
    """Return the header's value for the key of the environment, None without one.

    Raises EngineError for one that no header can hold, which would be shown by whoever refuses it.
    """
    key = os.environ.get(KEY, "")
    if not key:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise EngineError(f"{KEY} holds what no key can: spaces, line ends, or other than ASCII")
    return f"Bearer {key}"


def without_key(text: str) -> str:
    """Return what a server says without the key, in one line that can be shown."""
    key = os.environ.get(KEY, "")
    text = text.replace(key, "…") if key else text
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
