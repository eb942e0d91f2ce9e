"""What the options say about a server."""

from __future__ import annotations

from pytest_infer.engines.base import ServerOptions
from pytest_infer.engines.server import address
from pytest_infer.errors import OptionError
from pytest_infer.pytest_face.option_reader import OptionReader
from pytest_infer.pytest_face.options import CACHE, SERVER_KINDS
from pytest_infer.pytest_face.sweep.lengths import whole

ENGINE = "server"
OPTIONS = ("server", "serve", "serve-flags", "cache", "server-kind", "server-pid", "server-timeout")
_TIMEOUT_S = 600.0


def options(read: OptionReader) -> ServerOptions | None:
    """Return the server that is to be measured; None where no option names one.

    Raises OptionError for what cannot be used, which shows nothing of a key.
    """
    if not any(read.given(name) for name in OPTIONS):
        return None
    url, command = read.text("server"), read.text("serve")
    if url is not None and command is not None:
        raise OptionError(f"{read.place('server')} is one that runs, and {read.place('serve')} starts one: take either")
    if url is not None:
        url = address.checked(url, read.place("server"))
    if command is not None:
        address.check_command(command, read.place("serve"))
    if (url or command) and read.text("against") is not None:
        where = read.place("server" if url else "serve")
        raise OptionError(
            f"{read.place('against')} compares two commits of what runs in this process: leave out {where}, or "
            "name the other server with --infer-against-server or --infer-against-serve"
        )
    flags = read.text("serve-flags") or ""
    if flags and command is None:
        raise OptionError(f"{read.place('serve-flags')} is for a command with {{flags}}: name it with --infer-serve")
    address.check_command(flags, read.place("serve-flags"))
    return ServerOptions(
        url=url,
        flags=flags,
        command=command,
        cache=read.choice("cache", CACHE, CACHE[0]),
        kind=read.choice("server-kind", SERVER_KINDS, "") or None,
        pids=_pids(read),
        timeout_s=read.duration("server-timeout", _TIMEOUT_S),
    )


def other(read: OptionReader, own: ServerOptions | None) -> tuple[str, str] | None:
    """Return the server that this one is compared with, as the option by which it is named and its value.

    Raises OptionError for one that cannot be used, or if there is nothing to compare it with.
    """
    given = [name for name in ("server", "serve") if read.text(f"against-{name}") is not None]
    if not given:
        return None
    (name, *more), where = given, read.place(f"against-{given[0]}")
    if more:
        raise OptionError(f"{where} and {read.place(f'against-{more[0]}')} both name the other server: take either")
    if own is None or not (own.url or own.command):
        raise OptionError(f"{where} is the other of two servers: name this one with --infer-server or --infer-serve")
    for option in ("against-python", "against-sequential", "cold-load", "replay", "resume"):
        if read.given(option):
            raise OptionError(f"{where} measures both servers in one run: leave out {read.place(option)}")
    if name == "serve" and own.url and read.text("model") is None:
        raise OptionError(f"{where}: name the model that it is to start with --infer-model")
    value = read.text(f"against-{name}") or ""
    if name == "server":
        value = address.checked(value, where)
    else:
        address.check_command(value, where)
    return name, value


def _pids(read: OptionReader) -> tuple[int, ...]:
    """Return the processes of a running server; raise OptionError for what names none, or where none runs."""
    text, where = read.text("server-pid"), read.place("server-pid")
    if text is None:
        return ()
    numbers = [whole(part.strip()) for part in text.split(",")]
    known = tuple(dict.fromkeys(number for number in numbers if number is not None))
    if None in numbers:
        raise OptionError(f"{where} takes process ids, as 4711 or 4711,4712, not {text!r}")
    if read.text("serve") is not None:
        raise OptionError(f"{where} names the processes of a server that runs, and {read.place('serve')} starts one")
    return known


def engine(read: OptionReader, server: ServerOptions | None) -> str:
    """Return the engine: as it is named, or the one for servers where there is one."""
    served = server is not None and (server.url or server.command)
    return read.text("engine") or (ENGINE if served else "transformers")
