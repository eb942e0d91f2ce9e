"""The command that starts a server, with places for what is known only when it starts."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
from collections.abc import Mapping

from pytest_infer.errors import OptionError, alternatives

_PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")
"""A name in braces; braces around anything else are the command's own, such as JSON."""
_PLACES = ("model", "port")
FLAGS = "{flags}"


def arguments(template: str, values: Mapping[str, str], flags: str = "") -> list[str]:
    """Return the arguments of a template, in which each `{name}` is replaced by its value; no shell reads them.

    `{flags}` is an argument of its own, and stands for as many as `flags` are.

    Raises:
        OptionError: it is empty or its quotes are not closed, lacks a place or has one that is not known.
    """
    parts = [one for part in _split(template) for one in (_split(flags) if part == FLAGS else [part])]
    if flags and FLAGS not in _split(template):
        raise OptionError(f"the command of a server, {template!r}, lacks {FLAGS}: where it takes {flags!r}")
    if not parts:
        raise OptionError('the command of a server is empty: give one such as "llama-server -m {model} --port {port}"')
    used = [name for part in parts for name in _PLACE.findall(part)]
    places = [f"{{{name}}}" for name in values]
    for name in used:
        if name not in values:
            raise OptionError(f"the command of a server: {alternatives('placeholder', f'{{{name}}}', places)}")
    for name in _PLACES:
        if name not in used:
            raise OptionError(f"the command of a server, {template!r}, lacks {{{name}}}: {_WHY[name]}")
    return [_PLACE.sub(lambda found: values[found[1]], part) for part in parts]


def _split(template: str) -> list[str]:
    try:
        return shlex.split(template)
    except ValueError as error:
        raise OptionError(f"the command of a server, {template!r}: {str(error).lower()}") from None


_WHY = {
    "model": "where it takes the model that is measured",
    "port": "where it takes the port that it is to listen to, a free one of 127.0.0.1",
}


def program(name: str, environ: Mapping[str, str]) -> str:
    """Return the path of the program, by the PATH of its environment; raise OptionError where there is none."""
    found = shutil.which(name, path=environ.get("PATH"))
    if found is None:
        raise OptionError(f"the command of a server: there is no program {name!r}, here or on the PATH")
    return found


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens to now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
