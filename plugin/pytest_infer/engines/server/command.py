"""The command that starts a server, with places for what is known only when it starts."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
from collections.abc import Callable, Collection, Mapping, Sequence

from pytest_infer.errors import OptionError, alternatives

_PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")
"""A name in braces; braces around anything else are the command's own, such as JSON."""
GGUF = "{gguf}"
"""Stands for the model as a GGUF file."""
FLAGS = "{flags}"


def parts(template: str, names: Collection[str], flags: str = "") -> list[str]:
    """Return the arguments of a template, in which `{name}` is one of `names`; no shell reads them.

    `{flags}` is an argument of its own, and stands for as many as `flags` are.

    Raises:
        OptionError: it is empty or its quotes are not closed, lacks a place or has one that is not known.
    """
    found = [one for part in _split(template) for one in (_split(flags) if part == FLAGS else [part])]
    if flags and FLAGS not in _split(template):
        raise OptionError(f"the command of a server, {template!r}, lacks {FLAGS}: where it takes {flags!r}")
    if not found:
        raise OptionError('the command of a server is empty: give one such as "llama-server -m {gguf} --port {port}"')
    used = {name for part in found for name in _PLACE.findall(part)}
    places = [f"{{{name}}}" for name in names]
    for name in sorted(used - set(names)):
        raise OptionError(f"the command of a server: {alternatives('placeholder', f'{{{name}}}', places)}")
    for any_of, lacks in _WHY.items():
        if not used & set(any_of):
            raise OptionError(f"the command of a server, {template!r}, lacks {lacks}")
    return found


def filled(found: Sequence[str], values: Mapping[str, Callable[[], str]]) -> list[str]:
    """Return arguments in which each `{name}` is replaced by its value, which is asked for only where it stands."""
    return [_PLACE.sub(lambda place: values[place[1]](), part) for part in found]


def _split(template: str) -> list[str]:
    try:
        return shlex.split(template)
    except ValueError as error:
        raise OptionError(f"the command of a server, {template!r}: {str(error).lower()}") from None


_WHY = {
    ("model", "gguf"): "{model}: where it takes the model that is measured, or {gguf}: the same as a GGUF file",
    ("port",): "{port}: where it takes the port that it is to listen to, a free one of 127.0.0.1",
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
